"""Where external trainers tell of their jobs (seed 001; jobs.md, section 5), with the job's token alone."""

from collections.abc import Iterator
from typing import Annotated, BinaryIO, Final

from fastapi import APIRouter, Path, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from core.errors import (
    AuthenticationError,
    CallbackForeignError,
    CallbackRejectedError,
    CircuitOpenError,
    DatabaseError,
    DatabaseUnavailableError,
    DatasetError,
    DatasetNotFoundError,
    DataTargetError,
    JobNotFoundError,
    SchemaError,
    ServiceUnavailableError,
    StorageError,
)
from core.jobs.callbacks import CallbackKind
from core.jobs.records import Verdict
from core.jobs.states import JobState
from deployments.edge.tokens import sent_token
from deployments.routes.failures import READING, failures
from deployments.routes.job_views import PATH
from deployments.routes.jobs import read_object
from deployments.service import Service

JobId = Annotated[str, Path(max_length=200)]
_LEDGER: Final = (DatabaseError, DatabaseUnavailableError, ServiceUnavailableError, CircuitOpenError)
_TOKEN: Final = (AuthenticationError, CallbackForeignError, JobNotFoundError, SchemaError, *_LEDGER)
_TOLD: Final = failures(*_TOKEN, CallbackRejectedError, *READING, path=PATH)
_READ: Final = failures(*_TOKEN, DatasetNotFoundError, DatasetError, DataTargetError, StorageError, path=PATH)
_BODY: Final = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
}
_FORMS: Final[dict[str, CallbackKind]] = {
    "": "update",
    "/progress": "progress",
    "/completion": "completion",
    "/logs": "logs",
}
_PIECE_BYTES: Final = 1 << 20


def callback_routes(service: Service) -> APIRouter:
    """Below ``/api/v1/training-jobs/{job_id}``."""
    router = APIRouter(prefix="/training-jobs/{job_id}", tags=["external trainers"])
    for suffix, kind in _FORMS.items():
        _add_callback(router, service, suffix, kind)

    @router.get("/data", responses=_READ, response_class=StreamingResponse)
    async def get_data(job_id: JobId, request: Request) -> StreamingResponse:
        """The file that the job reads, as it was uploaded."""
        job = await service.desk.jobs.bearer(job_id, _token(request))
        file = await run_in_threadpool(service.desk.open_data, job)
        return StreamingResponse(_pieces(file), media_type="application/octet-stream")

    return router


def _add_callback(router: APIRouter, service: Service, suffix: str, kind: CallbackKind) -> None:
    @router.post(f"/callback{suffix}", operation_id=f"callback_{kind}", openapi_extra=_BODY, responses=_TOLD)
    async def callback(job_id: JobId, request: Request) -> dict[str, object]:
        """Told by the trainer of the job; late and repeated words are acknowledged and change nothing."""
        token = _token(request)
        return _answer(await service.desk.jobs.hear(job_id, token, kind, await read_object(request)))


def _answer(verdict: Verdict) -> dict[str, object]:
    return {
        "success": True,
        "message": "Taken down." if verdict.applied else "Known already, or too late: nothing changed.",
        "job_status": verdict.state.value,
        "applied": verdict.applied,
        "cancel_requested": verdict.cancel and verdict.state is not JobState.COMPLETED,
    }


def _token(request: Request) -> str:
    token = sent_token(request.headers.get("authorization")).decode("latin-1")
    if not token:
        raise AuthenticationError("The callback token of the job must come as bearer token.")
    return token


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(_PIECE_BYTES):
            yield piece
