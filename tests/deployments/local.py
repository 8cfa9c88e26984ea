"""The whole service in one process: everything as in production, but that calls do not cross Ray."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path

import httpx
import numpy as np
from ray import cloudpickle
from ray.exceptions import RayTaskError

from core.catalogue import CATALOGUE
from core.errors import StillhouseError
from core.registry_index import RunEntry
from core.resilience import POLICIES, Caller, Integration
from core.saved_models import model_path
from deployments.dispatcher import Dispatcher
from deployments.ingress import Ingress
from deployments.job_actor import JobsConfiguration, courier_of, external_of
from deployments.predictor import Predictor
from deployments.registry import BundleRegistry, RegistryClient, RegistryConfiguration
from deployments.routes.examples import EXAMPLE_CSV
from deployments.settings import JobSettings, Settings
from deployments.trainer import Trainer

DATASETS, TRAIN, DISTILL, PREDICT = (
    f"/api/v1/{name}" for name in ("datasets", "train", "distill", "predict")
)
RUNS, MODELS = "/api/v1/runs", "/api/v1/models"
PROBLEM = "application/problem+json"
QUICK = {"target_column": "kind", "epochs": 3, "hidden_dim": 8, "num_hidden_layers": 1}
QUICK_STUDENT = {"target_column": "kind", "epochs": 3}


class LocalHandle:
    """A handle of Serve, or of an actor, to an object of this process.

    Arguments are pickled as Ray does it, and errors come back wrapped as Ray wraps them.
    """

    def __init__(self, target: object, stream: bool = False) -> None:
        self._target, self._stream = target, stream

    def options(self, *, stream: bool) -> "LocalHandle":
        return LocalHandle(self._target, stream)

    def __getattr__(self, name: str) -> "LocalMethod":
        return LocalMethod(getattr(self._target, name), self._stream)


class LocalMethod:
    def __init__(self, method: Callable, stream: bool) -> None:
        self._method, self._stream = method, stream

    def remote(self, *args: object) -> "LocalStream | LocalResponse":
        returned = self._method(*cloudpickle.loads(cloudpickle.dumps(args)))
        return LocalStream(returned) if self._stream else LocalResponse(returned)


class LocalResponse:
    def __init__(self, coroutine: Coroutine) -> None:
        self._task = asyncio.ensure_future(_wrapping(coroutine))

    def __await__(self):
        return self._task.__await__()

    def cancel(self) -> None:
        self._task.cancel()


class LocalStream:
    def __init__(self, generator: AsyncGenerator) -> None:
        self._generator = generator
        self._closing: asyncio.Future | None = None

    async def __anext__(self):
        return await _wrapping(anext(self._generator))

    def cancel(self) -> None:
        self._closing = asyncio.ensure_future(self._generator.aclose())


async def _wrapping(call):
    try:
        return await call
    except StopAsyncIteration:
        raise
    except Exception as error:  # noqa: BLE001  # as Ray does
        raise RayTaskError("call", "Traceback …", error).as_instanceof_cause() from None


class LocalObject:
    """What ``ray.put`` returns: awaited, it gives the object."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __await__(self):
        yield from ()
        return self._value


class LocalRegistry(RegistryClient):
    """A client whose actor lives in this process."""

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        super().__init__(settings)
        registry = BundleRegistry(RegistryConfiguration.of(settings), clock=clock, put=LocalObject)
        self._local = LocalHandle(registry)

    async def store(self, entry: RunEntry, file: bytes, origin=None) -> RunEntry:
        return await self._local.store.remote(entry, np.frombuffer(file, np.uint8), origin)

    async def _call(self, call):
        try:
            return await call(self._local)
        except RayTaskError as error:
            raise error.cause from None


class LocalJobs:
    """A dispatcher of this process, made when it is first asked: it needs a loop. Its one trainer is ours."""

    trainer: Trainer

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._dispatcher: Dispatcher | None = None
        self.failures: list[StillhouseError] = []  # of the next checks whether trainers run
        self.checks = 0

    def __getattr__(self, name: str):
        if self._dispatcher is None:
            jobs = self._settings.jobs
            configuration = JobsConfiguration(jobs, self._settings.telemetry, "stillhouse", 1, False)
            self._dispatcher = Dispatcher(
                jobs.database_url,
                configuration.rules(),
                self,
                stop_within_s=jobs.stop_within_s,
                calling=Caller("trainer", POLICIES[Integration.TRAINER], sleep=_no_sleep),
                courier=courier_of(jobs),
                external=external_of(jobs),
            )

        async def call(*args):
            returned = getattr(self._dispatcher, name)(*cloudpickle.loads(cloudpickle.dumps(args)))
            return cloudpickle.loads(cloudpickle.dumps(await returned))

        return call

    def capacity(self) -> int:
        return 1

    async def check(self) -> None:
        self.checks += 1
        if self.failures:
            raise self.failures.pop(0)

    async def work(self, wake: str) -> int:
        return await self.trainer.work(wake)

    async def kill(self, worker: str) -> None:
        raise AssertionError("the trainer of this process cannot be killed")

    async def close(self) -> None:
        if self._dispatcher is not None:
            await self._dispatcher.close()


