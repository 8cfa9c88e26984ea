"""What operators see: metrics, log lines, events in Sentry and trace ids."""

import asyncio
import gzip
import io
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from core.admission import Admission
from core.catalogue import CATALOGUE, ErrorType, Severity
from core.errors import (
    CircuitOpenError,
    RateLimitedError,
    RunNotFoundError,
    StillhouseError,
    StorageError,
    TrainerUnreachableError,
    TrainingError,
    TrainingStoppedError,
    UnexpectedError,
    class_of,
)
from core.prediction import Predictor as Model
from core.resilience import Breaker, BreakerPolicy
from deployments.edge.border import Border
from deployments.origin import Origin
from deployments.settings import (
    SENTRY_VARIABLE,
    SPANS_SHARE_VARIABLE,
    SPANS_VARIABLE,
    Limits,
    TelemetrySettings,
    traced_share,
)
from deployments.telemetry import Telemetry, component_of
from deployments.telemetry.endpoints import Endpoints
from deployments.telemetry.logs import FaultsAlone, Forward, JsonLines, Redaction, forward_logs
from deployments.telemetry.metrics import METRICS, Metrics
from deployments.telemetry.sentry import LEVELS, is_fault
from deployments.tracing import SpanParent, TraceStart
from deployments.web import build_web_app
from tests.deployments.local import DATASETS, PREDICT, TRAIN, trained, upload

pytestmark = pytest.mark.anyio
SECRET = "hunter2-of-mine"  # noqa: S105
ORIGIN = Origin("my-request", "ab" * 16)


