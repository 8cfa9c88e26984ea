"""The trainer: one job at a time on one device, stoppable between two batches."""

import asyncio
import importlib
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ray import serve
from ray.serve.exceptions import RayServeException

from core.bundles import Bundle
from core.contract import DistillRequest, TeacherSource, TrainRequest
from core.errors import (
    RuntimeUnavailableError,
    StillhouseError,
    TrainingError,
    TrainingStoppedError,
    TrainingTimeoutError,
    without_paths,
)
from core.registry_index import RunEntry
from core.teachers import read_teacher_path
from deployments.attempts import JobSource
from deployments.breakers import Breakers
from deployments.instruments import telemetry
from deployments.job_actor import JobsClient
from deployments.job_worker import JobWorker
from deployments.lookups import World
from deployments.origin import Origin
from deployments.registry import RegistryClient
from deployments.service import Report
from deployments.settings import Settings
from deployments.workload import (
    Request,
    Workload,
    give_way,
    release_memory,
    runtime_error,
    until_done,
    warm_up,
)

if TYPE_CHECKING:  # importing it imports torch
    from core.pipeline import Outcome

log = logging.getLogger(__name__)


class Trainer:
    """Trains and distils. Constructed without PyTorch it answers every job with RuntimeUnavailableError."""

    def __init__(
        self, settings: Settings, registry: RegistryClient | None = None, jobs: JobSource | None = None
    ) -> None:
        self.observer = telemetry(settings.telemetry, "trainer")
        self._settings = settings
        self._world = World.of(settings)
        self._registry = registry or RegistryClient(settings)
        self._breakers = Breakers(self._registry.breaker, self._world.storage.breaker)
        name, app = _place()
        self._job_worker = JobWorker(
            name, self, self._world, self._registry, jobs or JobsClient(settings, app)
        )
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="training", initializer=give_way)
        self._device = asyncio.Lock()
        self._executor.submit(warm_up)  # the first request need not wait for the import

    def __del__(self) -> None:
        """Serve calls it when the replica ends, before it kills the process."""
        self.observer.close()

    async def check_health(self) -> None:
        """Async, so that it answers while the training thread is busy; Serve asks every 10 s."""
        self.observer.state_of_trainings()
        self.observer.spared(self._breakers.by_service)
        self._breakers.obey(self._registry)

    async def runtime_error(self) -> str | None:
        """Why PyTorch cannot be imported here; None when it can."""
        return await asyncio.to_thread(runtime_error)

    async def run(
        self, run_id: str, request: TrainRequest | DistillRequest, origin: Origin
    ) -> AsyncIterator[Report]:
        """Trains, then stores the bundle under ``run_id`` (and saves it where the request says so).

        Leaving the iteration stops the training within one batch; the device is free, and this generator
        ends, only when the thread has really stopped. Nothing is stored then.

        Yields:
            ``started``, epochs at most every ``REPORT_EVERY_S``, and last the ``result`` with its body.

        Raises:
            StillhouseError: every failure as one; whatever else goes wrong is a TrainingError.
        """
        async with self._device:
            loop = asyncio.get_running_loop()
            reports: asyncio.Queue[Report | None] = asyncio.Queue()

            def emit(report: Report) -> None:
                loop.call_soon_threadsafe(reports.put_nowait, report)

            work = Workload(
                run_id,
                "train" if isinstance(request, TrainRequest) else "distill",
                lambda: request,
                origin,
                emit,
                limit_s=self._settings.trainer.job_timeout_s,
            )
            log.info("run %s starts", run_id, extra=work.log_fields())
            yield {"event": "started", "run_id": run_id}
            with self.observer.training(work.kind):
                working = self.start(work)
                working.add_done_callback(lambda _: reports.put_nowait(None))
                try:
                    while (report := await reports.get()) is not None:
                        yield report
                    body = await working
                finally:
                    work.stopped.set()
                    await until_done(working)
            log.info("run %s is kept", run_id, extra=work.log_fields())
            yield {"event": "result", "body": body}

    async def work(self, wake: str) -> int:
        """Runs jobs of the ledger for a while; see ``JobWorker.work``."""
        async with self._device:
            return await self._job_worker.work(wake)

    def start(self, work: Workload) -> asyncio.Future[Report]:
        """Begins a training in the thread for it; see ``job_worker.Bench``."""
        return asyncio.get_running_loop().run_in_executor(self._executor, self._work, work)

    def _work(self, work: Workload) -> Report:
        try:
            reason = runtime_error()
            if reason is not None:
                raise RuntimeUnavailableError(
                    f"PyTorch cannot be imported ({reason}): ask the operator to install it."
                )
            request = work.find_request()
            return self._keep(work, request, self._train(work, request))
        except TrainingStoppedError:
            if work.stopped.is_set():
                raise
            limit = work.limit_s
            raise TrainingTimeoutError(
                f"Training must end within {limit:g} s: lower epochs or send fewer rows.", limit_s=limit
            ) from None
        except StillhouseError:
            raise
        except Exception as error:  # noqa: BLE001  # seed 000: any failure is a 400 with its message
            self.observer.unexpected(error, work.origin)
            raise TrainingError(without_paths(str(error)) or type(error).__name__) from None
        finally:
            release_memory()

    def _train(self, work: Workload, request: Request) -> "Outcome":
        opener = self._world.opener(request.data)
        work.reading(request, opener)
        if isinstance(request, TrainRequest):
            pipeline = importlib.import_module("core.pipeline")
            training = pipeline.train(request, opener, work.should_stop, work.checkpoints)
        else:
            distillation = importlib.import_module("core.distillation")
            file, reference = self._teacher_file(request.teacher, work)
            teacher = distillation.Teacher(Bundle.from_bytes(file), len(file), reference)
            training = distillation.distill(request, opener, teacher, work.should_stop, work.checkpoints)
        outcome = work.follow(training)
        self.observer.trained(work.kind, sum(outcome.rows.values()), outcome.epochs_run)
        return outcome

    def _teacher_file(
        self, teacher: TeacherSource, work: Workload
    ) -> tuple[memoryview | bytes, dict[str, str]]:
        """The teacher's bundle file and how lineage calls it."""
        if teacher.kind == "run_id":
            return work.wait_for(self._registry.use(teacher.name))[1], {"run_id": teacher.name}
        if teacher.kind == "model_id":
            return self._world.models.read(teacher.name), {"model_id": teacher.name}
        return read_teacher_path(teacher.name, self._world.storage, self._settings.roots()), {
            "path": teacher.name
        }

    def _keep(self, work: Workload, request: Request, outcome: "Outcome") -> Report:
        """Stores and saves; on any failure, or when the client left meanwhile, nothing is kept."""
        if work.should_stop():
            raise TrainingStoppedError("Training was stopped because nobody waits for its result any more.")
        entry = work.wait_for(self._registry.store(_entry_of(work, outcome), outcome.file, work.origin))
        saving = request.saving
        try:
            if work.stopped.is_set():
                raise TrainingStoppedError("The client left before the result was stored.")
            path = None
            if saving is not None:
                repeatable = work.run_id if work.origin.idempotency else None
                path = self._world.models.save(
                    saving.model_id, outcome.file, overwrite=saving.overwrite, run_id=repeatable
                )
        except BaseException:
            work.wait_for(self._registry.remove(work.run_id))
            raise
        return _answer(entry, outcome, saving.model_id if saving else None, path)


