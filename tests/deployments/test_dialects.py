"""One catalogue of errors, four ways to write one down (contract, section 2)."""

import json
from datetime import datetime

import pytest

from core.errors import (
    CircuitOpenError,
    CudaOutOfMemoryError,
    MethodNotAllowedError,
    ParameterError,
    RateLimitedError,
    RunNotFoundError,
    SchemaError,
    StorageError,
)
from deployments.dialects import Asked, handler_answer, render
from tests.deployments.local import DISTILL, ERRORS, PROBLEM, TRAIN

JOBS = "/api/v1/training-jobs"
DETAIL_ROUTES = ("/api/v1/datasets", "/api/v1/runs/x", "/health", "/nowhere", "/api/v1/train/deeper")
PLATFORM_ROUTES = (JOBS, f"{JOBS}/x/events", "/ws/training-jobs/x")
HANDLER_STATUSES = {400, 401, 403, 404, 405, 413, 429, 503}
every_error = pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)


def asked(path, accept=None):
    return Asked(path, accept, "request-1", "trace-1")


@every_error
@pytest.mark.parametrize("path", [TRAIN, DISTILL, f"{TRAIN}/"])
def test_handler_dialect_is_status_and_error_and_nothing_else(error, path):
    rendered = render(error("What happened."), asked(path))
    assert rendered.status in HANDLER_STATUSES
    assert rendered.body.keys() == {"status", "error"}
    assert rendered.body["status"] == "error"
    assert rendered.media_type == "application/json"
    if error is not RunNotFoundError:
        assert rendered.body["error"] == "What happened."


@every_error
def test_handlers_answer_as_http_does(error):
    raised = error("What happened.")
    rendered = render(raised, asked(TRAIN))
    assert handler_answer(raised) == (rendered.status, rendered.body)


def test_handlers_say_404_of_a_teacher_run_alone_in_fixed_words():
    found = {error for error in ERRORS if handler_answer(error("…"))[0] == 404}
    assert found == {RunNotFoundError}
    body = {"status": "error", "error": "Teacher run not found or expired."}
    assert handler_answer(RunNotFoundError("There is no run 'x'.")) == (404, body)


@every_error
@pytest.mark.parametrize("path", DETAIL_ROUTES)
def test_detail_dialect_is_the_message_with_the_status_of_the_catalogue(error, path):
    raised = error("What happened.")
    rendered = render(raised, asked(path, "application/json"))
    expected = {"detail": "What happened."}
    if raised.status == 429:
        expected["retry_after"] = raised.entry.retry_after_s
    assert (rendered.status, rendered.body) == (raised.status, expected)


@every_error
@pytest.mark.parametrize("path", PLATFORM_ROUTES)
def test_platform_dialect_is_one_object_with_all_that_the_catalogue_knows(error, path):
    raised = error("What happened.", field="epochs")
    rendered = render(raised, asked(path))
    body = rendered.body["error"]
    assert rendered.body.keys() == {"error"}
    assert rendered.status == raised.status
    assert body["code"] == raised.code
    assert (body["type"], body["severity"]) == (raised.error_type, raised.severity)
    assert (body["retryable"], body["retry_mode"]) == (raised.retryable, raised.retry_mode)
    assert len(body["message"]) < 100
    assert body["suggested_action"]
    assert body["param"] == "epochs"
    assert (body["trace_id"], body["request_id"]) == ("trace-1", "request-1")
    assert datetime.fromisoformat(body["timestamp"]).utcoffset().total_seconds() == 0
    assert body["doc_url"] == f"/docs/errors/{raised.code}"
    json.dumps(body, allow_nan=False)


def test_platform_says_nothing_of_the_particulars_of_system_errors():
    body = render(StorageError("Bucket x of host y is on fire."), asked(JOBS)).body["error"]
    assert body["message"] == "Storage could not be read or written."


