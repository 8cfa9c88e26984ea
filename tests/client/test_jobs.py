"""``client.jobs`` against the service in one process: filed, followed through broken streams, waited for."""

import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import uvicorn

import stillhouse
from core.errors import JobNotFoundError, ServiceUnavailableError
from deployments.dialects import Asked, platform_error
from deployments.routes.examples import EXAMPLE_CSV
from deployments.trainer import Trainer
from deployments.web import build_web_app
from stillhouse import Distilled, JobEnded, JobEvent, JobProgress, Patience, StatusChange, Trained, errors
from stillhouse.failures import UNAVAILABLE
from stillhouse.job_answers import event_of
from tests.client.service import over
from tests.deployments.local import QUICK, QUICK_STUDENT

NOW = "2026-01-02T03:04:05.678Z"
NO_MODEL = {"run_id": None, "model_id": None, "result": None}


@pytest.fixture
def dataset_id(client) -> str:
    return client.datasets.upload(EXAMPLE_CSV.encode(), name="trees.csv").dataset_id


@pytest.fixture
def job(client, dataset_id) -> stillhouse.Job:
    """One that has ended well."""
    return client.jobs.wait(client.jobs.train(dataset_id=dataset_id, **QUICK).job_id)


@pytest.fixture
def failed_job(client) -> stillhouse.Job:
    job = client.jobs.train(dataset_id="csv-none", **QUICK)
    with pytest.raises(errors.DatasetNotFoundError):
        client.jobs.wait(job.job_id)
    return client.jobs.get(job.job_id)


def without_progress(events) -> list[JobEvent]:
    return [event for event in events if not isinstance(event, JobProgress)]


# ── Filing ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_job_is_filed_with_its_options_and_ends_with_what_a_training_answers(client, dataset_id):
    options = {"experiment_name": "trees", "tags": ["a", "b"], "notes": "first", "priority": 3}
    filed = client.jobs.train(dataset_id=dataset_id, time_limit_s=60.0, **QUICK, **options)
    assert (filed.kind, filed.attempt, filed.ended, filed.result, filed.error) == (
        "train",
        1,
        False,
        None,
        None,
    )
    assert (filed.experiment_name, filed.tags, filed.notes) == ("trees", ("a", "b"), "first")
    assert (filed.priority, filed.time_limit_s, filed.total_epochs) == (3, 60.0, 3)
    assert abs(datetime.now(UTC) - filed.created_at) < timedelta(minutes=1)
    job = client.jobs.wait(filed.job_id)
    assert (job.status, job.progress_percent, type(job.result)) == ("completed", 100.0, Trained)
    assert job.result.metrics == client.train(dataset_id=dataset_id, **QUICK).metrics
    assert client.runs.get(job.run_id).metric.name == "accuracy"


def test_job_that_distils_compares_student_and_teacher(client, job, dataset_id):
    fields = QUICK_STUDENT | {"dataset_id": dataset_id, "teacher_run_id": job.run_id}
    student = client.jobs.wait(client.jobs.distill(**fields).job_id)
    assert isinstance(student.result, Distilled)
    assert (student.kind, student.result.teacher_output_dim) == ("distill", 2)
    again = client.jobs.create("distill", **fields)
    assert again.request == student.request


def test_job_that_is_wrong_is_refused_with_everything_that_is_wrong(client):
    with pytest.raises(errors.ValidationError, match="epochs") as raised:
        client.jobs.train(dataset_id="x", target_column="y", epochs=0, batch_size=0)
    assert (raised.value.status, raised.value.type) == (400, "user_error")
    assert {found["param"] for found in raised.value.details["violations"]} == {"epochs", "batch_size"}


def test_strict_job_without_its_data_is_refused_at_once(client):
    with pytest.raises(errors.DatasetNotFoundError) as raised:
        client.jobs.train(dataset_id="csv-none", strict=True, **QUICK)
    assert raised.value.status == 404


