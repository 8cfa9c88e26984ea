"""One catalogue of errors, four ways to write one down (contract, section 2)."""

import json

import pytest
from ray import cloudpickle

import core.errors
from core.catalogue import CATALOGUE, ErrorType, Severity, entry_of
from core.errors import MethodNotAllowedError, RunNotFoundError, SchemaError, StillhouseError, without_paths
from deployments.dialects import handler_answer, render
from tests.deployments.local import DISTILL, PROBLEM, TRAIN

DETAIL_ROUTES = ("/api/v1/datasets", "/api/v1/runs/x", "/health", "/nowhere", "/api/v1/train/deeper")
HANDLER_STATUSES = {400, 401, 404, 405, 413, 429, 503}


def subclasses(error):
    return [error, *(deeper for child in error.__subclasses__() for deeper in subclasses(child))]


ERRORS = [error for error in subclasses(StillhouseError) if error.__module__ == core.errors.__name__]
every_error = pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
every_entry = pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: entry.code)


@every_error
def test_every_error_has_an_entry_of_its_own(error):
    assert entry_of(error("…")).code == error.code
    assert [other for other in ERRORS if other.code == error.code] == [error]


def test_every_entry_has_an_error():
    assert CATALOGUE.keys() == {error.code for error in ERRORS}


@every_error
def test_every_error_is_in_the_drawn_tree(error):
    assert f" {error.__name__} " in core.errors.__doc__.replace("\n", " ")


@every_entry
def test_entries_speak_to_people(entry):
    for text in (entry.message, entry.suggested_action):
        assert 10 < len(text) < 100
        assert text[0].isupper()
        assert text.endswith(".")
    assert entry.code == entry.code.upper()
    assert entry.type in ErrorType
    assert entry.severity in Severity


@every_entry
def test_entries_that_blame_the_user_do_not_ask_to_wait(entry):
    if entry.type is ErrorType.USER_ERROR:
        assert not entry.retryable
        assert 400 <= entry.status < 500
    if entry.type is ErrorType.TRANSIENT:
        assert entry.retryable


@every_error
@pytest.mark.parametrize("path", [TRAIN, DISTILL, f"{TRAIN}/"])
def test_handler_dialect_is_status_and_error_and_nothing_else(error, path):
    rendered = render(error("What happened."), path, None, "id-1")
    assert rendered.status in HANDLER_STATUSES
    assert rendered.body.keys() == {"status", "error"}
    assert rendered.body["status"] == "error"
    assert rendered.media_type == "application/json"
    if error is not RunNotFoundError:
        assert rendered.body["error"] == "What happened."


@every_error
def test_handlers_answer_as_http_does(error):
    raised = error("What happened.")
    rendered = render(raised, TRAIN, None, "id-1")
    assert handler_answer(raised) == (rendered.status, rendered.body)


def test_handlers_say_404_of_a_teacher_run_alone_in_fixed_words():
    found = {error for error in ERRORS if handler_answer(error("…"))[0] == 404}
    assert found == {RunNotFoundError}
    body = {"status": "error", "error": "Teacher run not found or expired."}
    assert handler_answer(RunNotFoundError("There is no run 'x'.")) == (404, body)


@every_error
@pytest.mark.parametrize("path", DETAIL_ROUTES)
def test_detail_dialect_is_the_message_with_the_status_of_the_catalogue(error, path):
    rendered = render(error("What happened."), path, "application/json", "id-1")
    assert (rendered.status, rendered.body) == (CATALOGUE[error.code].status, {"detail": "What happened."})


@every_error
@pytest.mark.parametrize("path", [TRAIN, DISTILL, *DETAIL_ROUTES])
@pytest.mark.parametrize("accept", [PROBLEM, f"application/json;q=0.5, {PROBLEM}"])
def test_problem_details_keep_the_status_of_the_route(error, path, accept):
    raised, entry = error("What happened."), CATALOGUE[error.code]
    plain, problem = (render(raised, path, wanted, "id-1") for wanted in (None, accept))
    assert problem.status == plain.status
    assert problem.headers == plain.headers
    assert problem.media_type == PROBLEM
    assert problem.body == {
        "type": f"/api/v1/errors#{entry.code}",
        "title": entry.message,
        "status": plain.status,
        "detail": "What happened.",
        "code": entry.code,
        "retryable": entry.retryable,
        "suggested_action": entry.suggested_action,
        "trace_id": "id-1",
    }


@every_error
@pytest.mark.parametrize("path", [TRAIN, "/api/v1/datasets"])
def test_headers_name_code_and_type_and_when_to_come_back(error, path):
    entry, headers = CATALOGUE[error.code], render(error("…"), path, None, "id-1").headers
    assert headers["X-Error-Code"] == entry.code
    assert headers["X-Error-Type"] == entry.type
    assert headers.get("Retry-After") == (str(entry.retry_after_s) if entry.retryable else None)
    assert ("WWW-Authenticate" in headers) == (entry.status == 401)


def test_allowed_methods_are_a_header():
    error = MethodNotAllowedError("…", allow="GET, POST")
    assert render(error, "/api/v1/datasets", None, "id-1").headers["Allow"] == "GET, POST"


def violation(value):
    return {"type": "int_type", "loc": ("body", "rows", 0), "msg": "must be an integer", "input": value}


@pytest.mark.parametrize("value", [None, True, 7, 0.5, "short"])
def test_schema_errors_are_an_array_with_short_inputs(value):
    rendered = render(SchemaError("…", violations=[violation(value)]), "/api/v1/predict", None, "id-1")
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
        body = render(error, "/api/v1/predict", accept, "id-1").body
        text = json.dumps(body, allow_nan=False)
        assert len(text) < 1000
        assert '"input": null' in text


@every_error
def test_errors_survive_the_way_through_ray_with_message_and_details(error):
    details = {"field": "epochs", "line": 3, "missing": ["a", "b"]}
    copy = cloudpickle.loads(cloudpickle.dumps(error("What happened.", **details)))
    assert type(copy) is error
    assert (copy.message, str(copy), copy.details) == ("What happened.", "What happened.", details)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("cannot open /srv/data/x.csv (denied)", "cannot open <path> (denied)"),
        ("[Errno 2] No such file: '/home/a b/x'", "[Errno 2] No such file: '<path> b/x'"),
        (r"C:\data\secret\x.csv is locked", "<path> is locked"),
        ("file:///srv/data/x.csv", "file://<path>"),
        ("input/output error, 1/2 of the rows", "input/output error, 1/2 of the rows"),
    ],
)
def test_foreign_messages_lose_their_paths(text, clean):
    assert without_paths(text) == clean
