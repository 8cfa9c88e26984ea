"""Breakers on a live cluster: two ingresses, a bucket that goes away, and trainers that die of every job."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import boto3
import httpx
import pytest
import ray
from moto.server import ThreadedMotoServer
from ray import serve

from deployments import app
from deployments.settings import Settings
from deployments.trainer import Trainer
from tests.cluster.conftest import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.proof, pytest.mark.timeout(600)]
KEYS = {"key": "testing", "secret": "testing"}
CSV = b"a,kind\n" + b"1,oak\n2,ash\n" * 40


class Bucket:
    """S3 that can go away and come back with all that it had."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.come()
        secrets = {"aws_access_key_id": KEYS["key"], "aws_secret_access_key": KEYS["secret"]}
        s3 = boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", **secrets)
        s3.create_bucket(Bucket="breakers")

    def come(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()

    def go(self) -> None:
        self._server.stop()


@dataclass(frozen=True)
class Place:
    """The application, and what its parts depend on."""

    url: str
    bucket: Bucket
    poison: Path
    settings: Settings

    def ask(self, method: str, path: str, **request) -> httpx.Response:
        return httpx.request(method, f"{self.url}/api/v1{path}", timeout=120, **request)

    def ask_many(self, times: int, method: str, path: str, **request) -> list[httpx.Response]:
        """At once, for both ingresses to be asked."""
        with ThreadPoolExecutor(times) as threads:
            return list(threads.map(lambda _: self.ask(method, path, **request), range(times)))

    def states(self, service: str) -> set[str]:
        """What either ingress says."""
        answers = self.ask_many(12, "GET", "/breakers")
        return {shown["state"] for a in answers for shown in a.json()["data"] if shown["service"] == service}

    def until(self, condition: Callable[[], bool], within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, "it did not come true in time"
            threading.Event().wait(0.5)


def dying(poison: Path) -> type[Trainer]:
    def die_if_poisoned() -> None:
        if poison.exists():
            os._exit(1)

    class Dying(Trainer):
        """Ends with its process, before it takes the job, while there is poison."""

        async def run(self, run_id, request, origin):
            die_if_poisoned()
            async for report in super().run(run_id, request, origin):
                yield report

    return Dying


@pytest.fixture(scope="module")
def place(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder, bucket = tmp_path_factory.mktemp("breakers"), Bucket()
    settings = Settings(
        storage_url="s3://breakers/all",
        storage_options={"endpoint_url": bucket.url, **KEYS, "client_kwargs": {"region_name": "us-east-1"}},
        data_roots=(f"{folder}/data",),
        allow_no_auth=True,
        registry={"name": "breakers-registry", "namespace": "breakers"},
        jobs={"name": "breakers-jobs", "database_url": f"sqlite:///{folder}/jobs.db"},
        trainer={"min_replicas": 2, "max_replicas": 2, "cpus_per_trainer": 0.5},
        predictor={"max_replicas": 1},
        ingress={"replicas": 2},
    )
    poison = folder / "poison"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(app, "Trainer", type("Trainer", (dying(poison),), {}))
        serve.run(app.build(settings), name="breakers", route_prefix="/breakers")
    yield Place(f"{cluster}/breakers", bucket, poison, settings)
    serve.delete("breakers")


def codes(answers: list[httpx.Response]) -> set[str]:
    return {answer.headers.get("x-error-code", "") for answer in answers}


def test_trainers_that_die_of_every_job_are_spared_seen_and_closed_in_both_ingresses(place) -> None:
    dataset_id = place.ask("POST", "/datasets?name=t.csv", content=CSV, headers={"content-type": "text/csv"})
    job = {"dataset_id": dataset_id.json()["dataset_id"], "target_column": "kind", "epochs": 1}
    assert place.ask("POST", "/train", json=job).status_code == 200
    place.poison.touch()
    lost = place.ask_many(8, "POST", "/train", json=job)
    assert codes(lost) <= {"TRAINER_UNREACHABLE", "CIRCUIT_OPEN"}
    assert "open" in place.states("trainer")
    place.poison.unlink()
    assert place.ask("POST", "/breakers/trainer/reset").status_code == 204
    place.until(lambda: place.states("trainer") == {"closed"}, within_s=25)
    place.until(lambda: place.ask("POST", "/train", json=job).status_code == 200, within_s=60)


def test_bucket_that_is_gone_is_spared_and_one_reset_closes_every_breaker(place) -> None:
    assert place.states("storage") == {"closed"}
    place.bucket.go()
    try:
        failed = place.ask_many(12, "GET", "/models")
        assert codes(failed) <= {"STORAGE_ERROR", "CIRCUIT_OPEN"}
        place.until(lambda: place.ask_many(12, "GET", "/models") and place.states("storage") == {"open"}, 60)
        begun = time.monotonic()
        refused = place.ask_many(6, "GET", "/models")
        assert codes(refused) == {"CIRCUIT_OPEN"}
        assert all(60 < int(answer.headers["retry-after"]) <= 120 for answer in refused)
        assert time.monotonic() - begun < 2
    finally:
        place.bucket.come()
    assert place.ask("POST", "/breakers/storage/reset").status_code == 204
    place.until(lambda: place.states("storage") == {"closed"}, within_s=25)
    assert {answer.status_code for answer in place.ask_many(6, "GET", "/models")} == {200}


def registry_is_spared(place: Place) -> bool:
    """Whether it is by both ingresses, after some more calls."""
    assert codes(place.ask_many(14, "GET", "/runs")) <= {"SERVICE_UNAVAILABLE", "CIRCUIT_OPEN"}
    return place.states("registry") == {"open"}


def test_registry_that_does_not_come_back_is_spared_and_found_again(place) -> None:
    assert {answer.status_code for answer in place.ask_many(4, "GET", "/runs")} == {200}
    place.bucket.go()  # without which a registry does not start
    try:
        registry = place.settings.registry
        ray.kill(ray.get_actor(registry.name, namespace=registry.namespace), no_restart=False)
        place.until(lambda: registry_is_spared(place), within_s=120)
        begun = time.monotonic()
        assert codes(place.ask_many(6, "GET", "/runs")) == {"CIRCUIT_OPEN"}
        assert time.monotonic() - begun < 2
    finally:
        place.bucket.come()
    place.until(
        lambda: {answer.status_code for answer in place.ask_many(6, "GET", "/runs")} == {200}, within_s=60
    )
    assert place.states("registry") == {"closed"}
