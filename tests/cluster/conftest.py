"""One real Ray cluster, with Serve and the whole application, for all tests of this folder."""

import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
import ray
from ray import serve

from deployments.app import build
from deployments.proxy import ENVIRONMENT
from deployments.settings import (
    IngressSettings,
    JobSettings,
    PredictorSettings,
    RegistrySettings,
    Settings,
    TrainerSettings,
)

EXTERNAL_TRAINER = Path(__file__).parents[1] / "deployments/external_trainer.py"


@dataclass(frozen=True)
class Service:
    """A running application and how to reach what it is made of."""

    url: str
    settings: Settings
    folder: Path

    def client(self, timeout: float = 120) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=timeout)

    @property
    def handle(self) -> serve.handle.DeploymentHandle:
        return serve.get_app_handle("stillhouse")

    def replicas(self, deployment: str) -> list[str]:
        """Names of the live replica actors of a deployment."""
        prefix = f"SERVE_REPLICA::stillhouse#{deployment}#"
        actors = ray.util.list_named_actors(all_namespaces=True)
        return sorted(actor["name"] for actor in actors if actor["name"].startswith(prefix))

    def registry(self) -> ray.actor.ActorHandle:
        return ray.get_actor(self.settings.registry.name, namespace=self.settings.registry.namespace)

    @staticmethod
    def eventually(condition: Callable[[], bool], within_s: float = 60) -> bool:
        """Whether the condition comes true in time."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(0.1)
        return condition()

    def stored(self) -> set[str]:
        """Every file of the artefact store."""
        root = self.folder / "storage"
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A local cluster with logical CPUs to spare; its HTTP address."""
    port = free_port()
    os.environ.update(ENVIRONMENT)
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, namespace="tests")
    serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": None})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="session")
def service(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The application with one trainer, on storage of its own."""
    folder = tmp_path_factory.mktemp("service")
    settings = Settings(
        storage_url=f"file://{folder}/storage",
        data_roots=(f"{folder}/data",),
        allow_no_auth=True,
        registry=RegistrySettings(name="tests-registry", namespace="tests"),
        trainer=TrainerSettings(max_replicas=1),
        jobs=JobSettings(
            name="tests-jobs",
            database_url=f"sqlite:///{folder}/jobs.db",
            checkpoint_every_s=0.3,
            lost_after_s=6,
            callback_secret="of the tests",  # noqa: S106
            callback_private=True,
            external_command=(sys.executable, "-I", str(EXTERNAL_TRAINER), "slow", "--wait", "1"),
            external_folder=f"{folder}/external",
            external_url=cluster,
        ),
        predictor=PredictorSettings(max_replicas=1),
        ingress=IngressSettings(replicas=1),
    )
    serve.run(build(settings), name="stillhouse", route_prefix="/")
    yield Service(cluster, settings, folder)
    serve.delete("stillhouse")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


@pytest.fixture(scope="session")
def dataset(service: Service) -> str:
    """2,000 rows of two classes: quick to learn, slow enough to be interrupted with many epochs."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(2000, 6)).round(4), columns=[f"x{i}" for i in range(6)])
    frame["colour"] = rng.choice(["red", "green", "blue"], len(frame))
    frame["kind"] = np.where(frame.x0 + frame.x1 * frame.x2 + (frame.colour == "red") > 0, "oak", "ash")
    with service.client() as client:
        answer = client.post(
            "/api/v1/datasets?name=trees.csv",
            content=frame.to_csv(index=False).encode(),
            headers={"Content-Type": "text/csv"},
        )
        assert answer.status_code in (200, 201), answer.text
        return answer.json()["dataset_id"]


@pytest.fixture(scope="session")
def teacher(service: Service, dataset: str) -> dict:
    """The answer to a train request, saved as the model ``teacher``."""
    with service.client() as client:
        answer = client.post(
            "/api/v1/train",
            json={
                "dataset_id": dataset,
                "target_column": "kind",
                "epochs": 15,
                "save_model": True,
                "model_id": "teacher",
            },
        )
        assert answer.status_code == 200, answer.text
        return answer.json()
