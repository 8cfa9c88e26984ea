"""How much a request may bring, how slowly and in which encoding (contract, section 8)."""

import asyncio
import gzip
import itertools
import json
import time
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from deployments.edge.bodies import Bodies
from deployments.edge.border import Border
from deployments.settings import EdgeSettings, Limits
from deployments.web import build_web_app
from tests.deployments.asgi import LEFT, ask, http_scope, part, parts
from tests.deployments.local import (
    DATASETS,
    DISTILL,
    EXAMPLE_CSV,
    PREDICT,
    RUNS,
    TRAIN,
    Witness,
    failed,
    local_service,
    settings_in,
    upload,
)

pytestmark = pytest.mark.anyio
LIMIT = 1000


class Reader:
    """Reads the body and answers with it."""

    async def __call__(self, scope, receive, send):
        self.headers = dict(scope["headers"])
        self.body = b""
        async for chunk in Request(scope, receive).stream():
            self.body += chunk
        await Response(self.body)(scope, receive, send)


class Ticks:
    """Seconds that pass with every look."""

    def __init__(self, step=0.0):
        self.now, self.step = 0.0, step

    def __call__(self):
        self.now += self.step
        return self.now


def edge_of(inner, clock=None, witness=None, **pace):
    limits = Limits(json_bytes=LIMIT, body_bytes=LIMIT)
    bodies = Bodies(inner, limits=limits, pace=EdgeSettings(**pace), clock=clock or Ticks())
    return Border(bodies, observe=witness or Witness(), clock=time.monotonic, limits=limits)


async def sent(*bodies, encoding=None, **headers):
    """Sends a body in pieces to something that reads it; the exchange and the reader."""
    reader = Reader()
    if encoding is not None:
        headers["content-encoding"] = encoding
    exchange = await ask(edge_of(reader), http_scope(headers=headers), parts(*bodies))
    return exchange, reader


# ── Lengths ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "length", [None, "0", "1", "1000", "999999999999", "-5", "x", "1e3", "", "²", "9" * 30]
)
async def test_length_is_counted_whatever_the_header_claims(length):
    headers = {} if length is None else {"content-length": length}
    exchange, _ = await sent(b"x" * 600, b"x" * 600, **headers)
    assert exchange.outcome == (413, "PAYLOAD_TOO_LARGE")


async def test_length_over_the_limit_is_refused_before_a_byte_is_read():
    exchange, _ = await sent(b"x", **{"content-length": str(LIMIT + 1)})
    assert (exchange.outcome, exchange.taken) == ((413, "PAYLOAD_TOO_LARGE"), 0)


async def test_two_lengths_are_400():
    scope = http_scope(headers=[("content-length", "1"), ("Content-Length", "2")])
    assert (await ask(edge_of(Reader()), scope)).outcome == (400, "MALFORMED_BODY")


async def test_body_that_breaks_off_is_400_and_no_failure_of_the_service(caplog):
    witness = Witness()
    scope = http_scope(headers={"content-length": "500"})
    exchange = await ask(edge_of(Reader(), witness=witness), scope, [part(b"x" * 10, more=True), LEFT])
    assert exchange.outcome == (400, "MALFORMED_BODY")
    assert witness.errors == []  # it is nobody's
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("path", [TRAIN, DISTILL, PREDICT, DATASETS, f"{RUNS}/x/save"])
async def test_client_that_leaves_within_its_body_is_no_500(service, path, caplog):
    service.observer = witness = Witness()
    app = build_web_app(service)
    headers = {"content-type": "text/csv" if path == DATASETS else "application/json"}
    exchange = await ask(app, http_scope(path=path, headers=headers), [part(b'{"a"', more=True), LEFT])
    assert exchange.status == 400
    assert witness.errors == []
    assert "Traceback" not in caplog.text


