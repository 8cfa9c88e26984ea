"""Uploads are let in at a bounded rate."""

import asyncio
import pickle  # noqa: TID251  # as Serve does
import re

import httpx
import pytest
from ray.serve._private.http_util import _apply_middlewares

from deployments.full_queue import FullQueue
from deployments.proxy import (
    BURST_BYTES,
    BYTES_PER_S,
    CONTROL_HEADERS,
    PIECE_BYTES,
    OneRequestId,
    PacedUploads,
    WithoutControlHeaders,
    middlewares,
)
from deployments.refusals import OwnWords
from deployments.tracing import TraceStart
from deployments.web import build_web_app

pytestmark = pytest.mark.anyio
VALID = re.compile(r"[A-Za-z0-9._-]{1,128}")


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

    await PacedUploads(app, clock=time, sleep=time.sleep)(
        {"type": "http", "path": path}, sender([bytes(chunk)] * (total // chunk)), None
    )
    return time.now


def sender(chunks: list[bytes]):
    """A client that has all of its body ready, then leaves."""
    left = len(chunks)
    messages = iter(chunks)

    async def receive() -> dict:
        nonlocal left
        left -= 1
        if left < 0:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": next(messages), "more_body": left > 0}

    return receive


async def test_large_upload_takes_its_time() -> None:
    total = 200 << 20
    assert await seconds_to_receive("/prefix/api/v1/datasets", total) == pytest.approx(
        (total - BURST_BYTES) / BYTES_PER_S, rel=0.02
    )


async def test_small_upload_and_other_routes_are_not_held_back() -> None:
    assert await seconds_to_receive("/api/v1/datasets", BURST_BYTES) == 0
    assert await seconds_to_receive("/api/v1/predict", 200 << 20) == 0


async def test_body_arrives_whole_in_bounded_plain_pieces() -> None:
    chunks = [b"a" * (PIECE_BYTES * 2 + 7), b"", b"b" * PIECE_BYTES, b"c"]
    seen = []

    async def app(scope, receive, send) -> None:
        while True:
            packed = pickle.dumps(await receive())
            seen.append(pickle.loads(packed))  # noqa: S301
            assert b"deployments" not in packed, "the replica needs no class of ours to read it"
            if seen[-1]["type"] == "http.disconnect":
                return

    await PacedUploads(app)({"type": "http", "path": "/api/v1/datasets"}, sender(chunks), None)
    *pieces, _ = seen
    assert b"".join(piece["body"] for piece in pieces) == b"".join(chunks)
    assert max(len(piece["body"]) for piece in pieces) == PIECE_BYTES
    assert [piece["more_body"] for piece in pieces] == [True] * (len(pieces) - 1) + [False]


async def test_proxy_never_holds_more_than_two_pieces() -> None:
    waiting, most = [], 0

    async def app(scope, receive, send) -> None:
        """Queues and holds on to the last message as Serve's proxy does, for a replica that is slow."""

        async def fetch() -> None:
            nonlocal most
            while True:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                most = max(most, len(waiting))
                waiting.clear()

        fetching = asyncio.create_task(fetch())
        while True:
            message = await receive()
            waiting.append(message)
            if not message["more_body"]:
                break
        fetching.cancel()

    body = [bytes(PIECE_BYTES * 20)]
    async with asyncio.timeout(10):
        await PacedUploads(app, sleep=lambda _: asyncio.sleep(0))(
            {"type": "http", "path": "/api/v1/datasets"}, sender(body), None
        )
    assert most == 2


async def test_serve_finds_the_middleware() -> None:
    assert [middleware.cls for middleware in middlewares()] == [
        PacedUploads,
        FullQueue,
        WithoutControlHeaders,
        OwnWords,
        OneRequestId,
        TraceStart,
    ]


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["id-1"],
        ["a.b_c-9"],
        [""],
        ["two words"],
        ["x" * 129],
        ["Ü"],
        ["<script>"],
        ["a", "b"],
        ["a", "a"],
    ],
)
async def test_serve_and_the_edge_name_the_request_alike_and_validly(service, given) -> None:
    app = _apply_middlewares(build_web_app(service), middlewares())  # as Serve's proxy is wrapped
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://stillhouse") as client:
        ids = [("x-request-id", value.encode("latin-1")) for value in given]
        answer = await client.get("/nowhere", headers=ids)
    by_edge, by_serve = answer.headers.get_list("x-request-id")
    assert by_edge == by_serve
    assert VALID.fullmatch(by_serve)
    assert len(given) != 1 or not VALID.fullmatch(given[0]) or by_serve == given[0]


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
