"""What Serve's server reads before any application: malformed requests and heads without an end."""

import json
import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn

from core.catalogue import CATALOGUE
from deployments.http_protocol import HEAD_BYTES, GuardedHttp


async def application(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(application, http=GuardedHttp, lifespan="off", log_level="critical")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield listening.getsockname()
    server.should_exit = True
    thread.join()


def talk(address, *parts: bytes) -> bytes:
    """Everything that the server says to these bytes."""
    with socket.create_connection(address, timeout=20) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except (BrokenPipeError, ConnectionResetError):
                break
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except ConnectionResetError:
            pass
        return answer


def refusal(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
    code = lines["x-error-code"].upper()
    assert lines["x-error-type"] == CATALOGUE[code].type
    assert lines["x-request-id"]
    assert json.loads(body).keys() == {"detail"}
    return int(head.split()[1]), code


GET = b"GET / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01 no http at all\r\n\r\n",
        GET + b"Content-Length: -1\r\n\r\n",
        GET + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n",
    ],
)
def test_malformed_requests_are_refused_in_our_words(address, request_bytes):
    assert refusal(talk(address, request_bytes)) == (400, "MALFORMED_BODY")


def test_head_without_an_end_is_refused_when_it_is_too_long(address):
    parts = [GET + b"X-A: ", *[b"a" * 65536] * (2 * HEAD_BYTES // 65536)]
    answer = talk(address, *parts)
    assert not answer or refusal(answer) == (431, "HEADERS_TOO_LARGE")  # a reset may overtake the answer


def test_requests_pass_one_after_the_other_with_large_bodies_between(address):
    body = b"b" * (2 * HEAD_BYTES)
    post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = talk(address, post + body, post + body, GET + b"Connection: close\r\n\r\n")
    assert answer.count(b"200 OK") == 3
