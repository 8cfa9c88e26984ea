"""Failures of the service arrive as the classes that raised them, and passing ones are tried again."""

import json
import re

import httpx
import pytest

import core.errors
import stillhouse
from core.catalogue import CATALOGUE, ErrorType
from core.errors import RunNotFoundError, StillhouseError, TrainingStoppedError, class_of
from deployments.dialects import Asked, render
from deployments.trainer import Trainer
from stillhouse import Patience, failure_of
from stillhouse.failures import UNAVAILABLE, error_of_answer
from stillhouse.retries import FIRST_WAIT_S, LONGEST_WAIT_S, Attempts
from tests.client.service import over
from tests.deployments.local import EXAMPLE_CSV, PROBLEM, QUICK, local_service

LIMITS, TRAIN = "/api/v1/limits", "/api/v1/train"
PAGE = {"data": [], "has_more": False, "next_cursor": None}


def subclasses(error):
    return [error, *(deeper for child in error.__subclasses__() for deeper in subclasses(child))]


OURS = [error for error in subclasses(StillhouseError) if error.__module__.startswith(core.errors.__name__)]
ERRORS = [error for error in OURS if class_of(error.code) is error]  # what a client can tell apart
UnavailableError = next(error for error in ERRORS if error.code == UNAVAILABLE)
every_error = pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)


def failing(error: StillhouseError, path: str = LIMITS, accept: str | None = PROBLEM) -> httpx.Response:
    rendered = render(error, Asked(path, accept, "request-7", "trace-7"))
    headers = rendered.headers | {"X-Request-ID": "request-7", "Content-Type": rendered.media_type}
    return httpx.Response(rendered.status, headers=headers, content=json.dumps(rendered.body).encode())


def action_of(error: type[StillhouseError]) -> str:
    return error("This must hold.", allow="GET").suggested_action


# ── Classes ─────────────────────────────────────────────────────────────────────────────────────────────────


@every_error
@pytest.mark.parametrize("path", [LIMITS, TRAIN])
@pytest.mark.parametrize("accept", [PROBLEM, None])
def test_every_error_arrives_as_its_own_class_in_every_dialect(error, path, accept):
    answer = failing(error("This must hold.", allow="GET"), path, accept)
    raised = error_of_answer(answer.status_code, answer.headers, answer.content)
    entry = CATALOGUE[error.code]
    assert type(raised) is error
    if path == LIMITS or error is not RunNotFoundError:
        assert str(raised) == raised.message == "This must hold."
    assert (raised.code, raised.type, raised.status) == (error.code, entry.type, answer.status_code)
    assert (raised.retryable, raised.retry_after_s) == (entry.retryable, entry.retry_after_s)
    assert (raised.suggested_action, raised.request_id) == (action_of(error), "request-7")


@every_error
def test_what_is_known_of_an_error_is_the_same_typed(error):
    answer = failing(error("This must hold."))
    raised = error_of_answer(answer.status_code, answer.headers, answer.content)
    assert failure_of(raised) == stillhouse.Failure(
        error.code,
        CATALOGUE[error.code].type,
        "This must hold.",
        answer.status_code,
        CATALOGUE[error.code].retryable,
        CATALOGUE[error.code].retry_after_s,
        action_of(error),
        "request-7",
    )


def test_error_of_a_later_service_is_a_plain_one_with_what_was_told():
    body = {"detail": "Too hot.", "code": "TOO_HOT", "retryable": True, "suggested_action": "Let it cool."}
    headers = httpx.Headers({"X-Error-Type": "transient", "Retry-After": "3"})
    raised = error_of_answer(503, headers, json.dumps(body).encode())
    assert type(raised) is StillhouseError
    assert (raised.code, raised.type, raised.retryable) == ("TOO_HOT", "transient", True)
    assert (raised.retry_after_s, raised.suggested_action) == (3.0, "Let it cool.")


def test_schema_errors_say_which_field_is_wrong(client):
    with pytest.raises(core.errors.SchemaError) as raised:
        client.predict_rows([{"length": 1}])
    assert raised.value.details["violations"]


def test_schema_errors_without_a_problem_body_name_the_fields():
    body = {"detail": [{"type": "missing", "loc": ["body", "rows"], "msg": "Field required", "input": None}]}
    raised = error_of_answer(
        422, httpx.Headers({"X-Error-Code": "SCHEMA_VIOLATION"}), json.dumps(body).encode()
    )
    assert raised.message == "body.rows: Field required"


