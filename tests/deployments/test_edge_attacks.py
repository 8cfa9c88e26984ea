"""Whatever comes in, what goes out is an answer that is documented, in the dialect of its route."""

import asyncio
import gzip
import json
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from core.catalogue import CATALOGUE
from deployments.dialects import PROBLEM
from deployments.web import build_web_app
from tests.deployments.asgi import LEFT, ask, http_scope, part, parts
from tests.deployments.local import DATASETS, DISTILL, MODELS, PREDICT, RUNS, TRAIN, Witness, strict_json

pytestmark = pytest.mark.anyio
HANDLER_STATUSES = {400, 401, 403, 404, 405, 413, 429, 503}
ECHOES = re.compile(r"[\r\n\0]")


def check_answer(exchange, path, accept=""):
    """An answer is a success, or an error of the catalogue in the dialect of its route."""
    assert exchange.status != 500
    for name, value in exchange.headers.items():
        assert not ECHOES.search(name + value)
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", exchange.headers["x-request-id"])
    assert re.fullmatch(r"[0-9a-f]{32}", exchange.headers["x-trace-id"])
    assert [message["type"] for message in exchange.sent].count("http.response.start") == 1
    if exchange.status < 400:
        return
    entry = CATALOGUE[exchange.headers["x-error-code"]]
    body = strict_json(exchange.body)
    handler = path.rstrip("/") in (TRAIN, DISTILL)
    assert (exchange.status in HANDLER_STATUSES) if handler else (exchange.status == entry.status)
    if PROBLEM in accept:
        assert exchange.headers["content-type"] == PROBLEM
        assert (body["code"], body["status"]) == (entry.code, exchange.status)
    elif handler:
        assert body.keys() == {"status", "error"}
        assert isinstance(body["error"], str)
    elif path.startswith(("/api/v1/training-jobs", "/ws/training-jobs")):
        assert body["error"]["code"] == entry.code
    else:
        assert body.keys() == ({"detail", "retry_after"} if exchange.status == 429 else {"detail"})


paths = st.sampled_from(
    [
        TRAIN,
        DISTILL,
        PREDICT,
        DATASETS,
        RUNS,
        MODELS,
        f"{RUNS}/x/save",
        f"{RUNS}/x/bundle",
        f"{MODELS}/x/export",
        f"{DATASETS}/x/preview",
        "/api/v1/breakers",
        "/api/v1/breakers/trainer/reset",
        "/api/v1/limits",
        "/health/live",
        "/docs/errors/CUDA_OOM",
        "/openapi.json",
        "/",
        "/api/v1/training-jobs",
        "/ws/x",
    ]
) | st.text(max_size=30).map(lambda text: f"/{text}")
odd = st.text(st.characters(max_codepoint=255), max_size=60)
values = st.one_of(
    odd,
    st.sampled_from(
        [
            "application/json",
            "text/csv",
            "multipart/form-data; boundary=x",
            "multipart/form-data",
            PROBLEM,
            "text/event-stream",
            "gzip",
            "deflate",
            "br",
            "identity",
            "Bearer x",
            "1",
            "999999999999",
            "-1",
            "*/*",
            "application/vnd.apache.arrow.stream",
            "a\r\nset-cookie: x",
            "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        ]
    ),
)
names = st.sampled_from(
    [
        "content-type",
        "content-length",
        "content-encoding",
        "accept",
        "authorization",
        "idempotency-key",
        "x-request-id",
        "traceparent",
        "x-forwarded-for",
        "host",
        "x-request-timeout-seconds",
        "transfer-encoding",
        "serve_multiplexed_model_id",
        "Idempotency-Key",
        "range",
        "if-match",
        "expect",
        "cookie",
        "origin",
        "",
    ]
)
bodies = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from(
            [
                b"{}",
                b"[]",
                b"null",
                b'{"a":' * 50,
                b"\x1f\x8b",
                gzip.compress(b'{"rows": []}'),
                b"a,b\n1,2\n",
                b'{"run_id": "x", "rows": [{"a": 1}]}',
                b'{"model_id": "\\ud800", "rows": []}',
                b"--x\r\n",
                b"PAR1",
            ]
        ),
    ),
    max_size=3,
)
methods = st.sampled_from(
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "\u00fc", ""]
)


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(methods, paths, st.lists(st.tuples(names, values), max_size=6), bodies, odd, st.booleans())
@example("POST", DATASETS, [("content-type", "multipart/form-data; boundary=x")], [b"--x\r\n"], "", False)
@example("POST", TRAIN, [("x-request-id", "a\r\nb"), ("accept", PROBLEM)], [b"{}"], "", False)
async def test_whatever_comes_in_the_answer_is_documented(
    service, method, path, headers, body, query, leaves
):
    if not isinstance(service.observer, Witness):
        service.observer = Witness()
        service.app = build_web_app(service)
    scope = http_scope(method, path, headers, query_string=query.encode())
    messages = [*parts(*body)] or [part()]
    exchange = await ask(service.app, scope, [*messages[:-1], LEFT] if leaves else [*messages, LEFT])
    accept = next((value for name, value in headers if name == "accept"), "")
    check_answer(exchange, path, accept)
    assert not [error.code for error in service.observer.errors if error.code == "SYSTEM_ERROR"]
    assert service.queue()["free"] == service.queue()["capacity"]


