"""Who asks: tokens, scopes, addresses behind proxies, and how often (contract, section 8)."""

import re
import socket

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.edge.authentication import TRAINER_PATHS, needed_scope
from deployments.edge.clients import Proxies
from deployments.edge.tokens import Scope, Tokens, parse_tokens
from deployments.settings import EdgeSettings, RateSettings
from deployments.web import build_web_app
from tests.deployments.local import (
    DATASETS,
    DISTILL,
    PREDICT,
    RUNS,
    TRAIN,
    local_service,
    settings_in,
    strict_json,
)
from tests.deployments.redis_server import redis_server

pytestmark = pytest.mark.anyio
PROXY, PEER = "10.0.0.1", "203.0.113.7"


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def code_of(response):
    return response.status_code, response.headers.get("x-error-code")


@pytest.fixture
def open_client():
    """Opens a client at an address of a service with some settings."""

    def opened(settings, address="127.0.0.1", service=None, **options):
        app = build_web_app(service or local_service(settings))
        transport = httpx.ASGITransport(app, client=(address, 1234))
        return httpx.AsyncClient(transport=transport, base_url="http://stillhouse", **options)

    return opened


# ── Scopes ──────────────────────────────────────────────────────────────────────────────────────────────────

SCOPES = {
    "read": """GET /datasets|GET /datasets/x|GET /datasets/x/preview|GET /runs|GET /runs/x|GET /runs/x/bundle|
        GET /models|GET /models/x|GET /models/x/export|GET /limits|GET /errors|GET /breakers|POST /predict|
        GET /training-jobs|GET /training-jobs/x|GET /training-jobs/x/status|GET /training-jobs/x/attempts|
        GET /training-jobs/x/events|GET /training-jobs/x/metrics|GET /training-jobs/x/metric-schema|
        GET /training-jobs/x/checkpoints|GET /training-jobs/x/logs|POST /training-jobs/validate""",
    "train": """POST /train|POST /distill|POST /datasets|DELETE /datasets/x|POST /runs/x/save|
        DELETE /runs/x|DELETE /models/x|POST /training-jobs|POST /training-jobs/x/cancel|
        POST /training-jobs/x/stop|POST /training-jobs/x/retry|POST /training-jobs/x/restart""",
    "admin": "POST /breakers/x/reset",
}
NEEDED = {
    (route.split()[0], f"/api/v1{route.split()[1]}"): Scope[name.upper()]
    for name, routes in SCOPES.items()
    for route in re.split(r"\|\s*", routes)
}


@pytest.fixture
async def scoped(tmp_path, open_client):
    file = tmp_path / "tokens"
    file.write_text("r read\nt TRAIN\na admin\nw\n")
    settings = settings_in(tmp_path, allow_no_auth=False, tokens_file=str(file))
    async with open_client(settings) as client:
        yield client


def test_every_documented_route_has_a_scope_and_health_none(service):
    documented = {
        (method.upper(), re.sub(r"{\w+}", "x", path))
        for path, methods in build_web_app(service).openapi()["paths"].items()
        for method in methods
    }
    of_trainers = {route for route in documented if TRAINER_PATHS.fullmatch(route[1])}  # by a job's token
    assert len(of_trainers) == 5
    open_to_all = {route for route in documented if route[1].startswith("/health")}
    assert documented - of_trainers - open_to_all == NEEDED.keys()


@pytest.mark.parametrize(("method", "path"), NEEDED)
async def test_route_needs_exactly_its_scope(scoped, method, path):
    for token, held in (("r", Scope.READ), ("t", Scope.TRAIN), ("a", Scope.ADMIN), ("w", Scope.ADMIN)):
        response = await scoped.request(method, path, headers=bearer(token))
        assert (code_of(response) == (403, "INSUFFICIENT_PERMISSIONS")) == (held < NEEDED[method, path])
        assert response.status_code != 401


