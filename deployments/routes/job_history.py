"""What became of a job: epochs, events, log lines, checkpoints and attempts."""

import contextlib
import json
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from core.errors import (
    StillhouseError,
)
from core.jobs.records import Event
from deployments.dialects import Asked, platform_error
from deployments.job_feed import News
from deployments.routes.job_failures import ONE, JobId, job_failures
from deployments.routes.job_views import (
    as_time,
    event_view,
    frame_of,
    job_view,
    visitor_of,
)
from deployments.routes.jobs import EVENT_STREAM, asked_by
from deployments.service import Service

Level = Literal["debug", "info", "warning", "error"]


def job_history_routes(service: Service) -> APIRouter:
    """Below ``/api/v1/training-jobs/{job_id}``."""
    router = APIRouter(prefix="/training-jobs", tags=["training jobs"])
    jobs = service.desk.jobs

    @router.get("/{job_id}/status", responses=job_failures(*ONE))
    async def get_status(job_id: JobId, request: Request) -> dict[str, object]:
        """The job and its last ten epochs."""
        filed = await jobs.get(job_id, visitor_of(request).sees)
        rows = await jobs.epochs(job_id, filed.job.attempt, 10, None)
        shown = job_view(filed.job, filed.turn, asked_by(request))
        return {**shown, "recent_metrics": [_dated(row) for row in rows]}

    @router.get("/{job_id}/attempts", responses=job_failures(*ONE))
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

    @router.get("/{job_id}/events", responses=job_failures(*ONE), response_model=None)
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

    @router.get("/{job_id}/metrics", responses=job_failures(*ONE))
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

    @router.get("/{job_id}/metric-schema", responses=job_failures(*ONE))
    async def get_metric_schema(job_id: JobId, request: Request) -> dict[str, object]:
        """Which metrics there are, and which decides what is best."""
        job = (await jobs.get(job_id, visitor_of(request).sees)).job
        return {
            "metrics": sorted(job.metrics or {}),
            "primary_metric": "validation_loss",
            "primary_metric_mode": "min",
        }

    @router.get("/{job_id}/checkpoints", responses=job_failures(*ONE))
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

    @router.get("/{job_id}/logs", responses=job_failures(*ONE))
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


def _dated(row: dict[str, object]) -> dict[str, object]:
    return {**row, "at": as_time(row["at"])}  # type: ignore[arg-type]


async def _server_sent(
    job_id: str, after: int, news: AsyncGenerator[News], asked: Asked
) -> AsyncGenerator[str]:
    seq = after
    async with contextlib.aclosing(news):
        try:
            async for item in news:
                seq = item.seq if isinstance(item, Event) else seq
                frame = frame_of(job_id, seq, item, asked)
                number = f"id: {seq}\n" if isinstance(item, Event) else ""
                yield f"{number}event: {frame['type']}\ndata: {json.dumps(frame)}\n\n"
        except StillhouseError as error:
            yield f"event: error\ndata: {json.dumps({'error': platform_error(error, asked)})}\n\n"
