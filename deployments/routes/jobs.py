"""Train and distil, in the ``handler`` dialect."""

import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from core.contract.fields import DISTILL_NUMBERS, HIDDEN_NUMBERS, TRAIN_NUMBERS, NumberField
from core.contract.modes import ALLOWED_TRAINING_MODES, UNSUPPORTED_DISTILL_MODES
from core.contract.sweeps import MAX_MEMBERS, SWEPT
from core.contract.validation import DISTILL_FIELDS, TEACHER_FIELDS, TRAIN_FIELDS
from core.errors import (
    BundleError,
    CircuitOpenError,
    CudaOutOfMemoryError,
    DatabaseError,
    DatasetError,
    DatasetNotFoundError,
    DatasetTooLargeError,
    DatasetValidationError,
    DataTargetError,
    HiddenConfigError,
    HostOutOfMemoryError,
    MalformedBodyError,
    ModelExistsError,
    ModelNotFoundError,
    ParameterError,
    QueueFullError,
    QuotaExceededError,
    RequestError,
    RunNotFoundError,
    RuntimeUnavailableError,
    StillhouseError,
    StorageError,
    TeacherSourceError,
    TrainerUnreachableError,
    TrainingDivergedError,
    TrainingError,
    TrainingModeError,
    TrainingStoppedError,
    TrainingTimeoutError,
    ValidationError,
)
from core.exchange import parse_json
from deployments.dialects import Asked, handler_answer, problem
from deployments.edge.border import origin_of, route_path
from deployments.preferences import prefers_async
from deployments.routes.examples import distill_example, train_example
from deployments.routes.failures import CREATING, Responses, failures
from deployments.routes.job_views import created, visitor_of
from deployments.service import JobKind, Report, Service

EVENT_STREAM: Final = "text/event-stream"


_JOB_ERRORS: Final = (
    *CREATING,
    DataTargetError,
    DatasetNotFoundError,
    DatasetError,
    DatasetTooLargeError,
    DatasetValidationError,
    RequestError,
    ParameterError,
    TrainingModeError,
    HiddenConfigError,
    ModelExistsError,
    TrainingError,
    TrainingDivergedError,
    TrainingTimeoutError,
    CudaOutOfMemoryError,
    HostOutOfMemoryError,
    StorageError,
    RuntimeUnavailableError,
    TrainerUnreachableError,
    TrainingStoppedError,
    QueueFullError,
    CircuitOpenError,
    ValidationError,
    QuotaExceededError,
    DatabaseError,
)
_TEACHER_ERRORS: Final = (TeacherSourceError, RunNotFoundError, ModelNotFoundError, BundleError)
_ANSWERS: Final[Responses] = {
    202: {"description": "With `Prefer: respond-async`: the training job; `Location` says where it is"},
    200: {
        "description": "The result; with `Accept: text/event-stream` the events that lead to it",
        "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
    },
}


Failed = Callable[[StillhouseError], None]


def job_routes(service: Service, example_dataset: str) -> APIRouter:
    """``POST /train`` and ``/distill``.

    The body is read here and not by a model of the framework, because the order of validation is the
    contract's. With ``Accept: text/event-stream`` the answer is a stream of ``started``, ``epoch`` and
    ``result`` (or ``error``) events; an error comes with its RFC 9457 body, for want of headers. With
    ``Prefer: respond-async`` the request becomes a training job: 202, and its address in ``Location``.
    """
    router = APIRouter(tags=["train and distil"])

    async def answer(kind: JobKind, request: Request) -> Response:
        origin = origin_of(request.scope)

        def failed(error: StillhouseError) -> None:
            service.observer.failed(error, request.scope, origin)

        if prefers_async(request.headers):
            filed = await service.desk.create(await read_object(request), kind, visitor_of(request), origin)
            return created(filed, asked_by(request), 202)
        reports = service.run_job(kind, await read_object(request), origin)
        first = await anext(reports)  # raises when validation fails
        if EVENT_STREAM in request.headers.get("accept", ""):
            return _EventStream(first, reports, asked_by(request), failed)
        last = first
        async with contextlib.aclosing(reports):
            async for report in reports:
                last = report
        return JSONResponse(last["body"])

    @router.post(
        "/train",
        openapi_extra=_body("train", train_example(example_dataset)),
        responses=_ANSWERS | failures(*_JOB_ERRORS, path="/api/v1/train"),
    )
    async def train(request: Request) -> Response:
        """Trains a model on a table and keeps it as a run."""
        return await answer("train", request)

    @router.post(
        "/distill",
        openapi_extra=_body("distill", distill_example(example_dataset)),
        responses=_ANSWERS | failures(*_JOB_ERRORS, *_TEACHER_ERRORS, path="/api/v1/distill"),
    )
    async def distill(request: Request) -> Response:
        """Trains a student a fraction of its teacher's size on the teacher's outputs."""
        return await answer("distill", request)

    return router


