"""What Serve's proxy would say in plain text is said in the dialect of the route."""

import httpx
import pytest

from deployments.refusals import OwnWords
from tests.deployments.local import PROBLEM, TRAIN, failed

pytestmark = pytest.mark.anyio


def saying(status, headers=(), body=b"Internal Server Error"):
    async def app(scope, receive, send):
        raw = [(b"content-type", b"text/plain"), (b"x-request-id", b"id-1"), *headers]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body[:3], "more_body": True})
        await send({"type": "http.response.body", "body": body[3:]})

    return httpx.AsyncClient(transport=httpx.ASGITransport(OwnWords(app)), base_url="http://stillhouse")


@pytest.mark.parametrize(
    ("status", "path", "accept", "expected", "code"),
    [
        (503, "/api/v1/runs", None, 503, "SERVICE_UNAVAILABLE"),
        (404, "/api/v1/runs", None, 503, "SERVICE_UNAVAILABLE"),
        (503, TRAIN, None, 503, "SERVICE_UNAVAILABLE"),
        (429, TRAIN, None, 503, "SERVICE_OVERLOADED"),
        (408, "/api/v1/predict", None, 504, "OPERATION_TIMEOUT"),
        (408, TRAIN, None, 400, "OPERATION_TIMEOUT"),
        (500, "/api/v1/predict", PROBLEM, 503, "SERVICE_UNAVAILABLE"),
        (500, TRAIN, None, 503, "SERVICE_UNAVAILABLE"),
    ],
)
async def test_plain_text_of_serve_becomes_an_error_of_ours(status, path, accept, expected, code):
    async with saying(status) as client:
        response = await client.request(
            "POST", path, headers={"accept": accept} if accept else {}, content=b""
        )
    failed(response, expected, code)
    assert response.headers["x-request-id"] == "id-1"
    assert response.headers["x-trace-id"]


@pytest.mark.parametrize("header", [(b"x-error-code", b"NOT_FOUND"), (b"x-trace-id", b"00ff")])
async def test_answers_of_the_application_pass(header):
    async with saying(404, [header], b"ours, whole") as client:
        response = await client.get("/api/v1/runs")
    assert (response.status_code, response.text) == (404, "ours, whole")


@pytest.mark.parametrize(("status", "path"), [(200, "/api/v1/runs"), (503, "/-/healthz")])
async def test_success_and_addresses_of_serve_pass(status, path):
    async with saying(status) as client:
        response = await client.get(path)
    assert (response.status_code, response.text) == (status, "Internal Server Error")


@pytest.mark.parametrize(("path", "accept"), [(TRAIN, None), ("/api/v1/predict", None), (TRAIN, PROBLEM)])
async def test_request_that_died_with_the_ingress_is_answered_all_the_same(path, accept):
    """Serve's proxy then returns without a message, and the server below would say 500 in plain text."""

    async def silent(scope, receive, send):
        pass

    transport = httpx.ASGITransport(OwnWords(silent))
    async with httpx.AsyncClient(transport=transport, base_url="http://stillhouse") as client:
        response = await client.post(path, headers={"accept": accept} if accept else {})
    failed(response, 503, "SERVICE_UNAVAILABLE")
