"""What a route may answer when it fails, for its documentation: from the catalogue, in its dialect."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, JsonValue
from pydantic.json_schema import models_json_schema

from core.catalogue import CATALOGUE, ErrorType
from core.errors import (
    AuthenticationError,
    HeadersTooLargeError,
    IdempotencyInProgressError,
    IdempotencyKeyReusedError,
    InsufficientPermissionsError,
    MalformedBodyError,
    PayloadTooLargeError,
    RateLimitedError,
    RequestTimeoutError,
    ServiceUnavailableError,
    StillhouseError,
    UnexpectedError,
    UnsupportedMediaTypeError,
)
from deployments.dialects import PROBLEM, Asked, render

JSON: Final = "application/json"
ErrorClass = type[StillhouseError]
Responses = dict[int | str, dict[str, Any]]

OPEN: Final[tuple[ErrorClass, ...]] = (
    MalformedBodyError,
    PayloadTooLargeError,
    UnsupportedMediaTypeError,
    HeadersTooLargeError,
    UnexpectedError,
)
"""What any request may meet, also where no token is asked for."""
EDGE: Final[tuple[ErrorClass, ...]] = (
    *OPEN,
    AuthenticationError,
    InsufficientPermissionsError,
    RateLimitedError,
)
READING: Final[tuple[ErrorClass, ...]] = (RequestTimeoutError,)
CREATING: Final[tuple[ErrorClass, ...]] = (
    *READING,
    IdempotencyKeyReusedError,
    IdempotencyInProgressError,
    ServiceUnavailableError,
)
"""What a route may meet that takes an Idempotency-Key; the registry remembers them."""


class Shape(BaseModel):
    """A body that has these members and no others."""

    model_config = ConfigDict(extra="forbid")


class HandlerError(Shape):
    """The one shape of a failed train or distil request (seed 000)."""

    status: Literal["error"]
    error: str


class DetailError(Shape):
    """How every route but train and distil says what went wrong."""

    detail: str


class PlatformFailure(Shape):
    """Seed 001, with the code that it lacks (jobs.md, section 6)."""

    code: str
    type: str
    severity: str
    message: str
    suggested_action: str
    retryable: bool
    retry_mode: str
    retry_after: int | None
    param: str | None
    errors: list[dict[str, JsonValue]]
    context: dict[str, JsonValue]
    trace_id: str
    request_id: str
    timestamp: str
    doc_url: str


class PlatformError(Shape):
    """How the routes of training jobs say what went wrong."""

    error: PlatformFailure


class RateError(DetailError):
    """Too many requests."""

    retry_after: int


class Violation(Shape):
    """One thing that does not fit the schema of the route."""

    type: str
    loc: list[str | int]
    msg: str
    input: JsonValue


class SchemaErrors(Shape):
    """What does not fit: a message, or each violation of the schema."""

    detail: str | list[Violation]


class Problem(Shape):
    """RFC 9457, where ``Accept`` asks for ``application/problem+json``."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    suggested_action: str
    trace_id: str
    violations: list[Violation] = []
    errors: list[dict[str, JsonValue]] = []
    retry_after: int = 0


_SHAPES: Final = (HandlerError, DetailError, RateError, SchemaErrors, PlatformError, Problem)
_REFERENCE: Final = "#/components/schemas/{model}"
_IDS: Final = {
    "X-Request-ID": {"schema": {"type": "string"}},
    "X-Trace-Id": {"schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"}},
    "X-Error-Type": {"schema": {"type": "string", "enum": [kind.value for kind in ErrorType]}},
}
_WAITING: Final = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}}}


def failures(*errors: ErrorClass, path: str = "", edge: Iterable[ErrorClass] = EDGE) -> Responses:
    """The ``responses`` of a route for FastAPI: each status with its codes, headers and bodies.

    Args:
        errors: What the route itself raises.
        path: Names its dialect; the default is ``detail``.
        edge: What the guards before it raise.
    """
    by_status = defaultdict(list)
    for error in dict.fromkeys((*errors, *edge)):
        by_status[render(error(), Asked(path)).status].append(error)
    return {status: _response(status, by_status[status], path) for status in sorted(by_status)}


def _response(status: int, errors: list[ErrorClass], path: str) -> dict[str, Any]:
    codes = [error.code for error in errors]
    waits = any(CATALOGUE[code].retry_after_s is not None for code in codes)
    body = render(errors[0](), Asked(path)).body
    special: dict[int, type[Shape]] = {422: SchemaErrors, 429: RateError}
    detail = special.get(status, DetailError)
    own = (
        PlatformError if isinstance(body.get("error"), dict) else HandlerError if "error" in body else detail
    )
    return {
        "description": "; ".join(f"`{error.code}` {error().message}" for error in errors),
        "headers": {
            "X-Error-Code": {"schema": {"type": "string", "enum": codes}},
            **_IDS,
            **(_WAITING if waits else {}),
        },
        "content": {JSON: {"schema": _reference(own)}, PROBLEM: {"schema": _reference(Problem)}},
    }


def _reference(shape: type[Shape]) -> dict[str, str]:
    """To a definition of ``with_shapes``. As a model FastAPI would compile it for each of 500 responses."""
    return {"$ref": _REFERENCE.format(model=shape.__name__)}


def with_shapes(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document with the shapes that ``failures`` refers to; changed in place."""
    shapes = [(shape, "serialization") for shape in _SHAPES]
    _, schema = models_json_schema(shapes, ref_template=_REFERENCE)  # type: ignore[arg-type]
    document["components"].setdefault("schemas", {}).update(schema["$defs"])
    return document