async def _no_sleep(_: float) -> None: ...


class Witness:
    """An observer that remembers what it saw."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.errors: list[StillhouseError] = []

    def answered(self, scope, status, seconds) -> None:
        self.statuses.append(status)

    def failed(self, error, scope, origin) -> None:
        self.errors.append(error)

    def attempted(self, service, outcome) -> None:
        pass

    def replayed(self) -> None:
        pass

    def close(self) -> None:
        pass


class Clock:
    """Unix seconds that pass only when told to, from now on."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def local_service(
    settings: Settings, *, clock: Callable[[], float] = time.time, trainer: type[Trainer] = Trainer
) -> Ingress:
    """The service behind the routes, with a predictor that never trusts its cache."""
    registry, jobs = LocalRegistry(settings, clock), LocalJobs(settings)
    working = trainer(settings, registry, jobs)
    jobs.trainer = working
    predictor = Predictor(settings, clock=itertools.count().__next__)
    ingress = Ingress(settings, LocalHandle(working), LocalHandle(predictor), jobs)
    for part in (predictor, ingress):
        part._registry = registry
    return ingress


def settings_in(folder: Path, **changes: object) -> Settings:
    plain = {
        "storage_url": f"file://{folder}/storage",
        "data_roots": (f"{folder}/data",),
        "allow_no_auth": True,
        "jobs": JobSettings(database_url=f"sqlite:///{folder}/jobs.db"),
    }
    return Settings(**plain | changes)


def stored_files(settings: Settings) -> set[str]:
    """Names of everything that storage holds."""
    root = Path(settings.expanded_storage_url().removeprefix("file://"))
    return {file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()}


def place_model(storage: Path, model_id: str, content: bytes) -> None:
    """Puts any file where a saved model would be."""
    file = storage / model_path(model_id)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


async def upload(
    client: httpx.AsyncClient, content: str | bytes = EXAMPLE_CSV, name: str = "trees.csv"
) -> str:
    """Uploads a table; returns its dataset_id."""
    response = await client.post(
        DATASETS, params={"name": name}, content=content, headers={"content-type": "text/csv"}
    )
    assert response.status_code in (200, 201), response.text
    return response.json()["dataset_id"]


async def trained(client: httpx.AsyncClient, dataset_id: str, **changes: object) -> dict:
    """Trains quickly; returns the answer."""
    response = await client.post(TRAIN, json=QUICK | {"dataset_id": dataset_id} | changes)
    assert response.status_code == 200, response.text
    return response.json()


def strict_json(text: str | bytes) -> object:
    """JSON as the standard has it: NaN and Infinity are refused."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def failed(response: httpx.Response, status: int, code: str):
    """Asserts an error in the dialect of its route; returns its message (or its violations)."""
    entry, headers = CATALOGUE[code], response.headers
    assert (response.status_code, headers.get("x-error-code")) == (status, code), response.text
    assert headers["x-error-type"] == entry.type
    assert headers["x-request-id"]
    assert ("retry-after" in headers) == (entry.retry_after_s is not None)
    body = strict_json(response.content)
    if headers["content-type"] == PROBLEM:
        assert body["status"] == status
        return body["detail"]
    assert headers["content-type"] == "application/json"
    if response.request.url.path in (TRAIN, DISTILL):
        assert body.keys() == {"status", "error"}
        assert body["status"] == "error"
        return body["error"]
    if response.request.url.path.startswith("/api/v1/training-jobs"):
        assert body.keys() == {"error"}
        assert body["error"]["code"] == code
        return body["error"]["message"]
    assert body.keys() == {"detail"}
    return body["detail"]


def error_classes() -> list[type[StillhouseError]]:
    """Every class of the tree but its root and those that tests make."""
    found = [StillhouseError]
    for error_class in found:
        found.extend(error_class.__subclasses__())
    return [c for c in dict.fromkeys(found[1:]) if c.__module__.startswith("core.errors")]


ERRORS = error_classes()