async def test_client_that_leaves_before_its_answer_is_no_failure_of_the_service():
    async def gone(message):
        raise OSError("the client is gone")

    witness = Witness()
    with pytest.raises(ConnectionError):
        await ask(edge_of(Reader(), witness=witness), http_scope(), [part(b"x")], send=gone)
    assert "SYSTEM_ERROR" not in [error.code for error in witness.errors]


# ── Headers ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [1, 10_000])
@pytest.mark.parametrize(("path", "status"), [(DATASETS, 431), (TRAIN, 400)])
async def test_ten_megabytes_of_headers_are_refused_in_the_dialect_of_the_route(client, count, path, status):
    headers = [(f"x-{n}", "x" * (10_000_000 // count)) for n in range(count)]
    response = await client.post(path, headers=headers)
    assert "65536 bytes" in failed(response, status, "HEADERS_TOO_LARGE")


# ── Compression ─────────────────────────────────────────────────────────────────────────────────────────────


def raw_deflate(data):
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


CODINGS = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress}
WHOLE = b'{"target_column": "kind"}' * 30


@settings(deadline=None)
@given(
    st.sampled_from(list(CODINGS)),
    st.lists(st.binary(max_size=60), min_size=1, max_size=12),
    st.integers(1, 40),
)
def test_compressed_body_arrives_as_it_was_however_it_is_cut(coding, pieces, size):
    data = b"".join(pieces)
    packed = CODINGS[coding](data)
    cut = [packed[start : start + size] for start in range(0, len(packed), size)]
    exchange, reader = asyncio.run(sent(*cut, encoding=coding))
    assert (exchange.status, reader.body) == (200, data)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=6), st.integers(1, 40))
def test_members_of_a_gzip_file_are_read_one_after_the_other(pieces, size):
    packed = b"".join(gzip.compress(piece) for piece in pieces)
    cut = [packed[start : start + size] for start in range(0, len(packed), size)]
    exchange, reader = asyncio.run(sent(*cut, encoding="gzip"))
    assert (exchange.status, reader.body) == (200, b"".join(pieces))


@pytest.mark.parametrize("encoding", ["GZIP", " gzip ", "Deflate"])
async def test_coding_is_read_in_any_case_and_its_headers_do_not_reach_the_app(encoding):
    packed = CODINGS[encoding.strip().lower()](WHOLE)
    exchange, reader = await sent(packed, encoding=encoding, **{"content-length": str(len(packed))})
    assert (exchange.status, reader.body) == (200, WHOLE)
    assert not {b"content-encoding", b"content-length"} & reader.headers.keys()


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
async def test_plain_bodies_stay_as_they_are(encoding):
    exchange, reader = await sent(WHOLE, encoding=encoding)
    assert (exchange.status, reader.body) == (200, WHOLE)


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "gzip,br", "x" * 5000, "ü\x80"])
async def test_unknown_codings_are_415(encoding):
    exchange, _ = await sent(WHOLE, encoding=encoding)
    assert exchange.outcome == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert len(exchange.json["detail"]) < 150


async def test_two_headers_of_codings_are_not_taken_for_one():
    scope = http_scope(headers=[("content-encoding", "identity"), ("content-encoding", "gzip")])
    exchange = await ask(edge_of(Reader()), scope, parts(gzip.compress(WHOLE)))
    assert exchange.outcome == (415, "UNSUPPORTED_MEDIA_TYPE")


NOT_COMPRESSED = {
    "plain": WHOLE,
    "empty": b"",
    "truncated": gzip.compress(WHOLE)[:-1],
    "header alone": gzip.compress(b"")[:10],
    "damaged": gzip.compress(WHOLE)[:-8] + b"\0" * 8,
    "trailing garbage": gzip.compress(WHOLE) + b"garbage",
    "second member truncated": gzip.compress(WHOLE) + gzip.compress(WHOLE)[:-1],
    "zlib": zlib.compress(WHOLE),
    "raw deflate": raw_deflate(WHOLE),
}