@pytest.mark.parametrize("path", [TRAIN, DISTILL])
async def test_handlers_say_403_in_their_dialect(scoped, path):
    response = await scoped.post(path, json={}, headers=bearer("r"))
    assert code_of(response) == (403, "INSUFFICIENT_PERMISSIONS")
    body = strict_json(response.content)
    assert body.keys() == {"status", "error"}
    assert "scope train" in body["error"]


@pytest.mark.parametrize("method", ["PUT", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
async def test_unknown_methods_are_405_in_json_for_those_who_may(scoped, method):
    assert (await scoped.request(method, DATASETS)).status_code == 401
    response = await scoped.request(method, DATASETS, headers=bearer("a"))
    assert code_of(response) == (405, "METHOD_NOT_ALLOWED")


@pytest.mark.parametrize("path", [f"{TRAIN}/", f"{PREDICT}/", "/api/v1/breakers/x/reset/", "//api/v1/train"])
async def test_odd_spellings_of_a_path_open_nothing(scoped, path):
    assert (await scoped.post(path, json={})).status_code == 401
    response = await scoped.post(path, json={}, headers=bearer("r"))
    assert response.status_code in (403, 404)
    strict_json(response.content)


@given(st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]), st.text(max_size=30))
def test_whatever_changes_something_needs_more_than_reading(method, path):
    assert (needed_scope(method, path) is Scope.READ) == (
        method in ("GET", "HEAD") or path.rstrip("/") == PREDICT
    )


@pytest.mark.parametrize("lines", [["s3cret root"], ["s3cret read train"], ["ok", "s3cret read,train"]])
def test_scope_that_is_none_is_refused_without_the_token(lines):
    with pytest.raises(ValueError, match="read, train, admin") as raised:
        parse_tokens(lines)
    assert "s3cret" not in str(raised.value)


def test_token_of_the_file_and_the_environment_may_do_what_either_says():
    assert Tokens(None, {"x": Scope.READ}).scope_of("Bearer x") is Scope.READ
    assert Tokens(None, {}).scope_of("Bearer ") is None


@pytest.mark.parametrize("token", ["à", "schlüssel-à", "x\x85"])
def test_token_that_ends_in_what_latin_1_calls_a_blank_is_accepted(token):
    sent = token.encode().decode("latin-1")  # as ASGI frameworks decode headers
    assert Tokens(None, {token: Scope.ADMIN}).scope_of(f"Bearer  {sent} ") is Scope.ADMIN


async def test_two_tokens_are_400_even_when_one_is_right(scoped):
    for pair in (["a", "a"], ["wrong", "a"], ["a", "wrong"]):
        headers = [("authorization", f"Bearer {token}") for token in pair]
        response = await scoped.get(DATASETS, headers=headers)
        assert code_of(response) == (400, "MALFORMED_BODY")
        assert "authorization" in strict_json(response.content)["detail"]


# ── Rates ───────────────────────────────────────────────────────────────────────────────────────────────────

FEW = RateSettings(read="3/minute", predict="2/minute", train="2/minute", write="2/minute", denied="2/minute")


def limited(tmp_path, **edge):
    return settings_in(tmp_path, edge=EdgeSettings(rates=FEW, **edge))


def check_429(response):
    assert code_of(response) == (429, "RATE_LIMITED")
    seconds = int(response.headers["retry-after"])
    assert 1 <= seconds <= 120
    body = strict_json(response.content)
    if response.request.url.path in (TRAIN, DISTILL):
        assert body == {"status": "error", "error": "Rate limit exceeded. Please try again later."}
    else:
        assert body == {"detail": "Rate limit exceeded. Please try again later.", "retry_after": seconds}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", DATASETS, 3),
        ("GET", "/nowhere", 3),
        ("POST", PREDICT, 2),
        ("POST", TRAIN, 2),
        ("POST", DISTILL, 2),
        ("POST", DATASETS, 2),
        ("DELETE", f"{RUNS}/x", 2),
    ],
)
async def test_one_request_too_many_is_429_with_both_hints(tmp_path, open_client, method, path, allowed):
    async with open_client(limited(tmp_path)) as client:
        for _ in range(allowed):
            assert (await client.request(method, path)).status_code != 429
        for _ in range(2):
            check_429(await client.request(method, path))


