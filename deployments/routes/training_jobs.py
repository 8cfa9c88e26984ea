"""Training jobs, in the ``platform`` dialect (seed 001; jobs.md, section 3)."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Coroutine
from datetime import datetime
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Header, Path, Query, Request, WebSocket
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.websockets import WebSocketDisconnect

from core.errors import (
    CheckpointMissingError,
    CircuitOpenError,
    DatabaseError,
    DatabaseTimeoutError,
    DatabaseUnavailableError,
    DatasetError,
    DatasetNotFoundError,
    DatasetTooLargeError,
    DataTargetError,
    HiddenConfigError,
    JobBusyError,
    JobNotFoundError,
    JobStateConflictError,
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
from core.jobs.inquiries import Wanted
from core.jobs.records import Event
from core.jobs.states import JobState, state_of
from deployments.dialects import Asked, platform_error
from deployments.edge.authentication import client_of, sees_all
from deployments.edge.border import origin_of
from deployments.job_feed import News
from deployments.routes.failures import CREATING, Responses, failures
from deployments.routes.job_views import (
    PATH,
    as_time,
    created,
    event_view,
    job_view,
    progress_view,
    visitor_of,
)
from deployments.routes.jobs import EVENT_STREAM, asked_by, read_object
from deployments.routes.paging import Cursor, Limit
from deployments.service import Service

JobId = Annotated[str, Path(max_length=200)]
Level = Literal["debug", "info", "warning", "error"]

_LEDGER: Final = (
    DatabaseError,
    DatabaseUnavailableError,
    DatabaseTimeoutError,
    ServiceUnavailableError,
    CircuitOpenError,
)
_ONE: Final = (JobNotFoundError, SchemaError, *_LEDGER)
_ORDER: Final = (ValidationError, TrainingModeError, HiddenConfigError, RequestError, ParameterError)
_MAKING: Final = (
    *CREATING,
    *_ORDER,
    *_LEDGER,
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
_BODY: Final = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
}


def _failures(*errors: type[StillhouseError]) -> Responses:
    return failures(*errors, path=PATH)


def training_job_routes(service: Service) -> APIRouter:
    """Below ``/api/v1/training-jobs``."""
    router = APIRouter(prefix="/training-jobs", tags=["training jobs"])
    desk, jobs = service.desk, service.desk.jobs

    @router.post("", openapi_extra=_BODY, responses=_failures(*_MAKING))
    async def create_job(request: Request, strict: bool = False) -> Response:
        """Files a job: a train or distil request plus what concerns the job.

        What only the data tells, a missing dataset too, is the job's failure, unless ``strict`` is set.
        """
        body = await read_object(request)
        order = {**body, "strict": True} if strict else body
        filed = await desk.create(order, None, visitor_of(request), origin_of(request.scope))
        return created(filed, asked_by(request), 200)

    @router.post("/validate", openapi_extra=_BODY, responses=_failures(*_MAKING))
    async def validate(request: Request) -> dict[str, object]:
        """Everything that is wrong with a job, in the request and in its data, without making it."""
        tried = await desk.dry_run(await read_object(request), None)
        asked = asked_by(request)
        errors = [platform_error(error, asked) for error in tried.errors]
        listed = [
            found
            for error in errors
            for found in (error["errors"] or [{k: error[k] for k in ("param", "code", "message")}])  # type: ignore[attr-defined]
        ]
        return {
            "valid": not errors,
            "errors": listed,
            "warnings": tried.warnings,
            "dataset": tried.dataset,
            "estimate": tried.estimate,
        }

    @router.get("", responses=_failures(RequestError, ParameterError, SchemaError, *_LEDGER))
    async def list_jobs(
        request: Request,
        limit: Limit = 20,
        cursor: Cursor = None,
        after: Cursor = None,
        status: Annotated[str | None, Query(max_length=200)] = None,
        project_id: Annotated[str | None, Query(max_length=128)] = None,
        created_after: datetime | None = None,
    ) -> dict[str, object]:
        """A page of jobs, newest first, and how many there are."""
        wanted = Wanted(
            owner=visitor_of(request).sees,
            states=None if status is None else _states(status),
            project_id=project_id,
            created_after=None if created_after is None else created_after.timestamp(),
        )
        page, total = await jobs.page(wanted, limit, cursor or after)
        asked = asked_by(request)
        return {
            "data": [job_view(job, None, asked) for job in page.data],
            "has_more": page.has_more,
            "next_cursor": page.next_cursor,
            "total": total,
        }

    @router.get("/{job_id}", responses=_failures(*_ONE))
    async def get_job(job_id: JobId, request: Request) -> dict[str, object]:
        filed = await jobs.get(job_id, visitor_of(request).sees)
        return job_view(filed.job, filed.turn, asked_by(request))

    @router.get("/{job_id}/status", responses=_failures(*_ONE))
    async def get_status(job_id: JobId, request: Request) -> dict[str, object]:
        """The job and its last ten epochs."""
        filed = await jobs.get(job_id, visitor_of(request).sees)
        rows = await jobs.epochs(job_id, filed.job.attempt, 10, None)
        shown = job_view(filed.job, filed.turn, asked_by(request))
        return {**shown, "recent_metrics": [_dated(row) for row in rows]}

    @router.get("/{job_id}/attempts", responses=_failures(*_ONE))
    async def get_attempts(job_id: JobId, request: Request) -> dict[str, object]:
        """Every attempt, what it changed, where it went on from and how it ended."""
        await jobs.get(job_id, visitor_of(request).sees)
        hidden = ("job_id", "worker")
        rows = await jobs.attempts(job_id)
        times = ("started_at", "ended_at")
        return {
            "data": [
                {name: as_time(v) if name in times else v for name, v in row.items() if name not in hidden}  # type: ignore[arg-type]
                for row in rows
            ]
        }

    async def cancel(job_id: JobId, request: Request) -> Response:
        """Ends a job; 202 where its trainer did not stop in time and was killed."""
        job = await desk.cancel(job_id, visitor_of(request))
        status = 202 if job.state is JobState.CANCELLING else 200
        return JSONResponse(job_view(job, None, asked_by(request)), status)

    async def retry(job_id: JobId, request: Request) -> Response:
        """Runs a job that has ended once more; the body changes its request and names a checkpoint."""
        body = await read_object(request) if await request.body() else {}
        filed = await desk.retry(job_id, body, visitor_of(request))
        return JSONResponse(job_view(filed.job, filed.turn, asked_by(request)))

    for name in ("cancel", "stop"):
        router.add_api_route(
            f"/{{job_id}}/{name}",
            cancel,
            methods=["POST"],
            operation_id=f"{name}_job",
            responses=_failures(*_ONE, JobStateConflictError),
        )
    for name in ("retry", "restart"):
        router.add_api_route(
            f"/{{job_id}}/{name}",
            retry,
            methods=["POST"],
            operation_id=f"{name}_job",
            openapi_extra=_BODY,
            responses=_failures(
                *CREATING,
                *_ONE,
                *_ORDER,
                JobBusyError,
                CheckpointMissingError,
                QuotaExceededError,
                QueueFullError,
                TrainerUnreachableError,
            ),
        )

    @router.get("/{job_id}/events", responses=_failures(*_ONE), response_model=None)
    async def get_events(
        job_id: JobId,
        request: Request,
        after: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        last_event_id: Annotated[int | None, Header(ge=0)] = None,
    ) -> Response:
        """The job's history after an event; with ``Accept: text/event-stream`` live, with progress."""
        visitor, asked = visitor_of(request), asked_by(request)
        if EVENT_STREAM in request.headers.get("accept", ""):
            await jobs.get(job_id, visitor.sees)
            since = after if last_event_id is None else last_event_id
            news = service.feed.follow(job_id, visitor.sees, since)
            return StreamingResponse(_server_sent(job_id, since, news, asked), media_type=EVENT_STREAM)
        events = await jobs.events(job_id, visitor.sees, after, limit)
        data = [event_view(event, asked) for event in events]
        more = len(events) == limit
        return JSONResponse(
            {"data": data, "has_more": more, "next_after": events[-1].seq if events else after}
        )

    @router.get("/{job_id}/metrics", responses=_failures(*_ONE))
    async def get_metrics(
        job_id: JobId,
        request: Request,
        attempt: Annotated[int | None, Query(ge=1)] = None,
        from_epoch: Annotated[int | None, Query(ge=1)] = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    ) -> dict[str, object]:
        """Metrics by epoch, ascending: from an epoch on, or the latest."""
        job = (await jobs.get(job_id, visitor_of(request).sees)).job
        rows = await jobs.epochs(job_id, attempt or job.attempt, limit, from_epoch)
        return {"attempt": attempt or job.attempt, "data": [_dated(row) for row in rows]}

    @router.get("/{job_id}/metric-schema", responses=_failures(*_ONE))
    async def get_metric_schema(job_id: JobId, request: Request) -> dict[str, object]:
        """Which metrics there are, and which decides what is best."""
        job = (await jobs.get(job_id, visitor_of(request).sees)).job
        return {
            "metrics": sorted(job.metrics or {}),
            "primary_metric": "validation_loss",
            "primary_metric_mode": "min",
        }

    @router.get("/{job_id}/checkpoints", responses=_failures(*_ONE))
    async def get_checkpoints(job_id: JobId, request: Request) -> dict[str, object]:
        """What a retry may resume from."""
        await jobs.get(job_id, visitor_of(request).sees)
        return {
            "data": [
                {
                    "id": kept.checkpoint_id,
                    "attempt": kept.attempt,
                    "epoch": kept.epoch,
                    "is_best": kept.is_best,
                    "metrics": kept.metrics,
                    "bytes": kept.bytes,
                    "sha256": kept.sha256,
                    "created_at": as_time(kept.created_at),
                }
                for kept in await jobs.checkpoints(job_id)
            ]
        }

    @router.get("/{job_id}/logs", responses=_failures(*_ONE))
    async def get_logs(
        job_id: JobId,
        request: Request,
        after: Annotated[int | None, Query(ge=0)] = None,
        level: Level | None = None,
        attempt: Annotated[int | None, Query(ge=1)] = None,
        since: datetime | None = None,
        limit: Annotated[int, Query(ge=1, le=2000)] = 500,
    ) -> dict[str, object]:
        """Log lines, oldest first: those after a number, or the newest."""
        await jobs.get(job_id, visitor_of(request).sees)
        at = None if since is None else since.timestamp()
        rows = await jobs.logs(job_id, limit, after, level, attempt, at)
        shown = [{name: value for name, value in row.items() if name != "job_id"} for row in rows]
        return {
            "data": [{**row, "at": as_time(row["at"])} for row in shown],  # type: ignore[arg-type]
            "next_after": rows[-1]["seq"] if rows else after,
            "degraded": False,
        }

    return router


