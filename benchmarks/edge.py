"""What the edge costs: the same ASGI app with and without it, called in one process."""

import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Scope

from benchmarks.report import Section, Table, Target, load_average
from benchmarks.timing import Times, interleaved, time_rows
from core.errors import StillhouseError
from core.idempotency import StoredAnswer
from deployments.edge import edge
from deployments.origin import Origin
from deployments.settings import Settings

LIMIT_MS: Final = 0.5
REPEATS: Final = 3_000
TOKENS: Final = 20
WITHOUT, WITH, REFUSED = "the app alone", "with the edge", "with the edge, wrong token"
BODY: Final = json.dumps({"rows": [{f"x{i}": float(i) for i in range(23)}]}).encode()


def measure() -> Section:
    load = load_average()
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as folder:
        times = _times(Path(folder))
    cost_ms = 1000 * (median(times[WITH]) - median(times[WITHOUT]))
    return Section(
        name="edge",
        title="The edge",
        about=(
            f"A POST of {len(BODY)} bytes to a Starlette app that reads it and answers with one number, as "
            f"ASGI calls without a server. The edge checks ids, headers, one of {TOKENS} tokens, its scope, "
            "the rate of the client, and counts and times the body."
        ),
        targets=[
            Target(
                "what the edge adds to a request, median",
                f"at most {LIMIT_MS} ms",
                f"{cost_ms:.3f} ms",
                cost_ms <= LIMIT_MS,
            )
        ],
        tables=[
            Table(
                ("request", "median ms", "minimum ms", "of the app alone"),
                time_rows(times, WITHOUT, digits=3),
                f"{REPEATS:,} of each in turns.",
            )
        ],
        packages=("starlette", "limits"),
        started_load=load,
    )


def _times(folder: Path) -> Times:
    tokens = folder / "tokens"
    tokens.write_text("\n".join(f"token-{number} read" for number in range(TOKENS)))
    rates = {"predict": "100000000/minute", "denied": "100000000/minute"}
    settings = Settings.model_validate({"tokens_file": str(tokens), "edge": {"rates": rates}})
    routes = [Route("/api/v1/predict", _answer, methods=["POST"])]
    guards = edge(settings, _NoKeys(), _Blind(), time.monotonic, sends_request_id=True)
    guarded: ASGIApp = Starlette(routes=routes)
    for guard in reversed(guards):
        guarded = guard.cls(guarded, *guard.args, **guard.kwargs)
    with asyncio.Runner() as runner:
        return interleaved(
            {
                WITHOUT: _caller(runner, Starlette(routes=routes), f"token-{TOKENS - 1}"),
                WITH: _caller(runner, guarded, f"token-{TOKENS - 1}"),
                REFUSED: _caller(runner, guarded, "wrong", expected=401),
            },
            REPEATS,
        )


async def _answer(request: Request) -> JSONResponse:
    return JSONResponse(len(await request.body()))


def _caller(runner: asyncio.Runner, app: ASGIApp, token: str, expected: int = 200) -> Callable[[], None]:
    headers = [
        (b"host", b"stillhouse"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(BODY)).encode()),
        (b"authorization", f"Bearer {token}".encode()),
        (b"user-agent", b"benchmark"),
    ]
    statuses: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    def call() -> None:
        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": "/api/v1/predict",
            "raw_path": b"/api/v1/predict",
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("stillhouse", 80),
            "scheme": "http",
            "http_version": "1.1",
        }
        runner.run(app(scope, receive, send))  # type: ignore[arg-type]
        assert statuses.pop() == expected

    return call


class _Blind:
    def answered(self, scope: Scope, status: int, seconds: float) -> None: ...
    def failed(self, error: StillhouseError, scope: Scope, origin: Origin) -> None: ...


class _NoKeys:
    async def claim_key(self, name: str, holder: str) -> StoredAnswer | None: ...
    async def renew_key(self, name: str, holder: str) -> None: ...
    async def complete_key(self, name: str, answer: StoredAnswer, holder: str) -> None: ...
    async def release_key(self, name: str, holder: str) -> None: ...
