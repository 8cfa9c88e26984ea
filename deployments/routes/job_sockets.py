"""Training jobs over WebSockets (seed 001; jobs.md, section 7)."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Coroutine

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from core.errors import (
    ValidationError,
)
from core.jobs.records import Event
from deployments.dialects import Asked, platform_error
from deployments.edge.authentication import client_of, sees_all
from deployments.edge.border import origin_of
from deployments.job_feed import News
from deployments.routes.job_views import (
    PATH,
    as_time,
    frame_of,
    job_view,
)
from deployments.service import Service


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


async def _tell(socket: WebSocket, job_id: str, after: int, news: AsyncGenerator[News], asked: Asked) -> None:
    seq = after
    async for item in news:
        seq = item.seq if isinstance(item, Event) else seq
        await socket.send_json(frame_of(job_id, seq, item, asked))


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