def test_platform_fills_the_advice_with_the_details():
    body = render(CudaOutOfMemoryError(batch_size=512, allocated_bytes=7), asked(JOBS)).body["error"]
    assert "512" in body["suggested_action"]
    assert body["context"] == {"batch_size": 512, "allocated_bytes": 7}


def test_platform_repeats_no_secret_and_no_row():
    error = ParameterError("Invalid.", token="s3cret", rows=[[1, 2]], nested={"Password": "x"})  # noqa: S106
    text = json.dumps(render(error, asked(JOBS)).body)
    assert "s3cret" not in text
    assert "[1, 2]" not in text
    assert '"x"' not in text


@every_error
@pytest.mark.parametrize("path", [TRAIN, DISTILL, *DETAIL_ROUTES, *PLATFORM_ROUTES])
@pytest.mark.parametrize("accept", [PROBLEM, f"application/json;q=0.5, {PROBLEM}"])
def test_problem_details_keep_the_status_of_the_route(error, path, accept):
    raised = error("What happened.")
    plain, problem = (render(raised, asked(path, wanted)) for wanted in (None, accept))
    assert problem.status == plain.status
    assert problem.headers == plain.headers
    assert problem.media_type == PROBLEM
    assert problem.body == {
        "type": f"/docs/errors/{raised.code}",
        "title": raised.entry.message_for({}),
        "status": plain.status,
        "detail": "What happened.",
        "code": raised.code,
        "retryable": raised.retryable,
        "suggested_action": raised.suggested_action,
        "trace_id": "trace-1",
        **({"retry_after": raised.entry.retry_after_s} if plain.status == 429 else {}),
    }


@every_error
@pytest.mark.parametrize("path", [TRAIN, "/api/v1/datasets", JOBS])
def test_headers_name_code_and_type_and_when_to_come_back(error, path):
    raised = error("…")
    headers = render(raised, asked(path)).headers
    assert headers["X-Error-Code"] == raised.code
    assert headers["X-Error-Type"] == raised.error_type
    seconds = raised.retry_after_s
    assert headers.get("Retry-After") == (None if seconds is None else str(int(seconds)))
    assert ("WWW-Authenticate" in headers) == (raised.status == 401)


def test_an_error_that_knows_better_when_to_come_back_is_believed():
    rendered = render(RateLimitedError("…", retry_after=12.2), asked("/api/v1/runs"))
    assert rendered.headers["Retry-After"] == "13"
    assert rendered.body == {"detail": "…", "retry_after": 13}
    assert render(CircuitOpenError(service="s", retry_after=0.1), asked(TRAIN)).headers["Retry-After"] == "1"


def test_allowed_methods_are_a_header():
    error = MethodNotAllowedError("…", allow="GET, POST")
    assert render(error, asked("/api/v1/datasets")).headers["Allow"] == "GET, POST"


def violation(value):
    return {"type": "int_type", "loc": ("body", "rows", 0), "msg": "must be an integer", "input": value}


@pytest.mark.parametrize("value", [None, True, 7, 0.5, "short"])
def test_schema_errors_are_an_array_with_short_inputs(value):
    rendered = render(SchemaError("…", violations=[violation(value)]), asked("/api/v1/predict"))
    assert rendered.status == 422
    assert rendered.body == {"detail": [violation(value) | {"loc": ["body", "rows", 0]}]}


@pytest.mark.parametrize(
    "value",
    ["x" * 100, b"raw", ["a row"], {"a": "row"}, float("nan"), float("inf"), 10**400, object()],
    ids=["long", "bytes", "list", "object", "nan", "inf", "huge", "other"],
)
def test_schema_errors_leave_out_inputs_that_are_long_or_no_json(value):
    error = SchemaError("…", violations=[violation(value)])
    for accept in (None, PROBLEM):
        body = render(error, asked("/api/v1/predict", accept)).body
        text = json.dumps(body, allow_nan=False)
        assert len(text) < 1000
        assert '"input": null' in text
