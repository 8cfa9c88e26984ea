"""Clients are called back, and external trainers drive jobs, on the real cluster."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import ray

pytestmark = pytest.mark.cluster
JOBS = "/api/v1/training-jobs"


@pytest.fixture
def receiver() -> Iterator[ThreadingHTTPServer]:
    """A client's server; ``got`` has what it was told."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self.server.got.append(json.loads(body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.got = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def create(client, dataset: str, receiver, **fields) -> str:
    body = {
        "executor": "external",
        "dataset_id": dataset,
        "target_column": "kind",
        "epochs": 3,
        "callback_url": f"http://127.0.0.1:{receiver.server_address[1]}/told",
    }
    answer = client.post(JOBS, json=body | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()["job_id"]


def state(client, job_id: str) -> str:
    answer = client.get(f"{JOBS}/{job_id}")
    return answer.json().get("status", "unknown")


def test_external_job_runs_to_its_end_and_its_client_hears_of_it(service, client, dataset, receiver):
    job_id = create(client, dataset, receiver)
    assert service.eventually(lambda: state(client, job_id) == "completed")
    assert service.eventually(lambda: len(receiver.got) == 3)
    assert [told["new"] for told in receiver.got] == ["pending", "running", "completed"]
    assert [told["id"] for told in receiver.got] == [f"{job_id}:{seq}" for seq in (1, 2, 3)]


def test_job_of_ours_tells_its_client_too(service, client, dataset, receiver):
    create(client, dataset, receiver, executor="ray")
    assert service.eventually(lambda: len(receiver.got) == 3)
    assert [told["new"] for told in receiver.got] == ["pending", "running", "completed"]


def test_nothing_is_lost_when_the_dispatcher_is_killed_while_an_external_job_runs(
    service, client, dataset, receiver
):
    job_id = create(client, dataset, receiver, epochs=6)
    folder = service.folder / "external" / job_id / "0001"
    assert service.eventually((folder / "ready").exists)
    jobs = service.settings.jobs
    ray.kill(ray.get_actor(jobs.name, service.settings.registry.namespace), no_restart=False)
    assert service.eventually(lambda: state(client, job_id) == "completed", 90)
    assert service.eventually(lambda: receiver.got[-1]["new"] == "completed")
    events = client.get(f"{JOBS}/{job_id}/events").json()["data"]
    changes = [f"{job_id}:{event['seq']}" for event in events if event["type"] == "status_change"]
    assert sorted({told["id"] for told in receiver.got}) == sorted(changes)


def test_cancel_ends_an_external_process(service, client, dataset, receiver):
    job_id = create(client, dataset, receiver, epochs=60)
    folder = service.folder / "external" / job_id / "0001"
    assert service.eventually((folder / "ready").exists)
    assert client.post(f"{JOBS}/{job_id}/cancel").json()["status"] == "cancelled"
    assert service.eventually((folder / "exit_code").exists)
    assert service.eventually(lambda: receiver.got[-1]["new"] == "cancelled")
