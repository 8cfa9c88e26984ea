"""What leaves a live service, and what two ingresses share: seen once over a cluster of its own.

Redis, Sentry and the collector of traces are small servers of this process.
"""

import contextlib
import gzip
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from deployments.demo import running_service
from tests.deployments.redis_server import redis_server

pytestmark = [pytest.mark.cluster, pytest.mark.proof, pytest.mark.timeout(600)]
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
READS, TRAININGS = 20, 5


@dataclass
class Receiver:
    """Keeps what is posted to it, by path."""

    bodies: list[tuple[str, bytes]] = field(default_factory=list)

    @contextlib.contextmanager
    def listening(self) -> Iterator[int]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the name that http.server calls
                body = self.rfile.read(int(self.headers["content-length"]))
                gzipped = self.headers.get("content-encoding") == "gzip"
                receiver.bodies.append((self.path, gzip.decompress(body) if gzipped else body))
                self.send_response(200)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            server.server_close()

    def at(self, path: str) -> bytes:
        return b"\n".join(body for where, body in self.bodies if path in where)


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@dataclass
class Seen:
    """Of one life of a service with two ingresses, from its start to its end."""

    storage: str
    received: Receiver
    reads: list[httpx.Response]
    trainings: list[httpx.Response]
    predictions: list[httpx.Response]
    fault: httpx.Response
    logs: dict[str, str]


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    folder = Path(tempfile.mkdtemp(prefix="edge-", dir="/tmp"))  # Ray's sockets have short paths
    received = Receiver()
    with received.listening() as port, redis_server() as redis_url:
        collector = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "deployments.tracing:otlp",
            "RAY_SERVE_TRACING_SAMPLING_RATIO": "1",
            "RAY_TMPDIR": str(folder),
        }
        rates = {"read": f"{READS}/minute", "train": f"{TRAININGS}/minute"}
        with (
            environment(**collector),
            running_service(
                folder,
                ingress={"replicas": 2, "cpus_per_ingress": 0.1},
                trainer={"cpus_per_trainer": 0.5, "max_replicas": 1},
                predictor={"cpus_per_predictor": 0.25, "max_replicas": 1},
                edge={"rates": rates, "rates_storage": redis_url},
                telemetry={"sentry_dsn": f"http://{'0' * 32}@127.0.0.1:{port}/1", "environment": "tests"},
            ) as url,
        ):
            reads = asked(url, READS * 2, "GET", "/api/v1/runs")
            trainings = asked(url, TRAININGS * 2, "POST", "/api/v1/train")
            predictions = asked(url, READS * 2, "POST", "/api/v1/predict", headers=PARENT)
            shutil.rmtree(folder / "storage", ignore_errors=True)
            (folder / "storage").write_text("a file where a folder was")
            [fault] = asked(url, 1, "POST", "/api/v1/datasets?name=a.csv", content=b"a,b\n1,2\n")
        logs = {
            str(file): file.read_text(errors="replace")
            for file in (folder / "ray").rglob("*")
            if file.suffix in (".log", ".out", ".err") and file.is_file() and not file.is_symlink()
        }
        yield Seen(f"{folder}/storage", received, reads, trainings, predictions, fault, logs)
    shutil.rmtree(folder)


def asked(url: str, times: int, method: str, path: str, **request) -> list[httpx.Response]:
    """Each over a connection of its own, for any ingress to take."""
    headers = {"content-type": "text/csv" if "content" in request else "application/json"}
    content = request.pop("content", b"{}" if method == "POST" else None)
    headers |= request.pop("headers", {})
    return [
        httpx.request(method, f"{url}{path}", content=content, headers=headers, timeout=60)
        for _ in range(times)
    ]


def statuses(answers: list[httpx.Response]) -> Counter[int]:
    return Counter(answer.status_code for answer in answers)


def logs_of(seen: Seen, deployment: str) -> list[str]:
    return [text for name, text in seen.logs.items() if f"replica_stillhouse_{deployment}_" in name]


def test_two_ingresses_count_a_client_together_by_class_of_route(seen) -> None:
    assert statuses(seen.reads) == {200: READS, 429: READS}
    assert statuses(seen.trainings) == {400: TRAININGS, 429: TRAININGS}
    assert statuses(seen.predictions) == {422: READS * 2}
    assert sum("/api/v1/runs" in log for log in logs_of(seen, "Ingress")) == 2, "both answered"


def test_refusal_has_both_hints(seen) -> None:
    refused = next(answer for answer in seen.reads if answer.status_code == 429)
    assert refused.headers["x-error-code"] == "RATE_LIMITED"
    assert 1 <= int(refused.headers["retry-after"]) == refused.json()["retry_after"] <= 60


def test_fault_of_a_replica_that_ends_reaches_sentry_without_paths(seen) -> None:
    assert (seen.fault.status_code, seen.fault.headers["x-error-code"]) == (500, "STORAGE_ERROR")
    sent = seen.received.at("/api/1/envelope")
    assert b'"STORAGE_ERROR"' in sent
    assert seen.fault.headers["x-trace-id"].encode() in sent
    assert seen.storage.encode() not in sent
    assert b"RATE_LIMITED" not in sent


def test_spans_go_to_the_collector_in_the_trace_of_the_client(seen) -> None:
    assert all(answer.headers["x-trace-id"] == TRACE_ID for answer in seen.predictions)
    spans = seen.received.at("/v1/traces")
    assert bytes.fromhex(TRACE_ID) in spans
    assert b"proxy_http_request" in spans


def test_no_line_of_any_log_has_the_path_of_storage(seen) -> None:
    assert any('"code": "STORAGE_ERROR"' in log for log in logs_of(seen, "Ingress"))
    assert [name for name, text in seen.logs.items() if seen.storage in text] == []
