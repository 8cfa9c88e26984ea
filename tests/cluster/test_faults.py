"""What clients see when trainers, the registry or the client itself go away."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve

from deployments.app import build
from deployments.settings import RegistrySettings, TrainerSettings

pytestmark = pytest.mark.cluster

ENDLESS = {"target_column": "kind", "epochs": 10_000, "early_stopping_patience": 0, "batch_size": 16}
ROW = {"x0": 1.5, "x1": 0.1, "x2": 0.3, "x3": 0, "x4": 0, "x5": 0, "colour": "red"}


class Training:
    """A train request in a thread of its own."""

    def __init__(self, service, payload: dict) -> None:
        self.answer: httpx.Response | None = None
        self._thread = threading.Thread(target=self._run, args=(service, payload))
        self._thread.start()

    def _run(self, service, payload: dict) -> None:
        with service.client() as client:
            self.answer = client.post("/api/v1/train", json=payload)

    def join(self, timeout_s: float) -> httpx.Response:
        self._thread.join(timeout_s)
        assert self.answer is not None, "the request was not answered in time"
        return self.answer


@contextmanager
def running(client: httpx.Client, payload: dict) -> Iterator[None]:
    """A training that has finished an epoch; leaving the block is leaving the service."""
    headers = {"Accept": "text/event-stream"}
    with client.stream("POST", "/api/v1/train", json=payload, headers=headers) as answer:
        lines = answer.iter_lines()
        assert "event: epoch" in lines
        yield


def test_client_that_leaves_stops_its_training_and_frees_the_device(
    service, client: httpx.Client, dataset: str
) -> None:
    before = service.stored()
    with running(client, {"dataset_id": dataset, **ENDLESS}):
        pass
    started = time.monotonic()
    with service.client(timeout=60) as other:
        answer = other.post(
            "/api/v1/train", json={"dataset_id": dataset, "target_column": "kind", "epochs": 1}
        )
    assert answer.status_code == 200, answer.text
    assert time.monotonic() - started < 20, "the endless training went on"
    new = {name for name in service.stored() - before if name.startswith("runs/")}
    assert {name.split("/")[1].split(".")[0] for name in new} == {answer.json()["run_id"]}


def test_plain_request_that_is_abandoned_stops_too(service, dataset: str) -> None:
    with pytest.raises(httpx.ReadTimeout), service.client(timeout=2) as impatient:
        impatient.post("/api/v1/train", json={"dataset_id": dataset, **ENDLESS})
    with service.client(timeout=60) as other:
        answer = other.post(
            "/api/v1/train", json={"dataset_id": dataset, "target_column": "kind", "epochs": 1}
        )
    assert answer.status_code == 200, answer.text


def test_client_cannot_switch_off_that_leaving_stops_its_training(service, dataset: str) -> None:
    headers = {"x-request-disconnect-disabled": "?1", "x-request-timeout-seconds": "0.001"}
    with pytest.raises(httpx.ReadTimeout), service.client(timeout=2) as impatient:
        impatient.post("/api/v1/train", json={"dataset_id": dataset, **ENDLESS}, headers=headers)
    with service.client(timeout=30) as other:
        answer = other.post(
            "/api/v1/train", json={"dataset_id": dataset, "target_column": "kind", "epochs": 1}
        )
    assert answer.status_code == 200, answer.text


def test_second_training_waits_for_the_device(service, dataset: str) -> None:
    payload = {"dataset_id": dataset, "target_column": "kind", "epochs": 30, "early_stopping_patience": 0}
    first, second = Training(service, payload), Training(service, payload)
    answers = [first.join(60), second.join(60)]
    assert [answer.status_code for answer in answers] == [200, 200]
    metrics = [answer.json()["metrics"] for answer in answers]
    assert metrics[0] == metrics[1], "trainings on one device disturbed each other"


def test_killed_trainer_gives_503_and_the_next_request_works(
    service, client: httpx.Client, dataset: str, teacher: dict
) -> None:
    before = {name for name in service.stored() if name.startswith("runs/")}
    training = Training(service, {"dataset_id": dataset, **ENDLESS})
    assert service.eventually(lambda: client.get("/api/v1/limits").json()["queue"]["free"] < 64)
    [replica] = service.replicas("Trainer")
    ray.kill(ray.get_actor(replica, namespace="serve"), no_restart=True)
    answer = training.join(60)
    assert answer.status_code == 503, answer.text
    assert answer.json()["status"] == "error"
    assert answer.headers["X-Error-Code"] == "TRAINER_UNREACHABLE"
    assert int(answer.headers["Retry-After"]) > 0
    assert {name for name in service.stored() if name.startswith("runs/")} == before
    again = client.post("/api/v1/train", json={"dataset_id": dataset, "target_column": "kind", "epochs": 1})
    assert again.status_code == 200, again.text
    predicted = client.post("/api/v1/predict", json={"run_id": teacher["run_id"], "rows": [ROW]})
    assert predicted.status_code == 200


@pytest.mark.parametrize("no_restart", [False, True], ids=["restarted", "gone"])
def test_killed_registry_comes_back_with_every_run(
    service, client: httpx.Client, teacher: dict, no_restart: bool
) -> None:
    before = client.get("/api/v1/runs", params={"limit": 100}).json()["data"]
    assert before
    ray.kill(service.registry(), no_restart=no_restart)
    after = client.get("/api/v1/runs", params={"limit": 100}).json()["data"]
    soon = datetime.now(UTC) + timedelta(minutes=2)  # runs whose time is up meanwhile may go
    before = [run for run in before if datetime.fromisoformat(run["expires_at"]) > soon]
    assert before
    kept = {run["run_id"] for run in before}
    assert [run["run_id"] for run in after if run["run_id"] in kept] == [run["run_id"] for run in before]
    for run in before:
        assert len(client.get(f"/api/v1/runs/{run['run_id']}/bundle").content) == run["bytes"]
    answer = client.post("/api/v1/predict", json={"run_id": teacher["run_id"], "rows": [ROW]})
    assert answer.status_code == 200, answer.text


def test_deleted_run_is_not_served_for_more_than_a_second(
    service, client: httpx.Client, dataset: str
) -> None:
    run = client.post(
        "/api/v1/train", json={"dataset_id": dataset, "target_column": "kind", "epochs": 1}
    ).json()
    question = {"run_id": run["run_id"], "rows": [ROW]}
    assert client.post("/api/v1/predict", json=question).status_code == 200
    assert client.delete(f"/api/v1/runs/{run['run_id']}").status_code == 204
    deleted = time.monotonic()
    while (answer := client.post("/api/v1/predict", json=question)).status_code == 200:
        assert time.monotonic() - deleted < 1.5, (
            "a deleted run is served on"
        )  # 1 s and what one request takes
    assert answer.status_code == 404
    assert client.get(f"/api/v1/runs/{run['run_id']}").status_code == 404
    assert client.delete(f"/api/v1/runs/{run['run_id']}").status_code == 404
    assert not [name for name in service.stored() if run["run_id"] in name]


def test_overwritten_model_is_served_anew(service, client: httpx.Client, dataset: str) -> None:
    def train(seed: int) -> None:
        payload = {"dataset_id": dataset, "target_column": "kind", "epochs": 1, "random_seed": seed}
        saving = {"save_model": True, "model_id": "changing", "overwrite": True}
        assert client.post("/api/v1/train", json={**payload, **saving}).status_code == 200

    def predict() -> list:
        return client.post("/api/v1/predict", json={"model_id": "changing", "rows": [ROW]}).json()[
            "probabilities"
        ]

    train(1)
    first = predict()
    train(2)
    assert service.eventually(lambda: predict() != first, within_s=3)


def test_trainer_without_torch_answers_503_before_anything_else_and_the_service_stays_up(
    service, cluster: str, tmp_path_factory
) -> None:
    folder = tmp_path_factory.mktemp("without-torch")
    (folder / "torch.py").write_text("raise ImportError('no torch here')\n")
    settings = service.settings.model_copy(
        update={
            "registry": RegistrySettings(name="without-torch", namespace="tests"),
            "trainer": TrainerSettings(
                max_replicas=1, runtime_env={"env_vars": {"PYTHONPATH": f"{folder}:{Path.cwd()}"}}
            ),
            "storage_url": f"file://{folder}/storage",
        }
    )
    serve.run(build(settings), name="without-torch", route_prefix="/without-torch")
    try:
        with httpx.Client(base_url=f"{cluster}/without-torch", timeout=60) as client:
            for kind in ("train", "distill"):
                answer = client.post(f"/api/v1/{kind}", json={"everything": "else is wrong too"})
                assert answer.status_code == 503, answer.text
                assert answer.json()["status"] == "error"
                assert "PyTorch" in answer.json()["error"]
                assert answer.headers["X-Error-Code"] == "RUNTIME_UNAVAILABLE"
            assert client.get("/health/ready").status_code == 200
            health = client.get("/health").json()
            assert "no torch here" in health["components"]["trainer"]["status"]
    finally:
        serve.delete("without-torch")
        ray.kill(ray.get_actor("without-torch", namespace="tests"), no_restart=True)


def test_full_queue_is_refused_at_once(service, cluster: str, tmp_path_factory, dataset: str) -> None:
    settings = service.settings.model_copy(
        update={"trainer": TrainerSettings(max_replicas=1, queue_capacity=1)}
    )
    serve.run(build(settings), name="small-queue", route_prefix="/small-queue")
    try:
        with httpx.Client(base_url=f"{cluster}/small-queue", timeout=60) as client:
            with running(client, {"dataset_id": dataset, **ENDLESS}), service.client() as other:
                started = time.monotonic()
                answer = other.post(
                    f"{cluster}/small-queue/api/v1/train",
                    json={"dataset_id": dataset, "target_column": "kind", "epochs": 1},
                )
            assert time.monotonic() - started < 2
            assert answer.status_code == 503
            assert answer.headers["X-Error-Code"] == "QUEUE_FULL"
            assert "Retry-After" in answer.headers
    finally:
        serve.delete("small-queue")


def test_trainers_scale_from_zero(service, cluster: str, dataset: str) -> None:
    trainer = TrainerSettings(min_replicas=0, max_replicas=1, upscale_delay_s=0)
    settings = service.settings.model_copy(update={"trainer": trainer})
    serve.run(build(settings), name="from-zero", route_prefix="/from-zero")
    try:
        with httpx.Client(base_url=f"{cluster}/from-zero", timeout=120) as client:
            refused = client.post("/api/v1/train", json={"dataset_id": dataset})
            assert refused.status_code == 400, refused.text
            answer = client.post(
                "/api/v1/train", json={"dataset_id": dataset, "target_column": "kind", "epochs": 1}
            )
            assert answer.status_code == 200, answer.text
    finally:
        serve.delete("from-zero")
