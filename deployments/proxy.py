"""What runs inside Serve's HTTP proxy: clients do not control Serve, and uploads come no faster than they go.

The proxy reads a body as fast as its client sends it, and neither it nor the replica bounds what waits: of a
file of 1 GB, 1.3 GB were once in the ingress's memory. Held back here, the client waits in its own socket.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.settings import traced_share
from deployments.tracing import TraceStart

CONTROL_HEADERS: Final = frozenset(
    {b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"serve_multiplexed_model_id"}
)
UPLOADS: Final = "/api/v1/datasets"
BYTES_PER_S: Final = 100e6
BURST_BYTES: Final = 1 << 20


class PacedUploads:
    """Limits the rate of each upload of a dataset; the first ``BURST_BYTES`` pass at once."""

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
        started, received = self._clock(), 0

        async def paced() -> Message:
            nonlocal received
            ahead_s = (received - BURST_BYTES) / BYTES_PER_S - (self._clock() - started)
            if ahead_s > 0:
                await self._sleep(ahead_s)
            message = await receive()
            received += len(message.get("body", b""))
            return message

        return paced


class WithoutControlHeaders:
    """Removes the headers that Serve obeys: a client could switch off time limits or disconnect handling.

    The edge removes them too, but behind the proxy, which has acted on them by then.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kept = [pair for pair in scope.get("headers", []) if pair[0].lower() not in CONTROL_HEADERS]
        await self._app({**scope, "headers": kept}, receive, send)


def middlewares() -> list[Middleware]:
    """For ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``."""
    return [
        Middleware(PacedUploads),
        Middleware(WithoutControlHeaders),
        Middleware(TraceStart, share=traced_share()),
    ]