class Recorder:
    """A store of metrics in memory."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.values: dict[tuple, list[float]] = {}

    def __call__(self, metric):
        self.made.append(metric.name)

        def record(value, labels):
            self.values.setdefault((metric.name, *sorted(labels.items())), []).append(value)

        return record

    def of(self, name: str, **labels: str) -> list[float]:
        return self.values.get((name, *sorted(labels.items())), [])

    def labels(self, name: str, label: str) -> set[str]:
        return {dict(key[1:])[label] for key in self.values if key[0] == name}


@pytest.fixture(autouse=True)
def no_dsn(monkeypatch):
    monkeypatch.delenv(SENTRY_VARIABLE, raising=False)


@pytest.fixture
def recorder():
    return Recorder()


def telemetry(recorder, **settings):
    return Telemetry(TelemetrySettings(**settings), "ingress", recorder)


@pytest.fixture
async def watched(service, recorder, connect):
    """A client of a service whose parts all record into one store."""
    service.observer = telemetry(recorder)
    service._trainer._target.observer = Telemetry(TelemetrySettings(), "trainer", recorder)
    service._predictor._target.observer = Telemetry(TelemetrySettings(), "predictor", recorder)
    service._registry._local._target.observer = Telemetry(TelemetrySettings(), "registry", recorder)
    async with connect(service) as client:
        yield client


async def rows_of(client, run):
    """Three empty rows that the model of a run takes."""
    schema = (await client.get(f"/api/v1/runs/{run['run_id']}")).json()["schema"]
    return [{column["name"]: None for column in schema["columns"]}] * 3


# ── Metrics ─────────────────────────────────────────────────────────────────────────────────────────────────

SEED_001 = {
    "platform_errors_total": ("error_type", "severity", "component"),
    "training_job_failures_total": ("error_code", "framework"),
    "api_errors_total": ("status_code", "endpoint", "method"),
    "error_handling_seconds": ("error_type",),
}


def test_metrics_of_seed_001_have_its_names_and_labels():
    assert {name: METRICS[name].labels for name in SEED_001} == SEED_001


def test_names_and_labels_are_what_prometheus_and_serve_accept():
    for metric in METRICS.values():
        assert re.fullmatch("[a-z][a-z_]*", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert bool(metric.buckets) == (metric.kind == "histogram")
        # Serve adds these itself; ids of runs, jobs, models and requests would never end
        forbidden = {"deployment", "replica", "application", "route", "run_id", "job_id", "model_id", "path"}
        assert not forbidden & {*metric.labels}


def test_metric_is_made_once_and_takes_its_own_labels_alone(recorder):
    metrics = Metrics(recorder)
    metrics.record("rate_limit_refusals_total", route_class="read")
    metrics.record("rate_limit_refusals_total", route_class="train")
    assert recorder.made == ["rate_limit_refusals_total"]
    with pytest.raises(ValueError, match="route_class"):
        metrics.record("rate_limit_refusals_total", run_id="x")
    with pytest.raises(KeyError):
        metrics.record("unheard_of")


async def test_requests_are_counted_by_the_template_of_their_route(watched, recorder):
    assert (await watched.get("/api/v1/runs/no-such-run")).status_code == 404
    place = {"endpoint": "/api/v1/runs/{run_id}", "method": "GET"}
    assert recorder.of("http_requests_total", status_code="404", **place) == [1]
    assert recorder.of("api_errors_total", status_code="404", **place) == [1]
    [seconds] = recorder.of("http_request_seconds", **place)
    assert seconds > 0


async def test_labels_stay_few_whatever_clients_ask(watched, recorder):
    for number in range(50):
        await watched.get(f"/{number}/nowhere")
        await watched.get(f"/api/v1/runs/{number}")
        await watched.request(f"METHOD{number}", f"/api/v1/models/{number}/")
        await watched.get(f"/docs/errors/{number}")
    endpoints = recorder.labels("http_requests_total", "endpoint")
    assert endpoints == {"unknown", "/api/v1/runs/{run_id}", "/api/v1/models/{model_id}", "/docs"}
    assert recorder.labels("http_requests_total", "method") == {"GET", "OTHER"}


def test_every_documented_route_is_its_own_endpoint(service):
    templates = [*build_web_app(service).openapi()["paths"]]
    endpoints = Endpoints(templates)
    assert len(templates) >= 15
    for template in templates:
        assert endpoints.of(re.sub(r"{\w+}", "a.b-c", template)) == template


async def test_refusal_before_the_routes_is_counted_at_its_route(recorder):
    class Inner:
        state = SimpleNamespace(templates=[TRAIN])

        async def __call__(self, scope, receive, send):
            raise RateLimitedError(resource="train requests", retry_after=3)

    observer, inner = telemetry(recorder), Inner()
    border = Border(inner, observe=observer, clock=iter(range(9)).__next__, limits=Limits())
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": TRAIN, "headers": [], "app": inner}
    await border(scope, None, send)
    assert sent[0]["status"] == 429
    assert recorder.of("rate_limit_refusals_total", route_class="train") == [1]
    assert recorder.of("api_errors_total", status_code="429", endpoint=TRAIN, method="POST") == [1]
    assert recorder.of("http_request_seconds", endpoint=TRAIN, method="POST") == [1]


async def test_work_is_counted_where_it_is_done(watched, recorder):
    run = await trained(watched, await upload(watched), epochs=3)
    assert recorder.of("trainings_running") == [1, 0]
    assert len(recorder.of("training_seconds", kind="train", outcome="ok")) == 1
    assert recorder.of("training_epochs_total", kind="train") == [run["epochs_run"]]
    assert recorder.of("training_rows_total", kind="train") == [sum(run["rows"].values())]
    assert recorder.of("registry_items")[-1] == 1
    assert recorder.of("registry_bytes")[-1] > 1000
    rows = await rows_of(watched, run)
    for _ in range(2):
        answer = await watched.post(PREDICT, json={"run_id": run["run_id"], "rows": rows})
        assert answer.status_code == 200, answer.text
    assert recorder.of("prediction_rows_total") == [3, 3]
    assert len(recorder.of("prediction_seconds")) == 2
    assert recorder.of("prediction_cache_total", outcome="miss") == [1]
    assert recorder.of("prediction_cache_total", outcome="hit") == [1]


async def test_failed_training_is_counted_by_its_code_and_as_a_fault_of_the_trainer(watched, recorder):
    content = "a,kind\n" + "1,x\n" * 30  # a single class
    answer = await watched.post(
        TRAIN, json={"dataset_id": await upload(watched, content), "target_column": "kind"}
    )
    code = answer.headers["x-error-code"]
    assert answer.status_code == 400
    assert recorder.of("training_job_failures_total", error_code=code, framework="pytorch") == [1]
    assert len(recorder.of("training_seconds", kind="train", outcome="failed")) == 1


async def test_failure_within_a_stream_of_events_is_counted_too(watched, recorder):
    content = "a,kind\n" + "1,x\n" * 30
    payload = {"dataset_id": await upload(watched, content), "target_column": "kind"}
    answer = await watched.post(TRAIN, json=payload, headers={"accept": "text/event-stream"})
    assert answer.status_code == 200
    assert "event: error" in answer.text
    assert recorder.of("api_errors_total", status_code="400", endpoint=TRAIN, method="POST") == [1]


async def test_request_refused_before_the_queue_is_no_lost_training(watched, recorder):
    assert (await watched.post(TRAIN, json={"target_column": "kind"})).status_code == 400
    assert not [key for key in recorder.values if key[0] == "training_job_failures_total"]


async def test_replay_is_counted_and_a_first_answer_is_not(watched, recorder):
    headers = {"content-type": "text/csv", "idempotency-key": "once"}
    for expected in ([], [1]):
        await watched.post(DATASETS, content="a,b\n1,2\n", headers=headers)
        assert recorder.of("idempotent_replays_total") == expected


@pytest.mark.parametrize("call", ["handle_train_request", "predict"])
async def test_failures_of_python_handles_are_counted(service, recorder, call):
    service.observer = telemetry(recorder)
    status, _ = await getattr(service, call)({"nothing": "useful"})
    assert status >= 400
    assert recorder.labels("api_errors_total", "endpoint") == {"handle"}


def test_evictions_say_why(recorder):
    observer = telemetry(recorder)
    observer.evicted(0, "expired")
    observer.evicted(3, "room")
    assert recorder.of("registry_evictions_total", reason="expired") == []
    assert recorder.of("registry_evictions_total", reason="room") == [3]


async def test_health_check_tells_queue_and_breakers(service, recorder):
    service.observer = telemetry(recorder)
    with service._admission.enter() as first, service._admission.enter():
        first.start()
        await service.check_health()
    capacity = service._admission.capacity
    told = {name: recorder.of(f"queue_{name}") for name in ("capacity", "free", "running", "waiting")}
    assert told == {"capacity": [capacity], "free": [capacity - 2], "running": [1], "waiting": [1]}
    assert recorder.of("circuit_breaker_state", integration="trainer") == [0]


def test_breaker_is_0_closed_1_open_and_a_half_when_it_may_probe(recorder):
    now = [0.0]
    breaker = Breaker("trainer", BreakerPolicy(1, 60), lambda: now[0])
    observer, admission = telemetry(recorder), Admission(1, lambda: now[0])
    observer.state(admission, {"trainer": breaker})
    with pytest.raises(OSError, match="gone"), breaker.guard():
        raise OSError("gone")
    observer.state(admission, {"trainer": breaker})
    now[0] = 60
    observer.state(admission, {"trainer": breaker})
    assert recorder.of("circuit_breaker_state", integration="trainer") == [0, 1, 0.5]


@pytest.mark.parametrize(("error", "outcome"), [(TrainingStoppedError(), "stopped"), (OSError(), "failed")])
def test_training_that_ends_otherwise_says_so_and_runs_no_more(recorder, error, outcome):
    observer = telemetry(recorder)
    with pytest.raises(type(error)), observer.training("distill"):
        raise error
    assert recorder.of("trainings_running") == [1, 0]
    assert len(recorder.of("training_seconds", kind="distill", outcome=outcome)) == 1


@pytest.mark.parametrize(
    ("error", "component"),
    [
        (StorageError(), "storage"),
        (TrainingError(), "trainer"),
        (TrainerUnreachableError(), "trainer"),
        (CircuitOpenError(service="predictor"), "predictor"),
        (CircuitOpenError(service="a name from a client"), "ingress"),
        (RunNotFoundError(), "ingress"),
    ],
)
def test_component_is_the_part_that_failed(error, component):
    assert component_of(error, "ingress") == component


# ── Logs ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def written():
    """A logger and its lines, as a replica writes them."""
    target, stream = logging.getLogger("tests.target"), io.StringIO()
    target.handlers, target.filters, target.propagate = [logging.StreamHandler(stream)], [], False
    forward_logs((), target)
    target.handlers[0].setFormatter(JsonLines())
    target.setLevel(logging.INFO)
    source = logging.Logger("source")
    source.addHandler(Forward(target))
    return source, target, lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_line_holds_the_ids_as_fields(written):
    source, _, lines = written
    source.info("run %s starts", "r-1", extra={"run_id": "r-1", **ORIGIN.log_fields()})
    [line] = lines()
    assert line["message"] == "run r-1 starts"
    assert (line["run_id"], line["trace_id"], line["client_request_id"]) == ("r-1", "ab" * 16, "my-request")


def test_secrets_paths_and_rows_are_nowhere_in_a_line(written):
    source, _, lines = written
    nested = {"Headers": [{"AUTHORIZATION": f"Bearer {SECRET}"}], "rows": [[1, 2]], "n": 3}
    source.error(f"{'password'}=%s at %s", SECRET, "/srv/data/private/file.csv", extra={"context": nested})
    [line] = lines()
    assert line["context"] == {"Headers": [{"AUTHORIZATION": "[redacted]"}], "rows": "[redacted]", "n": 3}
    assert SECRET not in json.dumps(line)
    assert "/srv" not in json.dumps(line)


def test_traceback_is_redacted_and_keeps_the_places_of_the_code(written):
    source, _, lines = written
    try:
        raise OSError(f"token={SECRET} in /srv/data/private/file.csv")
    except OSError as cause:
        try:
            raise UnexpectedError(original=cause) from cause
        except UnexpectedError:
            source.exception("failed")
    [line] = lines()
    assert SECRET not in line["exc_text"]
    assert "/srv" not in line["exc_text"]
    assert 'File "deployments/test_telemetry.py", line' in line["exc_text"]
    assert "OSError" in line["exc_text"]


@pytest.mark.parametrize(
    ("error", "level"), [(RunNotFoundError("gone"), "INFO"), (StorageError("x"), "ERROR")]
)
def test_serve_writes_tracebacks_of_faults_alone(written, error, level):
    _, target, lines = written
    try:
        raise error
    except StillhouseError:
        target.exception("Request failed.")
    [line] = lines()
    assert line["levelname"] == level
    assert ("exc_text" in line) == (level == "ERROR")
    assert (error.code in line["message"]) == (level == "INFO")


def test_access_log_of_serve_passes_as_it_is(written):
    _, target, lines = written
    target.info("GET /api/v1/runs/{run_id} 404 9.1ms", extra={"serve_access_log": True, "request_id": "mine"})
    [line] = lines()
    assert (line["message"], line["request_id"]) == ("GET /api/v1/runs/{run_id} 404 9.1ms", "mine")


def test_wrong_arguments_of_a_log_call_do_not_end_the_work(written):
    source, _, lines = written
    source.info("%d rows", "many")
    source.info("odd", extra={"thing": object(), "nan": float("inf")})
    assert [line["message"] for line in lines()] == ["%d rows", "odd"]


def test_level_is_that_of_the_target_at_the_time(written):
    source, target, lines = written
    target.setLevel(logging.WARNING)
    source.info("quiet")
    target.setLevel(logging.INFO)
    source.info("loud")
    assert [line["message"] for line in lines()] == ["loud"]


def test_taking_over_a_logger_twice_writes_lines_once(written):
    _, target, lines = written
    name = "tests.of.telemetry"
    for _ in range(2):
        forward_logs((name,), target)
    logging.getLogger(f"{name}.below").warning("once")
    assert len(lines()) == 1
    assert [type(kept) for kept in target.filters] == [FaultsAlone, Redaction]


def failures(caplog):
    return [record for record in caplog.records if record.name == "deployments.telemetry"]


@pytest.mark.parametrize("code", CATALOGUE)
async def test_every_failure_is_one_line_with_a_traceback_for_system_errors_alone(recorder, caplog, code):
    caplog.set_level(logging.DEBUG)
    error = class_of(code)()
    scope = {"type": "http", "method": "GET", "path": "/api/v1/runs/x", "headers": []}
    telemetry(recorder).failed(error, scope, ORIGIN)
    [record] = failures(caplog)
    assert record.code == code
    assert (record.error_type, record.severity) == (error.error_type, error.severity)
    assert record.status == error.entry.status
    assert (record.trace_id, record.client_request_id) == ("ab" * 16, "my-request")
    assert bool(record.exc_info) == (error.error_type is ErrorType.SYSTEM_ERROR)
    labels = {"error_type": error.error_type.value, "severity": error.severity.value}
    assert recorder.of("platform_errors_total", component=component_of(error, "ingress"), **labels) == [1]


async def test_failed_request_is_one_line_with_the_ids_that_its_client_sent(watched, caplog):
    caplog.set_level(logging.DEBUG)
    headers = {"x-request-id": "mine", "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
    answer = await watched.get("/api/v1/runs/none", headers=headers)
    [record] = failures(caplog)
    assert (record.client_request_id, record.trace_id) == ("mine", "ab" * 16)
    assert answer.headers["x-trace-id"] == "ab" * 16
    assert (record.code, record.status, record.endpoint) == ("RUN_NOT_FOUND", 404, "/api/v1/runs/{run_id}")


async def test_trace_of_the_caller_reaches_the_lines_of_trainer_and_registry(watched, caplog):
    caplog.set_level(logging.DEBUG)
    dataset = await upload(watched)
    payload = {"dataset_id": dataset, "target_column": "kind", "epochs": 1}
    headers = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
    run = (await watched.post(TRAIN, json=payload, headers=headers)).json()
    for name in ("deployments.trainer", "deployments.registry"):
        ids = {(r.run_id, r.trace_id) for r in caplog.records if r.name == name}
        assert ids == {(run["run_id"], "ab" * 16)}


async def test_unforeseen_failure_of_a_prediction_is_written_down_with_its_traceback(
    watched, caplog, monkeypatch
):
    def broken(self, features):
        raise ZeroDivisionError("of the network")

    run = await trained(watched, await upload(watched))
    rows = await rows_of(watched, run)
    monkeypatch.setattr(Model, "predict", broken)
    answer = await watched.post(PREDICT, json={"run_id": run["run_id"], "rows": rows})
    assert answer.status_code == 500
    assert [r.exc_info[0] for r in failures(caplog) if r.component == "predictor"] == [ZeroDivisionError]


# ── Sentry ──────────────────────────────────────────────────────────────────────────────────────────────────


class Receiver:
    """Speaks the envelope endpoint of Sentry and keeps what arrives."""

    def __init__(self) -> None:
        self.items: list[tuple[str, dict]] = []
        self.raw = b""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.raw += body
                lines = body.splitlines()
                for header, payload in zip(lines[1::2], lines[2::2], strict=True):
                    receiver.items.append((json.loads(header)["type"], json.loads(payload)))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.dsn = f"http://{'0' * 32}@127.0.0.1:{self._server.server_port}/1"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def of(self, kind: str) -> list[dict]:
        return [item for name, item in self.items if name == kind]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def reporting(receiver, recorder, **settings):
    settings = {"sentry_dsn": receiver.dsn, "environment": "tests", "sentry_traces_sample_rate": 0} | settings
    return telemetry(recorder, **settings)


async def test_fault_arrives_at_sentry_redacted_and_tagged(service, receiver, recorder, connect):
    service.observer = observer = reporting(receiver, recorder)

    def burn(*_):
        local = SECRET  # in the frame, which must not be sent
        raise OSError(f"password={local} refused for /srv/data/private/file.csv")

    service.list_runs = burn
    headers = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "authorization": f"Bearer {SECRET}"}
    async with connect(service) as client:
        assert (await client.get("/api/v1/runs", headers=headers)).status_code == 500
    observer.sentry.close()
    [event] = receiver.of("event")
    assert SECRET.encode() not in receiver.raw
    assert b"/srv/" not in receiver.raw
    assert event["level"] == "fatal"
    assert event["environment"] == "tests"
    assert event["tags"] == {
        "code": "SYSTEM_ERROR",
        "error_type": "system_error",
        "severity": "critical",
        "component": "ingress",
        "endpoint": "/api/v1/runs",
        "trace_id": "ab" * 16,
    }
    assert event["contexts"]["trace"]["trace_id"] == "ab" * 16
    cause, own = event["exception"]["values"]
    assert (cause["type"], own["type"]) == ("OSError", "UnexpectedError")
    assert cause["value"] == "password=[redacted] refused for <path>"
    assert cause["stacktrace"]["frames"][-1]["function"] == "burn"
    assert not [f for v in (cause, own) for f in v.get("stacktrace", {}).get("frames", ()) if "vars" in f]
    assert "request" not in event


async def test_details_of_an_event_are_redacted_at_any_depth(receiver, recorder):
    observer = reporting(receiver, recorder)
    error = StorageError("Storage failed.", Nested=[{"API_Key": SECRET}], rows=[[1, 2]], bucket="b")
    observer.failed_call(error, "train", ORIGIN)
    observer.sentry.close()
    [event] = receiver.of("event")
    details = event["contexts"]["error_details"]
    assert details["Nested"] == [{"API_Key": "[redacted]"}]
    assert (details["rows"], details["bucket"]) == ("[redacted]", "b")
    assert SECRET.encode() not in receiver.raw


@pytest.mark.parametrize(("method", "status"), [("train", "400"), ("predict", "500")])
def test_failure_of_a_handle_is_counted_with_the_status_it_answers(recorder, method, status):
    observer = telemetry(recorder)
    observer.failed_call(StorageError(), method, ORIGIN)
    assert recorder.of("api_errors_total", status_code=status, endpoint="handle", method=method) == [1]


@pytest.mark.parametrize("code", CATALOGUE)
def test_faults_of_the_service_are_reported_and_those_of_callers_are_not(code):
    error = class_of(code)()
    if error.error_type in (ErrorType.USER_ERROR, ErrorType.PERMANENT):
        assert not is_fault(error)
    elif error.error_type is ErrorType.SYSTEM_ERROR:
        assert is_fault(error) == (code != "TRAINING_FAILED")
    else:
        assert is_fault(error) == (error.severity is Severity.HIGH)


async def test_user_errors_send_nothing(receiver, recorder):
    observer = reporting(receiver, recorder)
    for code, entry in CATALOGUE.items():
        if entry.type is ErrorType.USER_ERROR:
            observer.failed_call(class_of(code)(), "train", ORIGIN)
    observer.sentry.close()
    assert receiver.items == []


async def test_cancelled_request_sends_nothing_and_counts_as_no_error(receiver, recorder):
    observer = reporting(receiver, recorder)

    async def inner(scope, receive, send):
        raise asyncio.CancelledError

    border = Border(inner, observe=observer, clock=lambda: 0.0, limits=Limits())
    with pytest.raises(asyncio.CancelledError):
        await border({"type": "http", "method": "GET", "path": "/", "headers": []}, None, None)
    observer.sentry.close()
    assert receiver.items == []
    assert "platform_errors_total" not in recorder.made
    assert recorder.of("http_requests_total", status_code="0", endpoint="unknown", method="GET") == [1]


async def test_unforeseen_failure_of_a_training_is_reported_once_by_the_trainer(
    service, receiver, recorder, connect, monkeypatch
):
    service.observer = reporting(receiver, recorder)
    trainer = service._trainer._target
    trainer.observer = Telemetry(
        TelemetrySettings(sentry_dsn=receiver.dsn, sentry_traces_sample_rate=0), "trainer", recorder
    )

    def broken(work, request):
        raise ZeroDivisionError("of the network")

    monkeypatch.setattr(trainer, "_train", broken)
    async with connect(service) as client:
        payload = {"dataset_id": await upload(client), "target_column": "kind"}
        assert (await client.post(TRAIN, json=payload)).headers["x-error-code"] == "TRAINING_FAILED"
    for part in (service, trainer):
        part.observer.sentry.close()
    [event] = receiver.of("event")
    assert event["exception"]["values"][-1]["type"] == "ZeroDivisionError"
    assert (event["level"], event["tags"]["component"], event["server_name"]) == (
        "error",
        "trainer",
        "trainer",
    )


@pytest.mark.parametrize("part", ["ingress", "trainer", "predictor"])
def test_fault_that_waits_is_sent_when_serve_ends_the_replica(part, service, receiver, recorder):
    parts = {
        "ingress": service,
        "trainer": service._trainer._target,
        "predictor": service._predictor._target,
    }
    parts[part].observer = reporting(receiver, recorder)
    parts[part].observer.unexpected(OSError("no more"), ORIGIN)
    parts[part].__del__()
    assert len(receiver.of("event")) == 1


def test_levels_are_those_of_sentry():
    assert [LEVELS[severity] for severity in Severity] == ["info", "warning", "error", "fatal"]


async def test_sampled_requests_are_transactions_named_by_their_route(service, receiver, recorder, connect):
    service.observer = observer = reporting(receiver, recorder, sentry_traces_sample_rate=1)
    headers = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
    async with connect(service) as client:
        await client.get("/api/v1/runs/no-such-run", headers=headers)
    observer.sentry.close()
    [transaction] = receiver.of("transaction")
    assert transaction["transaction"] == "GET /api/v1/runs/{run_id}"
    assert transaction["contexts"]["trace"]["trace_id"] == "ab" * 16
    assert b"no-such-run" not in receiver.raw


def test_error_sample_rate_of_0_sends_nothing(receiver, recorder):
    observer = reporting(receiver, recorder, sentry_sample_rate=0)
    observer.failed_call(StorageError(), "train", ORIGIN)
    observer.sentry.close()
    assert receiver.of("event") == []


def test_nothing_imports_sentry_where_it_is_not_configured():
    program = (
        "import sys; from deployments.app import build; from deployments.telemetry import Telemetry;"
        "from deployments.settings import TelemetrySettings as S; Telemetry(S(), 'ingress');"
        "print('sentry_sdk' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_dsn_comes_from_the_settings_or_else_the_environment(monkeypatch):
    monkeypatch.setenv(SENTRY_VARIABLE, "http://variable@x/1")
    assert TelemetrySettings().dsn() == "http://variable@x/1"
    assert TelemetrySettings(sentry_dsn="http://settings@x/1").dsn() == "http://settings@x/1"
    assert "settings@x" not in repr(TelemetrySettings(sentry_dsn="http://settings@x/1"))


def test_dsn_without_the_sdk_stops_the_start(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentry_sdk", None)
    with pytest.raises(RuntimeError, match="extra sentry"):
        Telemetry(TelemetrySettings(sentry_dsn="http://key@127.0.0.1/1"), "ingress")


# ── Traces ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_trace_id_is_that_of_the_span_which_serve_opened(service):
    app = SpanParent(build_web_app(service))
    span = TracerProvider().get_tracer("tests").start_span("proxy")
    started = []

    async def send(message):
        started.append(message)

    scope = {"type": "http", "method": "GET", "path": "/health/live", "query_string": b"", "root_path": ""}
    with trace.use_span(span):
        await app(
            {**scope, "headers": [(b"traceparent", b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01")]},
            None,
            send,
        )
    headers = dict(started[0]["headers"])
    assert headers[b"x-trace-id"].decode() == f"{span.get_span_context().trace_id:032x}"


async def test_without_a_span_the_traceparent_of_the_caller_stays(service):
    seen = []

    async def inner(scope, receive, send):
        seen.append(scope)

    scope = {"type": "http", "headers": [(b"traceparent", b"x")]}
    await SpanParent(inner)(scope, None, None)
    assert seen == [scope]


@pytest.mark.parametrize(("drawn", "flags"), [(0.1, b"01"), (0.3, b"00")])
async def test_proxy_begins_a_trace_for_the_drawn_share_of_requests_without_one(drawn, flags):
    seen = []

    async def inner(scope, receive, send):
        seen.append(dict(scope["headers"]))

    start = TraceStart(inner, share=0.2, draw=lambda: drawn)
    given = (b"Traceparent", b"of the client")
    for headers in ([], [], [given]):
        await start({"type": "http", "headers": headers}, None, None)
    first, second, third = seen
    assert third == dict([given])
    assert first != second
    begun = first[b"traceparent"].decode()
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-\d\d", begun)
    assert begun.endswith(flags.decode())
    assert Origin.of(None, begun).trace_id == begun.split("-")[1]


@pytest.mark.parametrize(
    ("path", "share", "expected"), [("", "1", 0), ("x:y", None, 0.01), ("x:y", "0.5", 0.5)]
)
def test_share_of_traces_is_that_of_serve(monkeypatch, path, share, expected):
    monkeypatch.setenv(SPANS_VARIABLE, path)
    if share is None:
        monkeypatch.delenv(SPANS_SHARE_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(SPANS_SHARE_VARIABLE, share)
    assert traced_share() == expected
