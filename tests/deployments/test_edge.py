"""What happens before a route, and what happens when none is there (contract, sections 2 and 8)."""

import os
import re
import time

import httpx
import pytest
from starlette.requests import ClientDisconnect

from deployments.edge.border import Border
from deployments.edge.tokens import Tokens
from deployments.proxy import CONTROL_HEADERS
from deployments.settings import TOKENS_VARIABLE, Limits, Settings
from deployments.web import build_web_app
from tests.deployments.local import (
    DATASETS,
    DISTILL,
    MODELS,
    PREDICT,
    PROBLEM,
    RUNS,
    TRAIN,
    Witness,
    failed,
    local_service,
    settings_in,
    stored_files,
    strict_json,
)

pytestmark = pytest.mark.anyio
TOKEN = "s3cret-token"  # noqa: S105
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class InnerApp:
    """Remembers the scopes that got past the edge."""

    def __init__(self) -> None:
        self.scopes = []

    async def __call__(self, scope, receive, send):
        self.scopes.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"inside"})


def border(inner, observe=None, **options):
    return Border(inner, observe=observe or Witness(), clock=time.monotonic, limits=Limits(), **options)


def edge_client(inner, **options):
    transport = httpx.ASGITransport(border(inner, **options))
    return httpx.AsyncClient(transport=transport, base_url="http://stillhouse")


@pytest.fixture
def tokens_file(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN}\n\n  another-token  \nschlüssel\n")
    return file


@pytest.fixture
async def guarded(tmp_path, tokens_file, connect):
    """A client without a token of a service that wants one."""
    settings = settings_in(tmp_path, allow_no_auth=False, tokens_file=str(tokens_file))
    async with connect(local_service(settings)) as client:
        yield client


def bearer(token):
    return {"authorization": f"Bearer {token}".encode()}


# ── Tokens ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("token", [TOKEN, "another-token", "schlüssel"])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_every_configured_token_opens_the_door(guarded, token, scheme):
    response = await guarded.get(DATASETS, headers={"authorization": f"{scheme} {token}".encode()})
    assert response.status_code == 200


REFUSED = {
    "empty": b"",
    "scheme alone": b"Bearer",
    "no token": b"Bearer ",
    "no scheme": TOKEN.encode(),
    "another scheme": f"Basic {TOKEN}".encode(),
    "wrong": b"Bearer wrong",
    "prefix": f"Bearer {TOKEN[:-1]}".encode(),
    "longer": f"Bearer {TOKEN}x".encode(),
    "other case": f"Bearer {TOKEN.upper()}".encode(),
    "two": f"Bearer {TOKEN} another-token".encode(),
    "comma": f"Bearer {TOKEN},another-token".encode(),
    "latin-1": b"Bearer schl\xfcssel",
    "bytes": b"Bearer \xff\xfe\x80",
    "long": b"Bearer " + b"x" * 10_000,
}


@pytest.mark.parametrize("authorization", REFUSED.values(), ids=REFUSED)
async def test_other_tokens_are_401(guarded, authorization):
    response = await guarded.get(DATASETS, headers={"authorization": authorization})
    message = failed(response, 401, "INVALID_TOKEN")
    assert response.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in message


def operations(app):
    """Method and path of every documented route."""
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            yield method.upper(), re.sub(r"{\w+}", "x", path)


async def test_every_route_but_health_and_documentation_wants_a_token(guarded, service):
    asked = 0
    for method, path in operations(build_web_app(service)):
        response = await guarded.request(method, path)
        if path.startswith("/health"):
            assert response.status_code != 401
        else:
            failed(response, 401, "INVALID_TOKEN")
            asked += 1
    assert asked >= 15


@pytest.mark.parametrize("path", ["/nowhere", "/", "/api/v1", f"{TRAIN}/"])
async def test_unknown_route_does_not_tell_strangers_that_it_is_unknown(guarded, path):
    assert (await guarded.get(path)).status_code == 401


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/docs", "/openapi.json"])
async def test_health_and_documentation_are_open(guarded, path):
    assert (await guarded.get(path)).status_code == 200


