"""What the routes of training jobs may answer when they fail."""

from typing import Annotated, Final

from fastapi import Path

from core.errors import (
    CircuitOpenError,
    DatabaseError,
    DatabaseTimeoutError,
    DatabaseUnavailableError,
    DatasetError,
    DatasetNotFoundError,
    DatasetTooLargeError,
    DataTargetError,
    HiddenConfigError,
    JobNotFoundError,
    ParameterError,
    QueueFullError,
    QuotaExceededError,
    RequestError,
    SchemaError,
    ServiceUnavailableError,
    StillhouseError,
    StorageError,
    TrainerUnreachableError,
    TrainingModeError,
    ValidationError,
)
from deployments.routes.failures import CREATING, Responses, failures
from deployments.routes.job_views import (
    PATH,
)

JobId = Annotated[str, Path(max_length=200)]

LEDGER: Final = (
    DatabaseError,
    DatabaseUnavailableError,
    DatabaseTimeoutError,
    ServiceUnavailableError,
    CircuitOpenError,
)
ONE: Final = (JobNotFoundError, SchemaError, *LEDGER)
ORDER: Final = (ValidationError, TrainingModeError, HiddenConfigError, RequestError, ParameterError)
MAKING: Final = (
    *CREATING,
    *ORDER,
    *LEDGER,
    SchemaError,
    DatasetNotFoundError,
    DatasetError,
    DatasetTooLargeError,
    DataTargetError,
    StorageError,
    QuotaExceededError,
    QueueFullError,
    TrainerUnreachableError,
)
BODY: Final = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
}


def job_failures(*errors: type[StillhouseError]) -> Responses:
    return failures(*errors, path=PATH)