@pytest.mark.parametrize("body", NOT_COMPRESSED.values(), ids=NOT_COMPRESSED)
@pytest.mark.parametrize("cut", [True, False])
async def test_body_that_is_no_gzip_is_400(body, cut):
    bodies = [body[:20], body[20:]] if cut else [body]
    exchange, _ = await sent(*bodies, encoding="gzip")
    assert exchange.outcome == (400, "MALFORMED_BODY")


@pytest.mark.parametrize(
    "body",
    [WHOLE, gzip.compress(WHOLE), raw_deflate(WHOLE), zlib.compress(WHOLE) + b"x", zlib.compress(WHOLE) * 2],
)
async def test_body_that_is_no_deflate_is_400(body):
    exchange, _ = await sent(body, encoding="deflate")
    assert exchange.outcome == (400, "MALFORMED_BODY")


@pytest.mark.parametrize("cut", [1 << 20, 100])
async def test_bomb_is_stopped_once_it_inflates_beyond_the_limit(cut):
    bomb = gzip.compress(b"0" * (64 << 20))
    reader = Reader()
    bodies = parts(*[bomb[start : start + cut] for start in range(0, len(bomb), cut)])
    exchange = await ask(edge_of(reader), http_scope(headers={"content-encoding": "gzip"}), bodies)
    assert exchange.outcome == (413, "PAYLOAD_TOO_LARGE")
    assert exchange.taken <= 11


async def test_bomb_within_a_bomb_is_just_bytes():
    exchange, reader = await sent(gzip.compress(gzip.compress(b"0" * 100_000)), encoding="gzip")
    assert (exchange.status, gzip.decompress(reader.body)) == (200, b"0" * 100_000)


ENDLESS = {
    "bytes behind the end": (gzip.compress(WHOLE), itertools.repeat(b"x" * 100)),
    "members of nothing": (gzip.compress(b""), itertools.repeat(gzip.compress(b""))),
    "one header": (b"\x1f\x8b\x08\x08\0\0\0\0\0\x03", itertools.repeat(b"name" * 25)),
}


@pytest.mark.parametrize("body", ENDLESS.values(), ids=ENDLESS)
async def test_compressed_body_without_end_is_stopped(body):
    first, rest = body
    messages = (part(piece, more=True) for piece in itertools.chain([first], rest))
    scope = http_scope(headers={"content-encoding": "gzip"})
    exchange = await ask(edge_of(Reader()), scope, messages)
    assert exchange.status in (400, 413)
    assert exchange.taken < 100


async def test_reader_of_a_compressed_body_learns_that_the_client_left():
    seen = []

    async def app(scope, receive, send):
        while not seen or seen[-1]["type"] != "http.disconnect":
            seen.append(await receive())
        await Response()(scope, receive, send)

    scope = http_scope(headers={"content-encoding": "gzip"})
    await ask(edge_of(app), scope, [*parts(gzip.compress(WHOLE)), LEFT])
    assert [message["type"] for message in seen] == ["http.request", "http.disconnect"]


async def test_answer_may_stream_to_a_request_that_came_compressed():
    async def app(scope, receive, send):
        assert await Request(scope, receive).body() == WHOLE

        async def numbers():
            for number in range(3):
                await asyncio.sleep(0)
                yield str(number)

        await StreamingResponse(numbers())(scope, receive, send)

    scope = http_scope(headers={"content-encoding": "gzip"})
    exchange = await ask(edge_of(app), scope, parts(gzip.compress(WHOLE)))
    assert exchange.body == b"012"


# ── Slowness ────────────────────────────────────────────────────────────────────────────────────────────────


async def slow(clock, bodies, **pace):
    scope = http_scope()
    return await ask(edge_of(Reader(), clock, **pace), scope, parts(*bodies))