def training_job_sockets(service: Service) -> APIRouter:
    """``/ws/training-jobs/{job_id}``."""
    router = APIRouter()

    @router.websocket("/ws/training-jobs/{job_id}")
    async def follow_job(socket: WebSocket, job_id: str, after: int | None = None) -> None:
        """A snapshot, then the events after ``after`` (or from now on), until the job ends."""
        origin = origin_of(socket.scope)
        asked = Asked(PATH, None, origin.request_id, origin.trace_id)
        owner = None if sees_all(socket.scope) else client_of(socket.scope)
        filed = await service.desk.jobs.get(job_id[:200], owner)
        await socket.accept()
        job, since = filed.job, filed.job.seq if after is None else max(0, after)
        await socket.send_json(
            {
                "type": "connected",
                "job_id": job_id,
                "attempt": job.attempt,
                "seq": job.seq,
                "timestamp": as_time(job.updated_at),
                "job": job_view(job, filed.turn, asked),
            }
        )
        reading = asyncio.create_task(_read(socket, job_id))
        try:
            async with contextlib.aclosing(service.feed.follow(job_id, owner, since)) as news:
                await _race(reading, _tell(socket, job_id, since, news, asked))
        finally:
            reading.cancel()
        with contextlib.suppress(RuntimeError):  # the client closed it
            await socket.close(1000)

    return router


