"""The error tree: every failure that Stillhouse names, and nothing about how it is shown.

Raise an error where the fact is known and translate it once, at the border. ``core.catalogue`` says of
each ``code`` whether to retry, which status it has and what to do.

    StillhouseError                     SYSTEM_ERROR
    ├── RequestError                    a request that must change before it can work
    │   ├── MalformedBodyError
    │   ├── ParameterError
    │   ├── DataTargetError
    │   ├── TeacherSourceError
    │   ├── TrainingModeError
    │   ├── HiddenConfigError
    │   ├── SchemaError
    │   ├── BodyTooLargeError
    │   └── PredictionInputError
    ├── DatasetError                    the data, not the request, is at fault
    │   └── DatasetTooLargeError
    ├── NotFoundError
    │   ├── DatasetNotFoundError
    │   ├── RunNotFoundError
    │   └── ModelNotFoundError
    ├── MethodNotAllowedError
    ├── ModelExistsError
    ├── BundleError                     a bundle file that cannot be trusted
    ├── TrainingError
    │   └── TrainingTimeoutError
    ├── UnavailableError                try again later
    │   ├── RuntimeUnavailableError
    │   ├── TrainerUnreachableError
    │   └── OverloadedError
    ├── AuthenticationError
    ├── StorageError
    └── TrainingStoppedError            nobody waits for the answer any more
"""

import re
from typing import Final

_SERVER_PATH: Final = re.compile(r"(?:[A-Za-z]:)?(?:[/\\][\w.@+-]+){2,}[/\\]?")


def without_paths(text: str) -> str:
    """A foreign message without the server's file paths.

    >>> without_paths("cannot open /srv/data/x.csv (denied)")
    'cannot open <path> (denied)'
    """
    return _SERVER_PATH.sub("<path>", text)


class StillhouseError(Exception):
    """Base of all errors that Stillhouse raises on purpose.

    Args:
        message: What must hold, what was given, what to do next. Free of secrets, server paths and rows.
        details: JSON values that name the particulars (``field``, ``value``, ``line`` …).
    """

    code = "SYSTEM_ERROR"

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def __str__(self) -> str:
        return self.message


class RequestError(StillhouseError):
    code = "INVALID_REQUEST"


class MalformedBodyError(RequestError):
    code = "MALFORMED_BODY"


class ParameterError(RequestError):
    code = "INVALID_PARAMETER"


class DataTargetError(RequestError):
    code = "INVALID_DATA_TARGET"


class TeacherSourceError(RequestError):
    code = "INVALID_TEACHER"


class TrainingModeError(RequestError):
    code = "INVALID_MODEL"


class HiddenConfigError(RequestError):
    code = "INVALID_CONFIG"


class SchemaError(RequestError):
    """Details: ``violations``, a list of ``{type, loc, msg, input}`` as pydantic words them."""

    code = "SCHEMA_VIOLATION"


class BodyTooLargeError(RequestError):
    code = "BODY_TOO_LARGE"


class PredictionInputError(RequestError):
    code = "INVALID_PREDICTION_INPUT"


class DatasetError(StillhouseError):
    code = "DATASET_INVALID_FORMAT"


class DatasetTooLargeError(DatasetError):
    code = "DATASET_TOO_LARGE"


class NotFoundError(StillhouseError):
    code = "NOT_FOUND"


class DatasetNotFoundError(NotFoundError):
    code = "DATASET_NOT_FOUND"


class RunNotFoundError(NotFoundError):
    code = "RUN_NOT_FOUND"


class ModelNotFoundError(NotFoundError):
    code = "MODEL_NOT_FOUND"


class MethodNotAllowedError(StillhouseError):
    """Details: ``allow``, the methods that the route takes."""

    code = "METHOD_NOT_ALLOWED"


class ModelExistsError(StillhouseError):
    code = "MODEL_EXISTS"


class BundleError(StillhouseError):
    code = "BUNDLE_INVALID"


class TrainingError(StillhouseError):
    code = "TRAINING_FAILED"


class TrainingTimeoutError(TrainingError):
    code = "TRAINING_TIMEOUT"


class UnavailableError(StillhouseError):
    code = "UNAVAILABLE"


class RuntimeUnavailableError(UnavailableError):
    code = "RUNTIME_UNAVAILABLE"


class TrainerUnreachableError(UnavailableError):
    code = "TRAINER_UNREACHABLE"


class OverloadedError(UnavailableError):
    code = "OVERLOADED"


class AuthenticationError(StillhouseError):
    code = "INVALID_TOKEN"


class StorageError(StillhouseError):
    code = "STORAGE_ERROR"


class TrainingStoppedError(StillhouseError):
    code = "TRAINING_STOPPED"
