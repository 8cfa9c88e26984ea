"""Uploads are let in at a bounded rate."""

import pytest

from deployments.proxy import (
    BURST_BYTES,
    BYTES_PER_S,
    CONTROL_HEADERS,
    PacedUploads,
    WithoutControlHeaders,
    middlewares,
)
from deployments.tracing import TraceStart

pytestmark = pytest.mark.anyio


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


async def seconds_to_receive(path: str, total: int, chunk: int = 1 << 20) -> float:
    """How long an app behind the middleware takes to receive a body that its client has ready at once."""
    time = Time()

    async def app(scope, receive, send) -> None:
        while (await receive())["more_body"]:
            pass

    left = total

    async def receive() -> dict:
        nonlocal left
        left -= chunk
        return {"type": "http.request", "body": bytes(chunk), "more_body": left > 0}

    await PacedUploads(app, clock=time, sleep=time.sleep)({"type": "http", "path": path}, receive, None)
    return time.now


async def test_large_upload_takes_its_time() -> None:
    total = 200 << 20
    assert await seconds_to_receive("/prefix/api/v1/datasets", total) == pytest.approx(
        (total - BURST_BYTES) / BYTES_PER_S, rel=0.02
    )


async def test_small_upload_and_other_routes_are_not_held_back() -> None:
    assert await seconds_to_receive("/api/v1/datasets", BURST_BYTES) == 0
    assert await seconds_to_receive("/api/v1/predict", 200 << 20) == 0


async def test_serve_finds_the_middleware() -> None:
    assert [middleware.cls for middleware in middlewares()] == [
        PacedUploads,
        WithoutControlHeaders,
        TraceStart,
    ]


async def test_no_control_header_reaches_serve() -> None:
    seen = []

    async def app(scope, receive, send) -> None:
        seen.extend(scope["headers"])

    headers = [(name, b"1") for name in CONTROL_HEADERS] + [
        (b"X-Request-Timeout-Seconds", b"0"),
        (b"a", b"b"),
    ]
    await WithoutControlHeaders(app)({"type": "http", "path": "/", "headers": headers}, None, None)
    assert seen == [(b"a", b"b")]