async def test_classes_of_routes_are_counted_apart_and_health_not_at_all(tmp_path, open_client):
    async with open_client(limited(tmp_path)) as client:
        for _ in range(3):
            await client.post(TRAIN, json={})
        check_429(await client.post(DISTILL, json={}))
        assert (await client.post(PREDICT, json={})).status_code != 429
        assert (await client.get(DATASETS)).status_code == 200
        for _ in range(20):
            assert (await client.get("/health/live")).status_code == 200
            assert (await client.get("/docs/errors/CUDA_OOM")).status_code == 200


async def test_clients_are_counted_apart(tmp_path, open_client):
    settings = limited(tmp_path)
    service = local_service(settings)
    app = build_web_app(service)
    for address in ("192.0.2.1", "192.0.2.2"):
        transport = httpx.ASGITransport(app, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://stillhouse") as client:
            assert [(await client.get(DATASETS)).status_code for _ in range(4)] == [200, 200, 200, 429]


async def test_spelling_a_token_otherwise_makes_no_other_client(tmp_path, open_client, monkeypatch):
    file = tmp_path / "tokens"
    file.write_text("one\ntwo\n")
    settings = settings_in(tmp_path, allow_no_auth=False, tokens_file=str(file), edge=EdgeSettings(rates=FEW))
    async with open_client(settings) as client:
        spelt = ["Bearer one", "bearer one", "BEARER   one", "Bearer one ", "bEARER one"]
        answers = [await client.get(DATASETS, headers={"authorization": text}) for text in spelt]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert (await client.get(DATASETS, headers=bearer("two"))).status_code == 200


async def test_guessing_tokens_ends_in_429_and_costs_those_who_have_one_nothing(tmp_path, open_client):
    file = tmp_path / "tokens"
    file.write_text("right\n")
    settings = settings_in(tmp_path, allow_no_auth=False, tokens_file=str(file), edge=EdgeSettings(rates=FEW))
    async with open_client(settings) as client:
        for guess in ("a", "b"):
            assert (await client.get(DATASETS, headers=bearer(guess))).status_code == 401
        check_429(await client.get(DATASETS, headers=bearer("c")))
        check_429(await client.post(TRAIN, json={}))
        assert (await client.get(DATASETS, headers=bearer("right"))).status_code == 200


async def test_no_limit_is_no_limit(tmp_path, open_client):
    settings = settings_in(tmp_path, edge=EdgeSettings(rates=RateSettings(read=None)))
    async with open_client(settings) as client:
        assert {(await client.get("/api/v1/limits")).status_code for _ in range(50)} == {200}


# ── Several ingresses ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def redis_url():
    with redis_server() as url:
        yield url


async def test_two_services_share_their_counts_over_redis(tmp_path, open_client, redis_url):
    async with (
        open_client(limited(tmp_path / "a", rates_storage=redis_url)) as one,
        open_client(limited(tmp_path / "b", rates_storage=redis_url)) as other,
    ):
        statuses = [(await client.get(DATASETS)).status_code for client in (one, other, one)]
        assert statuses == [200, 200, 200]
        check_429(await one.get(DATASETS))
        check_429(await other.get(DATASETS))
        assert (await other.post(TRAIN, json={})).status_code == 400


async def test_requests_pass_while_redis_does_not_answer(tmp_path, open_client, caplog):
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{taken.getsockname()[1]}"
        async with open_client(limited(tmp_path, rates_storage=url)) as client:
            for _ in range(5):
                assert (await client.get(DATASETS)).status_code == 200
    assert "pass uncounted" in caplog.text


async def test_requests_pass_while_redis_is_silent(tmp_path, open_client, caplog):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        async with open_client(limited(tmp_path, rates_storage=url)) as client:
            assert (await client.get(DATASETS)).status_code == 200
    assert "pass uncounted" in caplog.text


# ── Addresses behind proxies ────────────────────────────────────────────────────────────────────────────────


def address(peer, *forwarded, trusted=("10.0.0.0/8", "fd00::/8")):
    edge = EdgeSettings(trusted_proxies=trusted)
    headers = [(b"x-forwarded-for", value.encode("latin-1")) for value in forwarded]
    scope = {"type": "http", "client": peer and (peer, 1), "headers": headers}
    return Proxies(edge.trusted_proxies).address_of(scope)


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        (PEER, [], PEER),
        (PEER, ["1.2.3.4"], PEER),  # not a proxy of ours: it can say anything
        (PROXY, [], PROXY),
        (PROXY, ["1.2.3.4"], "1.2.3.4"),
        (PROXY, ["6.6.6.6, 1.2.3.4"], "1.2.3.4"),  # what the client itself wrote stands further left
        (PROXY, ["6.6.6.6", "1.2.3.4"], "1.2.3.4"),
        (PROXY, ["10.9.9.9, 1.2.3.4"], "1.2.3.4"),
        (PROXY, ["1.2.3.4, 10.0.0.2, 10.0.0.3"], "1.2.3.4"),
        (PROXY, ["10.0.0.2"], "10.0.0.2"),
        (PROXY, ["1.2.3.4, garbage"], PROXY),
        (PROXY, ["1.2.3.4, "], PROXY),
        (PROXY, ["unknown"], PROXY),
        (PROXY, [""], PROXY),
        (PROXY, ["x" * 10_000], PROXY),
        (PROXY, ["1.2.3.4:5678"], "1.2.3.4"),
        (PROXY, [" 1.2.3.4 "], "1.2.3.4"),
        (PROXY, ["2001:db8::1"], "2001:db8::1"),
        (PROXY, ["[2001:db8::1]:443"], "2001:db8::1"),
        (PROXY, ["[2001:db8::1]"], "2001:db8::1"),
        (PROXY, ["2001:0db8:0::0001"], "2001:db8::1"),
        ("fd00::7", ["2001:db8::1"], "2001:db8::1"),
        ("2001:db8::9", ["1.2.3.4"], "2001:db8::9"),
        ("::ffff:10.0.0.1", ["1.2.3.4"], "1.2.3.4"),
        (PROXY, ["::ffff:1.2.3.4"], "1.2.3.4"),
        ("a socket", ["1.2.3.4"], "a socket"),
        (None, ["1.2.3.4"], "unknown"),
    ],
)
def test_address_is_the_nearest_that_is_no_trusted_proxy(peer, forwarded, expected):
    assert address(peer, *forwarded) == expected