async def test_stranger_stores_nothing(guarded, tmp_path):
    headers = {"content-type": "text/csv"}
    failed(await guarded.post(DATASETS, content="a\n1\n", headers=headers), 401, "INVALID_TOKEN")
    assert stored_files(settings_in(tmp_path)) == set()


def rewrite(file, text):
    """Writes a file whose time differs from before, however coarse the clock of the file system is."""
    before = file.stat().st_mtime_ns
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    os.utime(file, ns=(before + 10**9, before + 10**9))


async def test_tokens_rotate_with_their_file_without_a_restart(guarded, tokens_file):
    assert (await guarded.get(DATASETS, headers=bearer(TOKEN))).status_code == 200
    rewrite(tokens_file, "n3w-token\n")
    failed(await guarded.get(DATASETS, headers=bearer(TOKEN)), 401, "INVALID_TOKEN")
    assert (await guarded.get(DATASETS, headers=bearer("n3w-token"))).status_code == 200


@pytest.mark.parametrize("damage", ["removed", "not UTF-8"])
async def test_file_that_cannot_be_read_leaves_the_last_tokens_valid(guarded, tokens_file, damage):
    if damage == "removed":
        tokens_file.unlink()
    else:
        rewrite(tokens_file, b"\xff\xfe\n")
    assert (await guarded.get(DATASETS, headers=bearer(TOKEN))).status_code == 200
    failed(await guarded.get(DATASETS, headers=bearer("wrong")), 401, "INVALID_TOKEN")


def test_tokens_that_cannot_be_read_are_warned_of_once_per_change(tokens_file, caplog):
    tokens = Tokens(tokens_file, {})
    content = tokens_file.read_bytes()
    for _ in range(2):
        tokens_file.unlink()
        tokens.count(), tokens.count()
        tokens_file.write_bytes(content)
        tokens.count()
    assert len([record for record in caplog.records if "last ones" in record.message]) == 2


async def test_emptied_file_lets_nobody_in(guarded, tokens_file):
    rewrite(tokens_file, "\n")
    for token in (TOKEN, ""):
        failed(await guarded.get(DATASETS, headers=bearer(token)), 401, "INVALID_TOKEN")


async def test_tokens_of_the_environment_add_to_those_of_the_file(
    tmp_path, tokens_file, connect, monkeypatch
):
    monkeypatch.setenv(TOKENS_VARIABLE, " env-one, env-two ,,")
    settings = settings_in(tmp_path, allow_no_auth=False, tokens_file=str(tokens_file))
    async with connect(local_service(settings)) as client:
        for token in (TOKEN, "env-one", "env-two"):
            assert (await client.get(DATASETS, headers=bearer(token))).status_code == 200
        failed(await client.get(DATASETS, headers=bearer("")), 401, "INVALID_TOKEN")


def test_missing_file_of_tokens_stops_the_start(tmp_path):
    with pytest.raises(OSError, match="absent"):
        Tokens.configured(Settings(tokens_file=str(tmp_path / "absent")))


def test_service_without_tokens_runs_open():
    assert Tokens.configured(Settings(allow_no_auth=True)) is None


# ── Headers ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_control_headers_are_those_that_serve_obeys():
    names = "x-request-timeout-seconds x-request-disconnect-disabled serve_multiplexed_model_id"
    assert set(names.encode().split()) == CONTROL_HEADERS


async def test_control_headers_do_not_reach_the_app_however_they_are_spelt():
    inner = InnerApp()
    spelt = [name for header in CONTROL_HEADERS for name in (header, header.upper(), header.title())]
    scope_headers = [(name, b"1") for name in spelt] + [(b"x-kept", b"2"), (b"host", b"stillhouse")]
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": scope_headers}
    await border(inner)(scope, receive, send)
    assert sent[0]["status"] == 200
    assert inner.scopes[0]["headers"] == [(b"x-kept", b"2"), (b"host", b"stillhouse")]
    assert scope["headers"] == scope_headers  # the server's own scope is left as it was