def test_validation_files_nothing_and_tells_everything(client, dataset_id):
    right = client.jobs.validate("train", dataset_id=dataset_id, **QUICK)
    assert (right.valid, right.errors, right.dataset["rows"]) == (True, (), 60)
    wrong = client.jobs.validate("train", dataset_id=dataset_id, epochs=0, test_size=2)
    assert not wrong.valid
    assert {error.param for error in wrong.errors} == {"epochs", "test_size"}
    assert list(client.jobs.list()) == []


# ── Looking ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_lists_walk_over_all_pages_and_can_be_narrowed(client, job, failed_job):
    many = [client.jobs.train(dataset_id="csv-none", project_id="p", **QUICK).job_id for _ in range(101)]
    listed = [found.job_id for found in client.jobs.list()]
    assert listed == [*reversed(many), failed_job.job_id, job.job_id]
    assert [found.job_id for found in client.jobs.list(project_id="p")] == listed[:101]
    assert [found.job_id for found in client.jobs.list(status="completed,cancelled")] == [job.job_id]
    assert list(client.jobs.list(created_after=datetime.now(UTC))) == []
    with pytest.raises(errors.ParameterError):
        list(client.jobs.list(status="asleep"))


def test_history_metrics_and_attempts_are_typed(client, job):
    events = list(client.jobs.events(job.job_id))
    assert [event.seq for event in events] == [1, 2, 3, 4]
    assert [event.new for event in events[:3]] == ["pending", "running", "completed"]
    assert isinstance(events[3], JobEnded)
    assert events[3].result == job.result
    assert list(client.jobs.events(job.job_id, after=3)) == events[3:]
    metrics = client.jobs.metrics(job.job_id)
    assert [epoch.epoch for epoch in metrics.data] == [1, 2, 3]
    assert metrics.data[-1].metrics["train_loss"] > 0
    [attempt] = client.jobs.attempts(job.job_id)
    assert (attempt.reason, attempt.outcome, attempt.error) == ("created", "completed", None)
    assert client.jobs.checkpoints(job.job_id) == ()


def test_unknown_job_is_not_found_everywhere(client):
    calls = [client.jobs.get, client.jobs.cancel, client.jobs.retry, client.jobs.wait, client.jobs.logs]
    calls += [
        lambda job_id: list(client.jobs.follow(job_id)),
        lambda job_id: list(client.jobs.events(job_id)),
    ]
    for call in calls:
        with pytest.raises(JobNotFoundError):
            call("a?b=c#d")


def test_events_of_a_later_service_are_told_as_they_are():
    frame = {"type": "moved", "job_id": "j", "attempt": 1, "seq": 7, "timestamp": NOW, "to": "the moon"}
    event = event_of(frame)
    assert (type(event), event.type, event.data["to"]) == (JobEvent, "moved", "the moon")
    change = event_of(frame | {"type": "status_change", "old": "running", "new": "paused"})
    assert isinstance(change, StatusChange)
    assert change.new == "paused"


# ── Ending and running again ────────────────────────────────────────────────────────────────────────────────


def test_waiting_for_a_failed_job_raises_what_it_failed_with(client, failed_job):
    with pytest.raises(errors.DatasetNotFoundError, match="csv-none") as raised:
        client.jobs.wait(failed_job.job_id)
    error = raised.value
    assert (error.code, error.type, error.retryable, error.status) == (
        "DATASET_NOT_FOUND",
        "permanent",
        False,
        None,
    )
    assert error.suggested_action == failed_job.error.suggested_action
    assert error.request_id == failed_job.trace_id
    assert error.details["job_id"] == failed_job.job_id


class GatedTrainer(Trainer):
    """Trains when the gate is opened; stops when asked to, as the real one between two steps."""

    gate: threading.Event

    def _train(self, work, request):
        while not self.gate.wait(0.01):
            if work.stopped.is_set():
                raise errors.TrainingStoppedError("The training was stopped.")
        return super()._train(work, request)


@pytest.fixture
def gated(serving):
    """A service whose trainings wait for the gate."""
    gate = threading.Event()
    yield serving(trainer=type("Gated", (GatedTrainer,), {"gate": gate})), gate
    gate.set()