@pytest.mark.parametrize("forwarded", [[], ["1.2.3.4"], ["garbage"]])
def test_without_trusted_proxies_the_peer_is_the_client(forwarded):
    assert address(PROXY, *forwarded, trusted=()) == PROXY


@given(st.lists(st.text(st.characters(max_codepoint=255), max_size=20), max_size=4))
def test_stranger_cannot_choose_its_address(forwarded):
    assert address(PEER, *forwarded) == PEER


@given(st.text(st.characters(max_codepoint=255), max_size=40))
def test_client_behind_a_proxy_cannot_choose_its_address(forged):
    assert address(PROXY, f"{forged}, 1.2.3.4") == "1.2.3.4"
    assert address(PROXY, forged, "1.2.3.4") == "1.2.3.4"


async def test_forged_addresses_do_not_get_around_the_limit(tmp_path, open_client):
    async with open_client(limited(tmp_path), address=PEER) as client:
        answers = [await client.get(DATASETS, headers={"x-forwarded-for": f"192.0.2.{n}"}) for n in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]


async def test_clients_behind_a_trusted_proxy_are_counted_apart(tmp_path, open_client):
    settings = limited(tmp_path, trusted_proxies=("10.0.0.0/8",))
    async with open_client(settings, address=PROXY) as client:
        for host in ("192.0.2.1", "192.0.2.2"):
            forged = [f"6.6.6.{n}, {host}:{4000 + n}" for n in range(4)]
            answers = [await client.get(DATASETS, headers={"x-forwarded-for": text}) for text in forged]
            assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
