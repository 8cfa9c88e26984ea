"""A queue that is full is so for a while: who asks meanwhile is told by the proxy, which costs little."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import QueueFullError
from deployments.preferences import prefers_async
from deployments.refusals import send_error

QUEUED: Final = ("/api/v1/train", "/api/v1/distill")
KNOWN_FOR_S: Final = 0.5
DOUBTED_FOR_S: Final = 0.5
PROBES: Final = 4
APART_S: Final = 0.003


@dataclass(frozen=True, slots=True)
class _Caller:
    """Whom the answer was for: what the edge decides by these, it decides alike for the next request."""

    path: str
    authorization: tuple[str, ...]


@dataclass(slots=True)
class _Told:
    """What an ingress said last.

    Attributes:
        at: Monotonic seconds.
        probes: How many requests may still find out whether it is so.
    """

    at: float
    retry_after_s: float
    probes: int = PROBES

    def holds(self, now: float) -> bool:
        """Whether one more request need not ask."""
        age_s = now - self.at
        if age_s < KNOWN_FOR_S:
            return True
        self.probes -= 1
        return age_s < KNOWN_FOR_S + DOUBTED_FOR_S and self.probes < 0


class FullQueue:
    """Repeats an ingress's ``QUEUE_FULL`` for a moment, to those alone who bring the same credentials.

    So nobody is told what the edge would not have told them. After ``KNOWN_FOR_S`` a few requests pass to
    find out; all do when none of them was refused for ``DOUBTED_FOR_S``, or when a training ends, which
    leaves a place. A request with an Idempotency-Key always passes, for its answer may be kept, and so does
    one that becomes a job, for it has a queue of its own.

    Requests pass ``APART_S`` apart, which is faster than Serve is. Without that, all of a burst were in its
    hands before the first was refused: of 200 the last was answered after 1.4 s.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._app, self._clock, self._sleep = app, clock, sleep
        self._door = asyncio.Lock()
        self._told: dict[_Caller, _Told] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].endswith(QUEUED):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        caller = _Caller(scope["path"], tuple(headers.getlist("authorization")))
        async with self._door:
            asks_anew = "idempotency-key" in headers or prefers_async(headers)
            told = None if asks_anew else self._told.get(caller)
            is_refused = told is not None and told.holds(self._clock())
            if not is_refused:
                await self._sleep(APART_S)
        if told is not None and is_refused:
            await send_error(_refusal(told.retry_after_s), scope, [], send)
        else:
            await self._asked(caller, scope, receive, send)

    async def _asked(self, caller: _Caller, scope: Scope, receive: Receive, send: Send) -> None:
        trained = False

        async def heard(message: Message) -> None:
            nonlocal trained
            if message["type"] == "http.response.start":
                headers = Headers(raw=message["headers"])
                trained = message["status"] == 200
                if headers.get("x-error-code") == QueueFullError.code:
                    self._remember(caller, float(headers["retry-after"]))
            await send(message)

        try:
            await self._app(scope, receive, heard)
        finally:
            if trained:
                self._told.clear()

    def _remember(self, caller: _Caller, retry_after_s: float) -> None:
        now = self._clock()
        self._told = {
            c: told for c, told in self._told.items() if now - told.at < KNOWN_FOR_S + DOUBTED_FOR_S
        }
        self._told[caller] = _Told(now, retry_after_s)


def _refusal(retry_after_s: float) -> QueueFullError:
    message = "All places before the trainers are taken: try again later."
    return QueueFullError(message, retry_after=retry_after_s)