def _states(names: str) -> frozenset[JobState]:
    states = {name.strip(): state_of(name.strip()) for name in names.split(",")}
    unknown = [name for name, state in states.items() if state is None]
    if unknown:
        raise ParameterError(
            f"status must name states of jobs, got {unknown[0]!r:.40}", field="status", known=list(JobState)
        )
    return frozenset(state for state in states.values() if state is not None)


def _dated(row: dict[str, object]) -> dict[str, object]:
    return {**row, "at": as_time(row["at"])}  # type: ignore[arg-type]


def _frame(job_id: str, seq: int, news: News, asked: Asked) -> dict[str, object]:
    return event_view(news, asked) if isinstance(news, Event) else progress_view(job_id, seq, news)


async def _server_sent(
    job_id: str, after: int, news: AsyncGenerator[News], asked: Asked
) -> AsyncGenerator[str]:
    seq = after
    async with contextlib.aclosing(news):
        try:
            async for item in news:
                seq = item.seq if isinstance(item, Event) else seq
                frame = _frame(job_id, seq, item, asked)
                number = f"id: {seq}\n" if isinstance(item, Event) else ""
                yield f"{number}event: {frame['type']}\ndata: {json.dumps(frame)}\n\n"
        except StillhouseError as error:
            yield f"event: error\ndata: {json.dumps({'error': platform_error(error, asked)})}\n\n"


async def _tell(socket: WebSocket, job_id: str, after: int, news: AsyncGenerator[News], asked: Asked) -> None:
    seq = after
    async for item in news:
        seq = item.seq if isinstance(item, Event) else seq
        await socket.send_json(_frame(job_id, seq, item, asked))


async def _read(socket: WebSocket, job_id: str) -> None:
    """Answers what a client says, until it leaves."""
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await socket.send_json({"job_id": job_id, **_reply(await socket.receive_text())})


def _reply(text: str) -> dict[str, object]:
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    kind = said.get("type") if isinstance(said, dict) else None
    if kind == "ping":
        return {"type": "pong"}
    error = ValidationError("A frame must be a JSON object of type ping.")
    return {"type": "error", "error": platform_error(error, Asked(PATH))}


async def _race(reading: "asyncio.Task[None]", telling: Coroutine[None, None, None]) -> None:
    """Until the job has ended or the client has left; what telling raises is raised."""
    told = asyncio.ensure_future(telling)
    try:
        await asyncio.wait([reading, told], return_when=asyncio.FIRST_COMPLETED)
        if told.done():
            await told
    except WebSocketDisconnect:
        return
    finally:
        told.cancel()
        await asyncio.wait([told])
