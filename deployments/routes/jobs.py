"""Train and distil, in the ``handler`` dialect."""

import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response, StreamingResponse

from core.contract.fields import DISTILL_NUMBERS, HIDDEN_NUMBERS, TRAIN_NUMBERS, NumberField
from core.contract.modes import ALLOWED_TRAINING_MODES, UNSUPPORTED_DISTILL_MODES
from core.contract.validation import DISTILL_FIELDS, TEACHER_FIELDS, TRAIN_FIELDS
from core.errors import MalformedBodyError, StillhouseError
from core.exchange import parse_json
from deployments.dialects import handler_answer
from deployments.edge.border import origin_of
from deployments.routes.examples import distill_example, train_example
from deployments.service import JobKind, Report, Service

EVENT_STREAM = "text/event-stream"


class HandlerError(BaseModel):
    """The one shape of a failed train or distil request (seed 000)."""

    status: Literal["error"]
    error: str


_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "Validation failed, or training did", "model": HandlerError},
    404: {"description": "The teacher run is not there, or expired (distil)", "model": HandlerError},
    503: {"description": "PyTorch or a trainer is not available", "model": HandlerError},
}


def job_routes(service: Service, example_dataset: str) -> APIRouter:
    """``POST /train`` and ``/distill``.

    The body is read here and not by a model of the framework, because the order of validation is the
    contract's. With ``Accept: text/event-stream`` the answer is a stream of ``started``, ``epoch`` and
    ``result`` (or ``error``) events.
    """
    router = APIRouter(tags=["train and distil"])

    async def answer(kind: JobKind, request: Request) -> Response:
        origin = origin_of(request.scope)

        def failed(error: StillhouseError) -> None:
            service.observer.failed(error, request.scope, origin)

        reports = service.run_job(kind, await read_object(request), origin)
        first = await anext(reports)  # raises when validation fails
        if EVENT_STREAM in request.headers.get("accept", ""):
            return StreamingResponse(_events(first, reports, failed), media_type=EVENT_STREAM)
        last = first
        async with contextlib.aclosing(reports):
            async for report in reports:
                last = report
        return JSONResponse(last["body"])

    @router.post("/train", openapi_extra=_body("train", train_example(example_dataset)), responses=_ERRORS)
    async def train(request: Request) -> Response:
        """Trains a model on a table and keeps it as a run."""
        return await answer("train", request)

    @router.post(
        "/distill", openapi_extra=_body("distill", distill_example(example_dataset)), responses=_ERRORS
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


async def _events(
    first: Report, rest: AsyncGenerator[Report], failed: Callable[[StillhouseError], None]
) -> AsyncGenerator[str]:
    try:
        async with contextlib.aclosing(rest):
            yield _event(first)
            async for report in rest:
                yield _event(report)
    except StillhouseError as error:
        failed(error)
        status, body = handler_answer(error)
        yield _event({"event": "error", "status_code": status, "body": body})


def _event(report: Report) -> str:
    return f"event: {report['event']}\ndata: {json.dumps(report)}\n\n"


def _body(kind: JobKind, example: dict[str, object]) -> dict[str, object]:
    numbers = {**TRAIN_NUMBERS, **HIDDEN_NUMBERS} if kind == "train" else DISTILL_NUMBERS
    names = TRAIN_FIELDS if kind == "train" else DISTILL_FIELDS
    modes = [m for m in ALLOWED_TRAINING_MODES if kind == "train" or m not in UNSUPPORTED_DISTILL_MODES]
    known: dict[str, dict[str, object]] = {
        **{name: _number(number) for name, number in numbers.items()},
        "training_mode": {"type": "string", "enum": modes, "default": "mlp_dense"},
        "task": {"type": "string", "enum": ["auto", "classification", "regression"], "default": "auto"},
        "save_model": {"type": "boolean", "default": False},
        "overwrite": {"type": "boolean", "default": False},
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


def _number(number: NumberField) -> dict[str, object]:
    low = "exclusiveMinimum" if number.open_low else "minimum"
    high = "exclusiveMaximum" if number.open_high else "maximum"
    default = {} if number.default is None else {"default": number.default}
    return {"type": number.kind, low: number.low, high: number.high, **default}