def test_waiting_for_a_cancelled_job_says_that_it_was_cancelled(connect, gated):
    service, _ = gated
    client = connect(over(service))
    dataset = client.datasets.upload(EXAMPLE_CSV.encode(), name="trees.csv")
    filed = client.jobs.train(dataset_id=dataset.dataset_id, **QUICK)
    assert client.jobs.cancel(filed.job_id).status == "cancelled"
    with pytest.raises(errors.JobCancelledError) as raised:
        client.jobs.wait(filed.job_id)
    assert raised.value.suggested_action == "Retry the job to run it again."
    assert client.jobs.cancel(filed.job_id).status == "cancelled"


def test_ended_job_cannot_be_cancelled(client, job):
    with pytest.raises(errors.JobStateConflictError, match="completed") as raised:
        client.jobs.cancel(job.job_id)
    assert raised.value.status == 409


def test_retry_is_a_further_attempt_with_its_changes(client, job):
    again = client.jobs.retry(job.job_id, epochs=2)
    assert (again.job_id, again.attempt, again.request["epochs"]) == (job.job_id, 2, 2)
    assert client.jobs.wait(job.job_id).result.epochs_run == 2
    first, second = client.jobs.attempts(job.job_id)
    assert (first.outcome, second.reason, second.changes) == ("completed", "retry", {"epochs": 2})
    assert len(client.jobs.metrics(job.job_id, attempt=1).data) == 3


def test_retry_from_a_checkpoint_that_is_not_there_is_refused(client, job):
    with pytest.raises(errors.CheckpointError):
        client.jobs.retry(job.job_id, resume_from="last")