@pytest.mark.parametrize(
    ("status", "expected", "retryable"),
    [(502, UnavailableError, True), (404, StillhouseError, False), (500, StillhouseError, False)],
)
def test_answers_of_something_in_between_are_errors_too(status, expected, retryable):
    raised = error_of_answer(status, httpx.Headers(), b"<html>Bad gateway</html>")
    assert isinstance(raised, expected)
    assert (raised.retryable, raised.status) == (retryable, status)
    assert str(status) in raised.message


def test_unknown_run_is_not_found(client):
    with pytest.raises(RunNotFoundError, match="no run") as raised:
        client.runs.get("a?b=c#d")
    assert (raised.value.status, raised.value.code) == (404, "RUN_NOT_FOUND")
    assert re.fullmatch(r"[0-9a-f-]{36}", raised.value.request_id)


def test_answer_of_another_service_is_not_understood(scripted):
    client, _ = scripted(httpx.Response(200, content=b"<html>Welcome</html>"))
    with pytest.raises(StillhouseError, match="must be a Stillhouse service"):
        client.limits()


class BrokenTrainer(Trainer):
    def _train(self, work, request):
        raise ZeroDivisionError("nothing left to divide by")


@pytest.mark.parametrize("progress", [None, lambda _: None])
def test_failed_training_is_the_same_error_with_and_without_progress(connect, settings, progress):
    client = connect(over(local_service(settings, trainer=BrokenTrainer)))
    dataset = client.datasets.upload(EXAMPLE_CSV.encode(), name="trees.csv")
    with pytest.raises(core.errors.TrainingError, match="nothing left") as raised:
        client.train(dataset_id=dataset.dataset_id, progress=progress, **QUICK)
    assert (raised.value.status, raised.value.retryable) == (400, False)
    assert raised.value.request_id


# ── Further attempts ────────────────────────────────────────────────────────────────────────────────────────


def test_passing_failure_is_tried_again_after_the_time_it_asks_for(scripted, clock):
    told: list[tuple[str, float]] = []
    client, requests = scripted(
        failing(UnavailableError("Wait.")),
        httpx.Response(200, json=PAGE),
        on_retry=lambda error, wait_s: told.append((error.code, wait_s)),
    )
    assert list(client.runs.list()) == []
    retry_after_s = CATALOGUE[UNAVAILABLE].retry_after_s
    assert clock.slept == [retry_after_s + FIRST_WAIT_S]
    assert told == [(UNAVAILABLE, retry_after_s + FIRST_WAIT_S)]
    assert len(requests) == 2


@pytest.mark.parametrize(
    "code",
    [code for code, entry in CATALOGUE.items() if entry.type in (ErrorType.USER_ERROR, ErrorType.PERMANENT)],
)
def test_lasting_failure_is_not_tried_again(scripted, clock, code):
    error = next(error for error in ERRORS if error.code == code)
    client, requests = scripted(failing(error("Never.", allow="GET")))
    with pytest.raises(error):
        client.limits()
    assert (len(requests), clock.slept) == (1, [])


@pytest.mark.parametrize(
    "broken", [httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.ReadTimeout("late")]
)
def test_broken_connection_is_tried_again(scripted, clock, broken):
    client, requests = scripted(broken, broken, httpx.Response(200, json=PAGE))
    assert list(client.runs.list()) == []
    assert clock.slept == [FIRST_WAIT_S, 2 * FIRST_WAIT_S]
    assert len(requests) == 3


@pytest.mark.parametrize("broken", [httpx.ReadError("reset"), httpx.ReadTimeout("late")])
def test_delete_that_was_done_without_an_answer_has_succeeded(scripted, broken):
    client, requests = scripted(broken, failing(RunNotFoundError("There is no run.")))
    assert client.runs.delete("r") is None
    assert len(requests) == 2


@pytest.mark.parametrize(
    "before", [httpx.ConnectError("refused"), failing(UnavailableError("Wait."))], ids=["unsent", "refused"]
)
def test_delete_of_what_never_was_there_fails(scripted, before):
    client, _ = scripted(before, failing(RunNotFoundError("There is no run.")))
    with pytest.raises(RunNotFoundError):
        client.runs.delete("r")


def test_service_that_never_answers_is_unavailable_in_the_end(scripted):
    client, requests = scripted(httpx.ConnectError("refused"), patience=Patience(attempts=3))
    with pytest.raises(UnavailableError, match="no connection could be made") as raised:
        client.limits()
    assert (raised.value.status, raised.value.type, len(requests)) == (None, "transient", 3)
    assert "stillhouse up" in raised.value.suggested_action


