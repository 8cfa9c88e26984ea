"""How much a request may bring, how slowly and in which encoding."""

import asyncio
import re
import zlib
from collections.abc import Callable
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import (
    MalformedBodyError,
    PayloadTooLargeError,
    RequestTimeoutError,
    UnsupportedMediaTypeError,
)
from core.exchange import TABLES
from deployments.edge.border import route_path
from deployments.settings import EdgeSettings, Limits

_LENGTH: Final = re.compile(r"[0-9]{1,20}")  # others are no lengths; the body is counted anyway
_PIECE_BYTES: Final = 1 << 20
_WINDOW_BITS: Final = {"gzip": 31, "x-gzip": 31, "deflate": 15}


class Bodies:
    """Counts bodies as they come, inflated ones by what they inflate to, and gives up on slow ones.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(
        self, app: ASGIApp, *, limits: Limits, pace: EdgeSettings, clock: Callable[[], float]
    ) -> None:
        self._app, self._limits, self._pace, self._clock = app, limits, pace, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = self._limit(route_path(scope), headers)
        length = headers.get("content-length", "")
        if _LENGTH.fullmatch(length) and int(length) > limit:
            raise _too_large(limit)
        receive = _Counted(_Timely(receive, self._pace, self._clock), limit)
        encoding = ",".join(headers.getlist("content-encoding")).strip().lower()
        if encoding not in ("", "identity"):
            receive = _Counted(_Inflated(receive, encoding), limit)
            scope = {**scope, "headers": [h for h in scope["headers"] if h[0].lower() not in _OF_ENCODED]}
        await self._app(scope, receive, send)

    def _limit(self, path: str, headers: Headers) -> int:
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        takes_table = path.startswith("/api/v1/datasets") or (
            path == "/api/v1/predict" and media_type in TABLES
        )
        return self._limits.body_bytes if takes_table else self._limits.json_bytes


_OF_ENCODED: Final = (b"content-encoding", b"content-length")


class _Counted:
    """A missing or wrong Content-Length does not get past the limit."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit, self._received = receive, limit, 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        if self._received > self._limit:
            raise _too_large(self._limit)
        return message


class _Timely:
    """Ends a body that stands still, or whose mean rate is too low once it had time to start."""

    def __init__(self, receive: Receive, pace: EdgeSettings, clock: Callable[[], float]) -> None:
        self._receive, self._pace, self._clock = receive, pace, clock
        self._started, self._received, self._ended = clock(), 0, False

    async def __call__(self) -> Message:
        if self._ended:  # what comes now is the client leaving
            return await self._receive()
        try:
            async with asyncio.timeout(self._pace.body_idle_s):
                message = await self._receive()
        except TimeoutError:
            raise _too_slow() from None
        self._received += len(message.get("body", b""))
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        spent_s = self._clock() - self._started - self._pace.body_idle_s
        if not self._ended and spent_s * self._pace.body_bytes_per_s > self._received:
            raise _too_slow()
        return message


class _Inflated:
    """A compressed body, inflated in pieces, so that what counts them can stop in time."""

    def __init__(self, receive: Receive, encoding: str) -> None:
        if encoding not in _WINDOW_BITS:
            raise UnsupportedMediaTypeError(
                f"Content-Encoding must be gzip, deflate or identity, got {encoding!r:.40}.",
                encoding=encoding,
            )
        self._receive, self._encoding = receive, encoding
        self._inflater = zlib.decompressobj(_WINDOW_BITS[encoding])
        self._compressed = b""
        self._more, self._ended = True, False

    async def __call__(self) -> Message:
        while not self._compressed and self._more:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._compressed, self._more = message.get("body", b""), message.get("more_body", False)
        if self._ended:  # what comes now is the client leaving
            return await self._receive()
        piece = self._inflate()
        self._ended = not self._more and not self._compressed
        if self._ended and not self._inflater.eof:
            raise MalformedBodyError("The compressed body must be whole, but it breaks off.")
        return {"type": "http.request", "body": piece, "more_body": not self._ended}

    def _inflate(self) -> bytes:
        """The next piece; of gzip several members may come one after the other (RFC 1952)."""
        try:
            if self._inflater.eof and self._compressed:
                if self._encoding == "deflate":
                    raise MalformedBodyError("The compressed body must end with its data, but more follows.")
                self._inflater = zlib.decompressobj(_WINDOW_BITS[self._encoding])
            piece = self._inflater.decompress(self._compressed, _PIECE_BYTES)
        except zlib.error:
            raise MalformedBodyError(
                "The body must be what its Content-Encoding says: it cannot be inflated."
            ) from None
        self._compressed = self._inflater.unconsumed_tail or self._inflater.unused_data
        return piece


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(f"The body must be at most {limit} bytes: send less.", limit_bytes=limit)


def _too_slow() -> RequestTimeoutError:
    return RequestTimeoutError("The body must come without long pauses, but it stood still: send it again.")
