"""What runs inside Serve's HTTP proxy: clients do not control Serve, and uploads come no faster than they go.

The proxy reads a body as fast as its client sends it, and neither it nor the replica bounds what waits: of a
file of 1 GB, 1.3 GB were once in the ingress's memory. Held back here, the client waits in its own socket.
"""

import asyncio
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.full_queue import FullQueue
from deployments.http_protocol import guard_http
from deployments.origin import Origin
from deployments.refusals import OwnWords
from deployments.settings import traced_share
from deployments.tracing import TraceStart

ENVIRONMENT: Final[Mapping[str, str]] = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.proxy:middlewares",
    # What a replica has read stays in the object store, mapped into the replica, until so many objects can
    # be freed together: with Ray's 100, an upload has 45 MB of such pages.
    "RAY_free_objects_batch_size": "8",
    # Else uvicorn believes any X-Forwarded-For that comes from this machine: edge.trusted_proxies decides.
    "FORWARDED_ALLOW_IPS": "",
}
"""What processes of Ray have to find in their environment where they start."""

CONTROL_HEADERS: Final = frozenset(
    {b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"serve_multiplexed_model_id"}
)
UPLOADS: Final = "/api/v1/datasets"
BYTES_PER_S: Final = 100e6
BURST_BYTES: Final = 1 << 20
PIECE_BYTES: Final = 256_000  # smaller ones cost time: each pair is a call of 3 ms, with 48 kB 40 MB/s


class PacedUploads:
    """Limits each upload of a dataset: its rate, and to two pieces what waits here for the replica.

    The first ``BURST_BYTES`` pass at once.
    """

    def __init__(
        self,
        app: ASGIApp,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._app, self._clock, self._sleep = app, clock, sleep

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_upload = scope["type"] == "http" and scope["path"].rstrip("/").endswith(UPLOADS)
        await self._app(scope, self._paced(receive) if is_upload else receive, send)

    def _paced(self, receive: Receive) -> Receive:
        pieces, started, received = _Pieces(receive), self._clock(), 0

        async def paced() -> Message:
            nonlocal received
            ahead_s = (received - BURST_BYTES) / BYTES_PER_S - (self._clock() - started)
            if ahead_s > 0:
                await self._sleep(ahead_s)
            message = await pieces()
            received += len(message.get("body", b""))
            return message

        return paced


class _Piece(dict[str, Any]):
    """A message that can be watched; Serve pickles it as the plain one that it is."""

    __slots__ = ("__weakref__",)

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return dict, (dict(self),)


class _Pieces:
    """A body in pieces of at most ``PIECE_BYTES``, each given out when the last but one has been let go.

    Serve lets go of a message once it is packed for the replica, but of the one it received last not before
    it has the next.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._body, self._more_body = b"", True
        self._given: tuple[asyncio.Event, ...] = ()

    async def __call__(self) -> Message:
        if not self._body:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._body, self._more_body = message.get("body", b""), message.get("more_body", False)
        if len(self._given) == 2:
            await self._given[0].wait()
        piece, self._body = self._body[:PIECE_BYTES], self._body[PIECE_BYTES:]
        return self._watched(piece, more_body=self._more_body or bool(self._body))

    def _watched(self, body: bytes, *, more_body: bool) -> Message:
        piece, gone = _Piece(type="http.request", body=body, more_body=more_body), asyncio.Event()
        weakref.finalize(piece, gone.set)
        self._given = (*self._given, gone)[-2:]
        return piece


class WithoutControlHeaders:
    """Removes the headers that Serve obeys: a client could switch off time limits or disconnect handling.

    The edge removes them too, but behind the proxy, which has acted on them by then.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kept = [pair for pair in scope.get("headers", []) if pair[0].lower() not in CONTROL_HEADERS]
        await self._app({**scope, "headers": kept}, receive, send)


class OneRequestId:
    """Gives a request without a valid ``X-Request-ID`` a new one, before Serve takes and echoes what it has.

    So logs of Serve, answers and our own errors name the request alike.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope.get("headers", [])
        given = [value for name, value in headers if name.lower() == b"x-request-id"]
        request_id = Origin.of(given[0].decode("latin-1") if len(given) == 1 else None, None).request_id
        others = [pair for pair in headers if pair[0].lower() != b"x-request-id"]
        await self._app(
            {**scope, "headers": [*others, (b"x-request-id", request_id.encode())]}, receive, send
        )


def middlewares() -> list[Middleware]:
    """For ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``; Serve wraps itself in them, the last outermost."""
    guard_http()
    inner_to_outer = (PacedUploads, FullQueue, WithoutControlHeaders, OwnWords, OneRequestId)
    return [*(Middleware(guard) for guard in inner_to_outer), Middleware(TraceStart, share=traced_share())]