WEIRD = {
    "no body": [{"type": "http.request"}],
    "empty parts": [part(b"", more=True)] * 50 + [part(b"{}")],
    "left at once": [LEFT],
    "left twice": [part(b"{", more=True), LEFT, LEFT],
    "more after the end": [part(b"{}"), part(b"{}")],
    "memoryview": [{"type": "http.request", "body": b"{}", "more_body": 0}],
    "unknown": [{"type": "http.unknown"}, part(b"{}"), LEFT],
}


@pytest.mark.parametrize("messages", WEIRD.values(), ids=WEIRD)
@pytest.mark.parametrize("path", [TRAIN, PREDICT, DATASETS, f"{RUNS}/x/save"])
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_odd_messages_get_ordinary_answers(service, messages, path, encoding):
    app = build_web_app(service)
    scope = http_scope(path=path, headers={"content-encoding": encoding, "idempotency-key": "k"})
    check_answer(await ask(app, scope, messages), path)


MISSING = ["client", "state", "root_path", "server", "raw_path", "scheme", "http_version"]


@pytest.mark.parametrize("missing", MISSING)
async def test_scope_needs_only_what_asgi_demands(service, missing):
    scope = http_scope("GET", "/api/v1/limits")
    scope.pop(missing, None)
    assert (await ask(build_web_app(service), scope)).status == 200


async def test_service_below_a_prefix_guards_the_same_routes(service):
    app = build_web_app(service)
    scope = http_scope(path=f"/below{TRAIN}", root_path="/below")
    exchange = await ask(app, scope, parts(b"{}"))
    assert exchange.outcome == (400, "INVALID_DATA_TARGET")
    assert exchange.json.keys() == {"status", "error"}


@pytest.mark.parametrize("given", ["id\r\nset-cookie: a=b", "id\n", "id\0", "\u2028"])
async def test_request_id_cannot_smuggle_a_header(service, given):
    raw = [(b"x-request-id", given.encode())]
    exchange = await ask(build_web_app(service), http_scope("GET", DATASETS, raw))
    check_answer(exchange, DATASETS)
    assert "set-cookie" not in exchange.headers


async def test_a_hundred_twins_at_once_are_one_upload(service):
    app = build_web_app(service)
    scope = http_scope(path=DATASETS, headers={"content-type": "text/csv", "idempotency-key": "k"})
    exchanges = await asyncio.gather(*(ask(app, scope, parts(b"a\n1\n")) for _ in range(100)))
    outcomes = [exchange.outcome for exchange in exchanges]
    first = [e for e in exchanges if e.status == 201 and "idempotent-replayed" not in e.headers]
    assert len(first) == 1
    assert set(outcomes) <= {(201, None), (409, "IDEMPOTENCY_IN_PROGRESS")}
    assert (await ask(app, scope, parts(b"a\n1\n"))).headers["idempotent-replayed"] == "true"


async def test_unicode_in_json_keys_and_ids_comes_back_whole(service):
    app = build_web_app(service)
    body = json.dumps({"target_column": "ü☃\u202e", "dataset_id": "ü<b>", "ünknown": 1}).encode()
    exchange = await ask(app, http_scope(path=TRAIN), parts(body))
    check_answer(exchange, TRAIN)
    assert exchange.outcome == (400, "DATASET_NOT_FOUND")
    assert "ü<b>" in exchange.json["error"]