async def read_object(request: Request) -> dict[str, object]:
    """The body as a JSON object; raises MalformedBodyError for anything else."""
    payload = parse_json(await request.body())
    if not isinstance(payload, dict):
        raise MalformedBodyError(f"The body must be a JSON object, got {type(payload).__name__}.")
    return payload


class _EventStream(StreamingResponse):
    """Leaves the job when it ends in any way, before its first event or between two."""

    def __init__(self, first: Report, rest: AsyncGenerator[Report], asked: Asked, failed: Failed) -> None:
        super().__init__(_events(first, rest, asked, failed), media_type=EVENT_STREAM)
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._rest):
            await super().__call__(scope, receive, send)


async def _events(
    first: Report, rest: AsyncGenerator[Report], asked: Asked, failed: Failed
) -> AsyncGenerator[str]:
    try:
        async with contextlib.aclosing(rest):
            yield _event(first)
            async for report in rest:
                yield _event(report)
    except StillhouseError as error:
        failed(error)
        status, body = handler_answer(error)
        described = problem(error, status, asked)
        yield _event({"event": "error", "status_code": status, "body": body, "problem": described})


def asked_by(request: Request) -> Asked:
    origin = origin_of(request.scope)
    return Asked(route_path(request.scope), None, origin.request_id, origin.trace_id)


def _event(report: Report) -> str:
    return f"event: {report['event']}\ndata: {json.dumps(report)}\n\n"


def _body(kind: JobKind, example: dict[str, object]) -> dict[str, object]:
    numbers = {**TRAIN_NUMBERS, **HIDDEN_NUMBERS} if kind == "train" else DISTILL_NUMBERS
    names = TRAIN_FIELDS if kind == "train" else DISTILL_FIELDS
    modes = [m for m in ALLOWED_TRAINING_MODES if kind == "train" or m not in UNSUPPORTED_DISTILL_MODES]
    known: dict[str, dict[str, object]] = {
        **{name: _number(number) for name, number in numbers.items()},
        "training_mode": {"type": "string", "enum": modes, "default": "mlp_dense"},
        "sweep": _sweep(),
        "task": {"type": "string", "enum": ["auto", "classification", "regression"], "default": "auto"},
        "save_model": {"type": "boolean", "default": False},
        "overwrite": {"type": "boolean", "default": False},
        "importance": {"type": "boolean", "default": False},
        "exclude_columns": {"type": "array", "items": {"type": "string"}, "default": []},
        "date_columns": {"type": "array", "items": {"type": "string"}, "default": []},
    }
    texts = ("target_column", "dataset_id", "data_path", *(TEACHER_FIELDS if kind == "distill" else ()))
    ordered = sorted(names, key=lambda name: (texts.index(name) if name in texts else len(texts), name))
    schema = {
        "type": "object",
        "required": ["target_column"],
        "properties": {name: known.get(name, {"type": "string"}) for name in ordered},
    }
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema, "example": example}},
        }
    }


def _sweep() -> dict[str, object]:
    lists = {
        name: {
            "type": "array",
            "items": _number(replace(number, default=None)),
            "minItems": 1,
            "maxItems": MAX_MEMBERS,
            "uniqueItems": True,
        }
        for name, number in SWEPT.items()
    }
    return {"type": "object", "properties": lists, "additionalProperties": False, "minProperties": 1}


def _number(number: NumberField) -> dict[str, object]:
    low = "exclusiveMinimum" if number.open_low else "minimum"
    high = "exclusiveMaximum" if number.open_high else "maximum"
    default = {} if number.default is None else {"default": number.default}
    return {"type": number.kind, low: number.low, high: number.high, **default}