def test_no_attempt_begins_after_the_deadline(scripted, clock):
    patience = Patience(attempts=100, deadline_s=42.0)
    client, requests = scripted(failing(UnavailableError("Wait.")), patience=patience)
    with pytest.raises(UnavailableError):
        client.limits()
    assert clock.now < 42.0
    assert clock.now + CATALOGUE[UNAVAILABLE].retry_after_s + LONGEST_WAIT_S >= 42.0
    assert len(requests) == len(clock.slept) + 1 < 100


def test_waits_are_spread_evenly_from_nothing_to_a_doubling_bound():
    error = error_of_answer(503, httpx.Headers(), b"")
    for share in (0.0, 0.5, 1.0):
        attempts = Attempts(Patience(attempts=9, deadline_s=1e9), lambda: 0.0, lambda share=share: share)
        asked = CATALOGUE[UNAVAILABLE].retry_after_s
        waits = [attempts.wait_after(error) - asked for _ in range(8)]
        bounds = [0.25, 0.5, 1, 2, 4, 8, 10, 10]
        assert waits == pytest.approx([share * bound for bound in bounds])


# ── Idempotency ─────────────────────────────────────────────────────────────────────────────────────────────


def keys(requests: list[httpx.Request]) -> list[str | None]:
    return [request.headers.get("idempotency-key") for request in requests]


CREATING = {
    "upload": lambda client: client.datasets.upload(b"a\n1\n", name="a.csv"),
    "train": lambda client: client.train(dataset_id="x", target_column="y"),
    "distill": lambda client: client.distill(dataset_id="x", target_column="y", teacher_run_id="z"),
    "save": lambda client: client.runs.save("x"),
    "job": lambda client: client.jobs.train(dataset_id="x", target_column="y"),
    "retry": lambda client: client.jobs.retry("x"),
}


@pytest.mark.parametrize("create", CREATING.values(), ids=CREATING)
def test_what_creates_sends_one_key_over_all_attempts_of_a_call(scripted, create):
    stopped = failing(TrainingStoppedError("Again."))
    client, requests = scripted(stopped, httpx.ReadError("reset"), failing(core.errors.RequestError("No.")))
    for _ in range(2):
        with pytest.raises(core.errors.RequestError):
            create(client)
    first, *others = keys(requests)
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", first)
    assert others == [first, first, others[-1]]
    assert others[-1] not in (None, first)  # the second call is another
    assert len({request.content for request in requests}) == 1


def test_what_creates_nothing_sends_no_key(scripted):
    client, requests = scripted(failing(RunNotFoundError("Gone.")))
    for call in (client.limits, lambda: client.runs.delete("x"), lambda: client.predict_rows([], run_id="x")):
        with pytest.raises(RunNotFoundError):
            call()
    assert keys(requests) == [None, None, None]


# ── Streams ─────────────────────────────────────────────────────────────────────────────────────────────────


def stream(*reports: dict) -> httpx.Response:
    text = "".join(f"event: {report['event']}\ndata: {json.dumps(report)}\n\n" for report in reports)
    return httpx.Response(
        200, headers={"Content-Type": "text/event-stream", "X-Request-ID": "request-7"}, content=text.encode()
    )


def problem_event(error: StillhouseError) -> dict:
    answer = failing(error, TRAIN)
    return {"event": "error", "status_code": answer.status_code, "body": {}, "problem": answer.json()}


def test_error_that_ends_a_stream_is_tried_again_where_it_may_pass(scripted, clock):
    client, requests = scripted(
        stream({"event": "started", "run_id": "r"}, problem_event(TrainingStoppedError("Again."))),
        stream(problem_event(RunNotFoundError("Gone."))),
    )
    with pytest.raises(RunNotFoundError) as raised:
        client.train(progress=lambda _: None, dataset_id="x", target_column="y")
    assert clock.slept == [CATALOGUE[TrainingStoppedError.code].retry_after_s + FIRST_WAIT_S]
    assert raised.value.request_id == "request-7"
    assert len(set(keys(requests))) == 1
    assert {request.headers["accept"] for request in requests} == {f"text/event-stream, {PROBLEM}"}


def test_error_event_of_an_earlier_service_is_an_error_still(scripted):
    body = {"status": "error", "error": "No such column."}
    client, _ = scripted(stream({"event": "error", "status_code": 400, "body": body}))
    with pytest.raises(StillhouseError, match="No such column"):
        client.train(progress=lambda _: None, dataset_id="x", target_column="y")


def test_stream_that_breaks_off_is_a_broken_connection(scripted):
    client, requests = scripted(stream({"event": "started", "run_id": "r"}), patience=Patience(attempts=2))
    with pytest.raises(UnavailableError, match="the connection broke"):
        client.train(progress=lambda _: None, dataset_id="x", target_column="y")
    assert len(requests) == 2
