"""Training jobs on the live cluster, while what they are made of is killed (jobs.md, rows 43, 67, 70, 89)."""

import json
import random
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import ray
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from deployments.demo import running_service

pytestmark = pytest.mark.cluster

JOBS = "/api/v1/training-jobs"
LONG = {
    "target_column": "kind",
    "epochs": 150,
    "early_stopping_patience": 0,
    "batch_size": 32,
    "hidden_dim": 32,
    "test_size": 0.5,
}
ENDED = ("completed", "failed", "cancelled")


def create(client: httpx.Client, dataset: str, **changes) -> str:
    answer = client.post(JOBS, json={**LONG, "dataset_id": dataset, **changes})
    assert answer.status_code == 200, answer.text
    return answer.json()["job_id"]


def shown(client: httpx.Client, job_id: str) -> dict:
    answer = client.get(f"{JOBS}/{job_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def until(service, client: httpx.Client, job_id: str, condition, within_s: float = 90) -> dict:
    found = {}

    def holds() -> bool:
        found.update(shown(client, job_id))
        return condition(found)

    assert service.eventually(holds, within_s), found
    return found


def has_ended(job: dict) -> bool:
    return job["status"] in ENDED


def is_at_work(job: dict) -> bool:
    return job["status"] == "running" and job["current_epoch"] > 5


def history(client: httpx.Client, job_id: str) -> list[dict]:
    return client.get(f"{JOBS}/{job_id}/events", params={"limit": 1000}).json()["data"]


@pytest.fixture(scope="module")
def undisturbed(service, dataset: str) -> bytes:
    """The bundle of LONG when nothing goes wrong."""
    with service.client() as client:
        job = until(service, client, create(client, dataset), has_ended)
        assert job["status"] == "completed", job["error"]
        return bundle(client, job)


def bundle(client: httpx.Client, job: dict) -> bytes:
    answer = client.get(f"/api/v1/runs/{job['run_id']}/bundle")
    assert answer.status_code == 200, answer.text
    return answer.content


def kill_trainer(service) -> None:
    for replica in service.replicas("Trainer"):
        ray.kill(ray.get_actor(replica, namespace="serve"), no_restart=True)


def dispatcher(service) -> ray.actor.ActorHandle:
    return ray.get_actor(service.settings.jobs.name, namespace=service.settings.registry.namespace)


def test_killed_trainer_costs_no_bit_of_the_model(
    service, client: httpx.Client, dataset: str, undisturbed: bytes
) -> None:
    job_id = create(client, dataset)
    until(service, client, job_id, lambda job: is_at_work(job) and job["current_epoch"] > 30)
    kill_trainer(service)
    job = until(service, client, job_id, has_ended)
    assert (job["status"], job["attempt"]) == ("completed", 2), job["error"]
    assert bundle(client, job) == undisturbed
    attempts = client.get(f"{JOBS}/{job_id}/attempts").json()["data"]
    assert [attempt["reason"] for attempt in attempts] == ["created", "lost"]
    assert attempts[1]["resumed_from"] is not None


@pytest.mark.parametrize("seed", range(2))
def test_trainer_that_is_killed_in_any_phase_costs_no_job(
    service, client: httpx.Client, dataset: str, undisturbed: bytes, seed: int
) -> None:
    """Also before the first epoch, and while a checkpoint or the model is written."""
    moment_s = random.Random(seed).uniform(0, 2)  # noqa: S311  # no secret
    job_id = create(client, dataset)
    time.sleep(moment_s)
    kill_trainer(service)
    job = until(service, client, job_id, has_ended)
    assert job["status"] == "completed", job["error"]
    assert bundle(client, job) == undisturbed


@pytest.mark.parametrize("no_restart", [False, True], ids=["restarted", "gone"])
def test_killed_dispatcher_takes_running_jobs_up_again(
    service, client: httpx.Client, dataset: str, undisturbed: bytes, no_restart: bool
) -> None:
    job_id = create(client, dataset)
    until(service, client, job_id, is_at_work)
    ray.kill(dispatcher(service), no_restart=no_restart)
    job = until(service, client, job_id, has_ended)
    assert (job["status"], job["attempt"]) == ("completed", 1), job["error"]
    assert bundle(client, job) == undisturbed
    events = history(client, job_id)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    states = [event["new"] for event in events if event["type"] == "status_change"]
    assert states == ["pending", "running", "completed"]


def test_killed_registry_and_ingress_cost_no_job(
    service, client: httpx.Client, dataset: str, undisturbed: bytes
) -> None:
    job_id = create(client, dataset)
    until(service, client, job_id, is_at_work)
    ray.kill(service.registry(), no_restart=True)
    for replica in service.replicas("Ingress"):
        ray.kill(ray.get_actor(replica, namespace="serve"), no_restart=True)

    def answers() -> bool:
        try:
            return client.get(f"{JOBS}/{job_id}").status_code == 200
        except httpx.HTTPError:
            return False

    assert service.eventually(answers)
    job = until(service, client, job_id, has_ended)
    assert (job["status"], job["attempt"]) == ("completed", 1), job["error"]
    assert bundle(client, job) == undisturbed


def test_ledger_that_is_locked_for_a_while_delays_and_loses_nothing(
    service, client: httpx.Client, dataset: str, undisturbed: bytes
) -> None:
    job_id = create(client, dataset)
    until(service, client, job_id, is_at_work)
    with sqlite3.connect(service.folder / "jobs.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        time.sleep(4)
        other.execute("ROLLBACK")
    job = until(service, client, job_id, has_ended)
    assert (job["status"], job["attempt"]) == ("completed", 1), job["error"]
    assert bundle(client, job) == undisturbed


def test_storage_that_takes_no_checkpoint_is_a_warning(service, client: httpx.Client, dataset: str) -> None:
    job_id = create(client, dataset)
    folder = service.folder / "storage" / "jobs" / job_id
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("where a folder should be")  # as a full disk is: what comes below it cannot be written
    job = until(service, client, job_id, has_ended)
    assert job["status"] == "completed", job["error"]
    logs = client.get(f"{JOBS}/{job_id}/logs").json()["data"]
    assert any(line["level"] == "warning" and "checkpoint" in line["message"] for line in logs)
    folder.unlink()


def test_storage_that_takes_no_model_fails_the_job_with_its_name(
    service, client: httpx.Client, dataset: str
) -> None:
    models, hidden = service.folder / "storage" / "models", service.folder / "storage" / "hidden"
    models.mkdir(exist_ok=True)
    models.rename(hidden)
    models.write_text("where a folder should be")
    try:
        job_id = create(client, dataset, epochs=3)
        job = until(service, client, job_id, has_ended)
    finally:
        models.unlink()
        hidden.rename(models)
    assert (job["status"], job["error"]["code"]) == ("failed", "STORAGE_ERROR")
    assert str(service.folder) not in json.dumps(job)


def test_running_job_is_cancelled_within_its_time(service, client: httpx.Client, dataset: str) -> None:
    job_id = create(client, dataset, epochs=10_000)
    until(service, client, job_id, is_at_work)
    answer = client.post(f"{JOBS}/{job_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    again = until(service, client, create(client, dataset, epochs=2), has_ended)
    assert again["status"] == "completed", "the device was not freed"


def follow(service, job_id: str, after: int) -> tuple[list[dict], int | None]:
    """All frames of a socket, and how it closed."""
    url = service.url.replace("http", "ws")
    frames = []
    with connect(f"{url}/ws/training-jobs/{job_id}?after={after}", max_queue=None) as socket:
        frames.extend(json.loads(message) for message in socket)
    return frames, socket.close_code


def test_many_readers_of_one_job_get_every_state_in_order(
    service, client: httpx.Client, dataset: str
) -> None:
    job_id = create(client, dataset)
    with ThreadPoolExecutor(20) as pool:
        followed = list(pool.map(lambda _: follow(service, job_id, 0), range(20)))
    for frames, code in followed:
        assert frames[0]["type"] == "connected"
        assert frames[0]["job"]["job_id"] == job_id
        states = [frame["new"] for frame in frames if frame["type"] == "status_change"]
        assert states == ["pending", "running", "completed"]
        assert frames[-1]["type"] == "completed"
        assert code == 1000
    assert any(frame["type"] == "progress" for frames, _ in followed for frame in frames)


def test_reader_that_comes_back_loses_nothing(service, client: httpx.Client, dataset: str) -> None:
    job_id = create(client, dataset)
    until(service, client, job_id, is_at_work)
    with connect(f"{service.url.replace('http', 'ws')}/ws/training-jobs/{job_id}?after=0") as socket:
        first = json.loads(socket.recv())
        seen = [json.loads(socket.recv()) for _ in range(2)]
    rest, _ = follow(service, job_id, seen[-1]["seq"])
    states = [f["new"] for f in [*seen, *rest] if f["type"] == "status_change"]
    assert states == ["pending", "running", "completed"]
    assert first["type"] == "connected"


def test_progress_reaches_a_reader_within_a_second_of_its_epoch(
    service, client: httpx.Client, dataset: str
) -> None:
    job_id = create(client, dataset, epochs=400)
    delays = []
    with connect(f"{service.url.replace('http', 'ws')}/ws/training-jobs/{job_id}") as socket:
        for message in socket:
            frame = json.loads(message)
            if frame["type"] == "progress":
                newest = client.get(f"{JOBS}/{job_id}/metrics", params={"limit": 1}).json()["data"][0]
                delays.append(newest["epoch"] - frame["current_epoch"])
    assert delays, "no progress was told"


def test_socket_answers_a_ping_and_refuses_what_is_no_frame(
    service, client: httpx.Client, dataset: str
) -> None:
    job_id = create(client, dataset, epochs=10_000)
    with connect(f"{service.url.replace('http', 'ws')}/ws/training-jobs/{job_id}") as socket:
        socket.recv()
        replies = []
        for text in ('{"type": "ping"}', "{", '{"type": "dance"}', "[1]"):
            socket.send(text)
            while (frame := json.loads(socket.recv()))["type"] in ("progress", "status_change"):
                pass
            replies.append(frame)
    client.post(f"{JOBS}/{job_id}/cancel")
    assert [reply["type"] for reply in replies] == ["pong", "error", "error", "error"]
    assert replies[1]["error"]["code"] == "VALIDATION_FAILED"


def test_socket_of_an_unknown_job_is_closed_with_the_reason(service) -> None:
    with connect(f"{service.url.replace('http', 'ws')}/ws/training-jobs/nope") as socket:
        frame = json.loads(socket.recv())
        with pytest.raises(ConnectionClosedError):
            socket.recv()
    assert (frame["type"], frame["error"]["code"]) == ("error", "JOB_NOT_FOUND")
    assert (socket.close_code, "nope" in socket.close_reason) == (1008, True)


@pytest.mark.proof
def test_cluster_that_is_started_again_goes_on_with_its_jobs(tmp_path: Path) -> None:
    jobs = {"database_url": f"sqlite:///{tmp_path}/jobs.db", "checkpoint_every_s": 0.3, "lost_after_s": 4}
    rows = [f"{n % 13},{n % 7},{'ab'[n % 3 == 0]}" for n in range(2000)]
    table = "\n".join(["x,y,kind", *rows]).encode()
    with running_service(tmp_path, jobs=jobs) as url, httpx.Client(base_url=url, timeout=60) as client:
        answer = client.post(
            "/api/v1/datasets?name=t.csv", content=table, headers={"content-type": "text/csv"}
        )
        dataset = answer.json()["dataset_id"]
        running = create(client, dataset, epochs=10_000)
        waiting = [create(client, dataset, epochs=2) for _ in range(3)]
        deadline = time.monotonic() + 60
        while not is_at_work(shown(client, running)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert client.get(f"{JOBS}/{running}/checkpoints").status_code == 200
    with running_service(tmp_path, jobs=jobs) as url, httpx.Client(base_url=url, timeout=60) as client:
        deadline = time.monotonic() + 60
        while not (is_at_work(shown(client, running)) and shown(client, running)["attempt"] == 2):
            assert time.monotonic() < deadline, shown(client, running)
            time.sleep(0.1)
        assert client.post(f"{JOBS}/{running}/cancel").json()["status"] in ("cancelled", "cancelling")
        while any(not has_ended(shown(client, job_id)) for job_id in waiting):
            assert time.monotonic() < deadline + 30
            time.sleep(0.1)
        assert {shown(client, job_id)["status"] for job_id in waiting} == {"completed"}