def _entry_of(work: Workload, outcome: "Outcome") -> RunEntry:
    metrics, bundle = outcome.bundle.metrics, outcome.bundle
    now = time.time()
    return RunEntry(
        run_id=work.run_id,
        kind=work.kind,
        task=bundle.task,
        training_mode=bundle.training_mode,
        metric_name=str(metrics["test_metric_name"]),
        metric_value=float(metrics["test_metric_value"]),  # type: ignore[arg-type]
        size_bytes=len(outcome.file),
        created_at=now,
        expires_at=now,  # the registry sets it
        last_used_at=None,
        schema=bundle.schema,
        lineage=bundle.lineage,
    )


def _answer(entry: RunEntry, outcome: "Outcome", model_id: str | None, path: str | None) -> Report:
    """The body of 200 (contract, sections 4 and 5)."""
    expires_at = datetime.fromtimestamp(entry.expires_at, UTC).isoformat(timespec="seconds")
    return {
        "status": "ok",
        "run_id": entry.run_id,
        "model_id": model_id,
        "model_path": path,
        "metrics": dict(outcome.bundle.metrics),
        "expires_at": expires_at.replace("+00:00", "Z"),
        "epochs_run": outcome.epochs_run,
        "device": outcome.device,
        "rows": dict(outcome.rows),
        "timings_s": {name: round(seconds, 4) for name, seconds in outcome.timings_s.items()},
        "warnings": list(outcome.warnings),
        **outcome.comparison,
    }


def _place() -> tuple[str, str]:
    """Names of this process in the cluster and of its application; anything outside of Serve."""
    try:
        context = serve.get_replica_context()
    except RayServeException:
        return "trainer", "stillhouse"
    return context.replica_id.to_full_id_str(), context.app_name