@pytest.mark.parametrize("given", ["abc-123", "A.b_c", "x" * 128])
async def test_request_id_of_the_client_is_kept(client, given):
    for path in (DATASETS, "/nowhere", "/health/live"):
        response = await client.get(path, headers={"x-request-id": given})
        assert response.headers.get_list("x-request-id") == [given]


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a\tb", "<script>", "ü"])
async def test_request_id_that_is_none_is_replaced(client, given):
    response = await client.get(DATASETS, headers={b"x-request-id": given.encode()})
    assert UUID.fullmatch(response.headers["x-request-id"])


async def test_every_request_has_an_id_of_its_own(client):
    ids = {(await client.get("/health/live")).headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5


async def test_request_id_reaches_the_app():
    inner = InnerApp()
    async with edge_client(inner) as client:
        response = await client.get("/", headers={"x-request-id": "id-1"})
    assert inner.scopes[0]["state"]["origin"].request_id == "id-1"
    assert response.headers["x-request-id"] == "id-1"


async def test_behind_serve_the_header_is_left_to_serve():
    async with edge_client(InnerApp(), sends_request_id=False) as client:
        assert "x-request-id" not in (await client.get("/")).headers


async def test_other_protocols_pass_through():
    inner = InnerApp()
    sent = []

    async def send(message):
        sent.append(message)

    await border(inner)({"type": "lifespan"}, None, send)
    assert inner.scopes == [{"type": "lifespan"}]


# ── Bodies ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def narrow(tmp_path, connect):
    """A client of a service that takes 100 bytes of JSON and 1000 of a table."""
    limits = {"json_bytes": 100, "body_bytes": 1000}
    async with connect(local_service(settings_in(tmp_path, limits=limits))) as client:
        yield client


async def stream(content, size=7):
    for start in range(0, len(content), size):
        yield content[start : start + size]


JSON_ROUTES = [TRAIN, DISTILL, PREDICT, f"{RUNS}/x/save"]


@pytest.mark.parametrize("path", JSON_ROUTES)
@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize(
    "media_type", ["application/json", "Application/JSON", "application/x-www-form-urlencoded", ""]
)
async def test_json_that_is_too_large_is_413_in_the_dialect_of_its_route(narrow, path, chunked, media_type):
    content = b'{"target_column": "' + b"x" * 100 + b'"}'
    body = stream(content) if chunked else content
    response = await narrow.post(path, content=body, headers={"content-type": media_type})
    assert "100 bytes" in failed(response, 413, "PAYLOAD_TOO_LARGE")


@pytest.mark.parametrize("path", [TRAIN, DISTILL])
async def test_json_of_exactly_the_limit_is_read(narrow, path):
    content = b"{}" + b" " * 98
    assert failed(await narrow.post(path, content=content), 400, "INVALID_DATA_TARGET")
    failed(await narrow.post(path, content=content + b" "), 413, "PAYLOAD_TOO_LARGE")


@pytest.mark.parametrize("path", [PREDICT, DATASETS])
@pytest.mark.parametrize("size", [999, 1001])
async def test_tables_have_a_limit_of_their_own(narrow, path, size):
    headers = {"content-type": "text/csv"}
    response = await narrow.post(path, params={"model_id": "x"}, content=b"a" * size, headers=headers)
    assert (response.status_code == 413) == (size > 1000)


@pytest.mark.parametrize("length", [b"\xb2", b"-1", b"9" * 5000, b"1e3", b" 12 "])
async def test_odd_content_length_breaks_nothing(client, length):
    response = await client.post(TRAIN, content=stream(b"{}"), headers={"content-length": length})
    assert response.status_code in (400, 413)
    failed(response, response.status_code, response.headers["x-error-code"])


# ── Routes that are not there, and failures ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "path", ["/", "/nowhere", "/api/v1", "/api/v2/train", f"{TRAIN}/x", "/health/x", "/redoc"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_unknown_route_is_404(client, path, method):
    assert "/docs" in failed(await client.request(method, path), 404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", TRAIN, {"POST"}),
        ("PUT", DISTILL, {"POST"}),
        ("DELETE", PREDICT, {"POST"}),
        ("PUT", DATASETS, {"GET", "HEAD", "POST"}),
        ("PATCH", f"{DATASETS}/x", {"GET", "HEAD", "DELETE"}),
        ("POST", f"{RUNS}/x", {"GET", "HEAD", "DELETE"}),
        ("GET", f"{RUNS}/x/save", {"POST"}),
        ("POST", f"{MODELS}/x", {"GET", "HEAD", "DELETE"}),
        ("POST", "/health", {"GET", "HEAD"}),
        ("HEAD", TRAIN, {"POST"}),
    ],
)
async def test_wrong_method_is_405_with_every_method_that_is_right(client, method, path, allowed):
    response = await client.request(method, path)
    assert set(response.headers["allow"].split(", ")) == allowed
    if method == "HEAD":
        assert (response.status_code, response.content) == (405, b"")
        return
    message = failed(response, 405, "METHOD_NOT_ALLOWED")
    assert all(name in message for name in allowed)