class LosingRetries(httpx.AsyncBaseTransport):
    """Loses the first answer to a retry on its way back."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner, self.statuses = inner, []

    async def handle_async_request(self, request):
        answer = await self._inner.handle_async_request(request)
        if request.url.path.endswith("/retry"):
            self.statuses.append(answer.status_code)
            if len(self.statuses) == 1:
                raise httpx.ReadError("reset")
        return answer


def test_retry_whose_answer_was_lost_is_not_done_twice(connect, service, job):
    transport = LosingRetries(over(service))
    client = connect(transport, sleep=lambda _: None)
    assert client.jobs.retry(job.job_id).attempt == 2
    assert transport.statuses == [200, 200]
    client.jobs.wait(job.job_id)
    assert len(client.jobs.attempts(job.job_id)) == 2


# ── Following ───────────────────────────────────────────────────────────────────────────────────────────────


class Parts(httpx.AsyncByteStream):
    def __init__(self, *parts: bytes | Exception) -> None:
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            if isinstance(part, Exception):
                raise part
            yield part


class Breaking(httpx.AsyncBaseTransport):
    """Lets each stream of events pass one more event than the one before, and ends it within the next."""

    def __init__(self, inner: httpx.AsyncBaseTransport, end: Exception | None, *, deaf: bool) -> None:
        self._inner, self._end, self._deaf = inner, end, deaf
        self.after: list[str] = []

    async def handle_async_request(self, request):
        if "text/event-stream" not in request.headers["accept"]:
            return await self._inner.handle_async_request(request)
        self.after.append(request.url.params["after"])
        if self._deaf:
            request = httpx.Request("GET", request.url.copy_set_param("after", "0"), headers=request.headers)
        answer = await self._inner.handle_async_request(request)
        content = await answer.aread()
        frames = content.split(b"\n\n")
        passing = len(self.after)
        if passing >= len(frames):
            return httpx.Response(200, headers=answer.headers, stream=Parts(content))
        cut = b"\n\n".join(frames[:passing]) + b"\n\n" + frames[passing][:-5]
        return httpx.Response(
            200, headers=answer.headers, stream=Parts(cut, *([self._end] if self._end else []))
        )


ENDS = {"reset": httpx.ReadError("reset"), "silent": httpx.ReadTimeout("late"), "closed": None}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("deaf", [False, True], ids=["resumed", "replayed"])
def test_streams_that_break_lose_no_event_and_tell_none_twice(connect, gated, end, deaf):
    service, gate = gated
    transport = Breaking(over(service), end, deaf=deaf)
    client = connect(transport, sleep=lambda _: None)
    dataset = client.datasets.upload(EXAMPLE_CSV.encode(), name="trees.csv")
    filed = client.jobs.train(dataset_id=dataset.dataset_id, **QUICK)
    gate.set()
    told = without_progress(client.jobs.follow(filed.job_id))
    assert told == list(client.jobs.events(filed.job_id))
    assert [event.seq for event in told] == [1, 2, 3, 4]
    assert transport.after[0] == "0"
    if end is ENDS["reset"]:  # else the history is read as soon as the job is known to have ended
        assert len(transport.after) > 1
        assert transport.after == sorted(transport.after)


def test_following_begins_after_the_event_that_is_named(client, job):
    assert [event.seq for event in without_progress(client.jobs.follow(job.job_id, after=2))] == [3, 4]
    assert list(client.jobs.follow(job.job_id, after=99)) == []


@pytest.fixture
def served(gated, portal) -> Iterator[tuple[str, threading.Event]]:
    """Over a real connection, as a stream is live there alone."""
    service, gate = gated
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build_web_app(service), lifespan="off", log_level="critical"))
    serving = portal.start_task_soon(server.serve, [listening])
    yield "http://{}:{}".format(*listening.getsockname()), gate
    gate.set()
    server.should_exit = True
    serving.result()


def test_events_come_while_the_job_goes_on(served):
    url, gate = served
    with stillhouse.Client(url) as client:
        dataset = client.datasets.upload(EXAMPLE_CSV.encode(), name="trees.csv")
        filed = client.jobs.train(dataset_id=dataset.dataset_id, **QUICK)
        events = client.jobs.follow(filed.job_id)
        told = [next(events), next(events)]
        assert [event.new for event in told] == ["pending", "running"]
        assert client.jobs.get(filed.job_id).status == "running"
        gate.set()
        rest = list(events)
        assert any(isinstance(event, JobProgress) and event.total_epochs == 3 for event in rest)
        assert without_progress(rest)[-1].type == "completed"


def test_wait_gives_up_in_time_and_stops_nothing(served):
    url, _ = served
    with stillhouse.Client(url) as client:
        dataset = client.datasets.upload(EXAMPLE_CSV.encode(), name="trees.csv")
        filed = client.jobs.train(dataset_id=dataset.dataset_id, **QUICK)
        for timeout_s in (0.0, 0.2):
            with pytest.raises(errors.TimeoutError, match="must end within") as raised:
                client.jobs.wait(filed.job_id, timeout_s=timeout_s)
            assert (raised.value.type, raised.value.retryable) == ("transient", True)
        assert not client.jobs.get(filed.job_id).ended


# ── Following, scripted ─────────────────────────────────────────────────────────────────────────────────────


def frame(seq: int, type_: str = "status_change", **data: object) -> dict:
    return {
        "type": type_,
        "job_id": "j",
        "attempt": 1,
        "seq": seq,
        "timestamp": NOW,
        "new": "running",
        **data,
    }


def stream(*frames: dict, error: errors.StillhouseError | None = None) -> httpx.Response:
    text = "".join(
        f"id: {told['seq']}\nevent: {told['type']}\ndata: {json.dumps(told)}\n\n" for told in frames
    )
    if error is not None:
        told = {"error": platform_error(error, Asked("/api/v1/training-jobs"))}
        text += f"event: error\ndata: {json.dumps(told)}\n\n"
    return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=text.encode())


@pytest.fixture
def answer_of(client, job) -> dict:
    """A job as the service tells of it, under another id."""
    return lambda status: httpx.Response(200, json=describe(job, status))


def describe(job: stillhouse.Job, status: str) -> dict:
    told = {name: getattr(job, name) for name in job.__slots__} | NO_MODEL
    told |= {name: NOW for name in told if name.endswith("_at")}
    return told | {"job_id": "j", "status": status, "a_later_field": 1}


def test_service_that_stays_away_ends_the_following_when_patience_does(scripted, clock):
    told: list[float] = []
    client, _ = scripted(
        stream(frame(1)),
        *[httpx.ConnectError("refused")],
        patience=Patience(attempts=2, deadline_s=30.0),
        on_retry=lambda _, wait_s: told.append(wait_s),
    )
    with pytest.raises(ServiceUnavailableError, match="no connection could be made") as raised:
        list(client.jobs.follow("j"))
    assert raised.value.code == UNAVAILABLE
    assert 0 < clock.now < 60
    assert told == clock.slept


def test_news_renew_the_patience(scripted, clock, answer_of):
    refused, running = httpx.ConnectError("refused"), answer_of("running")
    news = [part for seq in range(1, 8) for part in (stream(frame(seq)), running, refused)]
    end = [stream(frame(8)), answer_of("completed"), httpx.Response(200, json={"data": []})]
    client, _ = scripted(*news, *end, patience=Patience(attempts=2, deadline_s=2.0))
    assert [event.seq for event in client.jobs.follow("j")] == list(range(1, 9))
    assert clock.now > 2.0


def test_error_in_the_stream_that_may_pass_is_no_end(scripted, answer_of):
    client, requests = scripted(
        stream(frame(1), error=ServiceUnavailableError("Wait.")),
        stream(frame(2)),
        answer_of("completed"),
        httpx.Response(200, json={"data": []}),
    )
    assert [event.seq for event in client.jobs.follow("j")] == [1, 2]
    assert [request.url.params.get("after") for request in requests] == ["0", "1", None, "2"]


def test_error_in_the_stream_that_lasts_is_raised(scripted, clock):
    client, requests = scripted(stream(frame(1), error=JobNotFoundError("It is gone.")))
    with pytest.raises(JobNotFoundError, match="gone"):
        list(client.jobs.follow("j"))
    assert (len(requests), clock.slept) == (1, [])


@pytest.mark.parametrize(
    "content", [b"data: {\n\n", b"data: []\n\n", b"data: {}\n\n", b"event: error\ndata: {}\n\n"]
)
def test_stream_of_something_else_is_not_understood(scripted, content):
    client, _ = scripted(httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=content))
    with pytest.raises(errors.StillhouseError, match="must be a Stillhouse service"):
        list(client.jobs.follow("j"))


def test_page_in_place_of_a_stream_is_not_understood(scripted):
    client, _ = scripted(httpx.Response(200, content=b"<html>Welcome</html>"))
    with pytest.raises(errors.StillhouseError, match="must be a Stillhouse service"):
        list(client.jobs.follow("j"))


def test_time_of_waiting_counts_over_all_connections(scripted, clock, answer_of):
    running = answer_of("running")
    client, _ = scripted(running, *[stream(), running] * 9, running)
    with pytest.raises(errors.TimeoutError, match="within 5 s"):
        client.jobs.wait("j", timeout_s=5.0)
    assert clock.now == 5.0


def test_log_is_followed_until_the_job_has_ended_and_no_line_is_lost(scripted, clock, answer_of):
    def lines(*numbers: int) -> httpx.Response:
        told = {"attempt": 1, "at": NOW, "level": "info"}
        return httpx.Response(
            200, json={"data": [{"seq": n, "message": f"line {n}", **told} for n in numbers]}
        )

    client, requests = scripted(
        *(answer_of("running"), lines(1, 2), lines()),
        *(answer_of("completed"), lines(3), lines()),
    )
    assert [line.message for line in client.jobs.follow_logs("j", every_s=2.0)] == [
        "line 1",
        "line 2",
        "line 3",
    ]
    assert clock.slept == [2.0]
    assert [request.url.params.get("after") for request in requests] == [None, "0", "2", None, "2", "3"]