async def test_body_that_comes_too_slowly_is_408_with_a_hint():
    exchange = await slow(Ticks(step=1), [b"x"] * 100, body_idle_s=30, body_bytes_per_s=10)
    assert exchange.outcome == (408, "REQUEST_TIMEOUT")
    assert exchange.headers["retry-after"] == "1"
    assert 30 < exchange.taken < 40


async def test_body_that_is_fast_enough_may_take_its_time():
    exchange = await slow(Ticks(step=1), [b"x" * 10] * 90, body_idle_s=30, body_bytes_per_s=10)
    assert exchange.status == 200


async def test_body_is_not_judged_before_the_time_of_one_pause():
    exchange = await slow(Ticks(step=1), [b""] * 25, body_idle_s=30, body_bytes_per_s=1000)
    assert exchange.status == 200


async def test_body_that_stands_still_is_408():
    scope = http_scope()
    edge = edge_of(Reader(), body_idle_s=0.01)
    exchange = await ask(edge, scope, [part(b"x", more=True)])
    assert exchange.outcome == (408, "REQUEST_TIMEOUT")


async def test_client_may_wait_for_its_answer_as_long_as_it_takes():
    async def app(scope, receive, send):
        assert (await receive())["body"] == b"x"
        waiting = asyncio.create_task(receive())
        await asyncio.sleep(0.05)  # several times what a body may stand still
        assert not waiting.done()
        waiting.cancel()
        await Response()(scope, receive, send)

    assert (await ask(edge_of(app, body_idle_s=0.01), http_scope(), [part(b"x")])).status == 200


async def test_silent_clients_are_408_in_the_dialect_of_the_route(tmp_path):
    app = build_web_app(local_service(settings_in(tmp_path, edge=EdgeSettings(body_idle_s=0.01))))
    for path, status in ((DATASETS, 408), (PREDICT, 408), (TRAIN, 400)):
        scope = http_scope(path=path, headers={"content-type": "text/csv"})
        exchange = await ask(app, scope, [part(b"a,b\n", more=True)])
        assert exchange.outcome == (status, "REQUEST_TIMEOUT")
    assert exchange.json.keys() == {"status", "error"}


# ── Through the whole service ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("coding", CODINGS)
async def test_compressed_upload_is_the_dataset_that_it_inflates_to(client, coding):
    plain = await upload(client)
    packed = CODINGS[coding](EXAMPLE_CSV.encode())
    headers = {"content-type": "text/csv", "content-encoding": coding}
    response = await client.post(DATASETS, content=packed, headers=headers, params={"name": "trees.csv"})
    assert (response.status_code, response.json()["dataset_id"]) == (200, plain)


@pytest.mark.parametrize("coding", [None, *CODINGS])
@pytest.mark.parametrize("size", [7, 10**6])
async def test_multipart_upload_passes_all_guards(client, coding, size):
    form = (
        b"--b\r\ncontent-disposition: form-data; name=file; filename=trees.csv\r\n"
        b"content-type: text/csv\r\n\r\n" + EXAMPLE_CSV.encode() + b"\r\n--b--\r\n"
    )
    packed = CODINGS[coding](form) if coding else form
    headers = {"content-type": "multipart/form-data; boundary=b", "idempotency-key": "k"}
    headers |= {"content-encoding": coding} if coding else {}

    async def stream():
        for start in range(0, len(packed), size):
            yield packed[start : start + size]

    response = await client.post(DATASETS, content=stream(), headers=headers)
    assert response.status_code == 201
    assert response.json()["rows"] == 60
    again = await client.post(DATASETS, content=stream(), headers=headers)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.content == response.content


async def test_events_are_streamed_to_a_request_that_came_compressed(client):
    payload = {"dataset_id": await upload(client), "target_column": "kind", "epochs": 2, "hidden_dim": 8}
    response = await client.post(
        TRAIN,
        content=gzip.compress(json.dumps(payload).encode()),
        headers={"content-encoding": "gzip", "accept": "text/event-stream"},
    )
    assert response.status_code == 200
    assert "event: result" in response.text