async def test_head_is_get_without_the_body_on_every_route(client):
    paths = [path for path, item in client._transport.app.openapi()["paths"].items() if "get" in item]
    assert len(paths) > 10
    for path in [*paths, "/docs", "/openapi.json"]:
        address = path.replace("{", "").replace("}", "")
        get, head = [await client.request(method, address) for method in ("GET", "HEAD")]
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-length"] == str(len(get.content))
        assert head.headers["content-type"] == get.headers["content-type"]


class BrokenModels:
    """Storage that fails as nobody foresaw."""

    def page(self, limit, cursor):
        raise RuntimeError("secret /srv/stillhouse/models is on fire")


@pytest.fixture
def broken(service):
    service.models = BrokenModels()
    return service


@pytest.mark.parametrize("accept", [None, PROBLEM])
async def test_unexpected_exception_is_500_with_the_request_id_and_nothing_else(
    broken, connect, caplog, accept
):
    headers = {"x-request-id": "id-7"} | ({"accept": accept} if accept else {})
    async with connect(broken) as client:
        response = await client.get(MODELS, headers=headers)
    assert failed(response, 500, "SYSTEM_ERROR") == "An unexpected error occurred (request id-7)."
    for secret in ("Traceback", "RuntimeError", "secret", "/srv"):
        assert secret not in response.text
    assert "id-7" in caplog.text
    assert "on fire" in caplog.text


async def test_unexpected_exception_of_a_handler_is_400_in_its_dialect(service, connect):
    async def broken(kind, payload, origin):
        raise RuntimeError("secret")
        yield

    service.run_job = broken
    async with connect(service) as client:
        message = failed(await client.post(TRAIN, json={}), 400, "SYSTEM_ERROR")
    assert "secret" not in message


async def test_answer_that_breaks_off_after_it_began_is_not_mended():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("too late")

    async with edge_client(app) as client:
        with pytest.raises(ConnectionError, match="broke off"):
            await client.get("/")


async def test_client_that_leaves_is_nobodys_fault():
    class Watching:
        failures, statuses = [], []

        def failed(self, error, scope, origin):
            self.failures.append(error.code)

        def answered(self, scope, status, seconds):
            self.statuses.append(status)

    async def app(scope, receive, send):
        raise ClientDisconnect

    async def send(message):
        pass

    border = Border(app, observe=Watching(), clock=lambda: 0.0, limits=Limits())
    await border({"type": "http", "method": "POST", "path": "/", "headers": []}, None, send)
    assert (Watching.failures, Watching.statuses) == ([], [400])


async def test_every_route_answers_every_failure_in_valid_json(client, service):
    for method, path in operations(build_web_app(service)):
        for accept in ("application/json", PROBLEM):
            response = await client.request(method, path, content=b"\xff{", headers={"accept": accept})
            if response.status_code >= 400 and not path.startswith("/health"):
                body = strict_json(response.content)
                assert response.headers["x-error-code"]
                assert ("trace_id" in body) == (accept == PROBLEM)
