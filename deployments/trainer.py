"""The trainer: one job at a time on one device, stoppable between two batches."""

import asyncio
import contextlib
import gc
import importlib
import logging
import math
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from core.bundles import Bundle
from core.contract import DataSource, DistillRequest, TeacherSource, TrainRequest
from core.errors import (
    RuntimeUnavailableError,
    StillhouseError,
    TrainingError,
    TrainingStoppedError,
    TrainingTimeoutError,
    without_paths,
)
from core.paths import resolve_within
from core.registry_index import RunEntry
from core.saved_models import ModelStore
from core.storage import Storage
from core.table import Opener
from core.teachers import read_teacher_path
from deployments.instruments import telemetry
from deployments.origin import Origin
from deployments.registry import RegistryClient
from deployments.service import JobKind, Report
from deployments.settings import Settings

if TYPE_CHECKING:  # importing it imports torch
    from core.pipeline import Outcome, Work

Result = TypeVar("Result")
log = logging.getLogger(__name__)

REPORT_EVERY_S = 0.25
NICENESS = 10


class Trainer:
    """Trains and distils. Constructed without PyTorch it answers every job with RuntimeUnavailableError."""

    def __init__(self, settings: Settings) -> None:
        self.observer = telemetry(settings.telemetry, "trainer")
        self._settings = settings
        self._storage = Storage(settings.expanded_storage_url(), settings.storage_options)
        self._models = ModelStore(self._storage)
        self._registry = RegistryClient(settings)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="training", initializer=_give_way)
        self._device = asyncio.Lock()
        self._executor.submit(_warm_up)  # the first request need not wait for the import

    def __del__(self) -> None:
        """Serve calls it when the replica ends, before it kills the process."""
        self.observer.close()

    async def check_health(self) -> None:
        """Async, so that it answers while the training thread is busy; Serve asks every 10 s."""
        self.observer.state_of_trainings()

    async def runtime_error(self) -> str | None:
        """Why PyTorch cannot be imported here; None when it can."""
        return await asyncio.to_thread(_runtime_error)

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

            deadline = time.monotonic() + self._settings.trainer.job_timeout_s
            job = _Job(run_id, request, origin, emit, deadline, loop)
            log.info("run %s starts", run_id, extra=job.log_fields())
            yield {"event": "started", "run_id": run_id}
            with self.observer.training(job.kind):
                work = loop.run_in_executor(self._executor, self._work, job)
                work.add_done_callback(lambda _: reports.put_nowait(None))
                try:
                    while (report := await reports.get()) is not None:
                        yield report
                    body = await work
                finally:
                    job.stopped.set()
                    await _until_done(work)
            log.info("run %s is kept", run_id, extra=job.log_fields())
            yield {"event": "result", "body": body}

    def _work(self, job: "_Job") -> Report:
        try:
            reason = _runtime_error()
            if reason is not None:
                raise RuntimeUnavailableError(
                    f"PyTorch cannot be imported ({reason}): ask the operator to install it."
                )
            return self._keep(job, self._train(job))
        except TrainingStoppedError:
            if job.stopped.is_set():
                raise
            limit = self._settings.trainer.job_timeout_s
            raise TrainingTimeoutError(
                f"Training must end within {limit:g} s: lower epochs or send fewer rows.", limit_s=limit
            ) from None
        except StillhouseError:
            raise
        except Exception as error:  # noqa: BLE001  # seed 000: any failure is a 400 with its message
            self.observer.unexpected(error, job.origin)
            raise TrainingError(without_paths(str(error)) or type(error).__name__) from None
        finally:
            _release_memory()

    def _train(self, job: "_Job") -> "Outcome":
        opener = self._opener(job.request.data)
        if isinstance(job.request, TrainRequest):
            work = importlib.import_module("core.pipeline").train(job.request, opener, job.should_stop)
        else:
            distillation = importlib.import_module("core.distillation")
            file, reference = self._teacher_file(job.request.teacher, job)
            teacher = distillation.Teacher(Bundle.from_bytes(file), len(file), reference)
            work = distillation.distill(job.request, opener, teacher, job.should_stop)
        outcome = job.follow(work)
        self.observer.trained(job.kind, sum(outcome.rows.values()), outcome.epochs_run)
        return outcome

    def _opener(self, data: DataSource) -> Opener:
        if data.kind == "dataset":
            return lambda: self._storage.open_native(data.location)
        path = resolve_within(data.location, self._settings.roots())
        return lambda: pa.OSFile(str(path))

    def _teacher_file(self, teacher: TeacherSource, job: "_Job") -> tuple[memoryview | bytes, dict[str, str]]:
        """The teacher's bundle file and how lineage calls it."""
        if teacher.kind == "run_id":
            return job.wait_for(self._registry.use(teacher.name))[1], {"run_id": teacher.name}
        if teacher.kind == "model_id":
            return self._models.read(teacher.name), {"model_id": teacher.name}
        return read_teacher_path(teacher.name, self._storage, self._settings.roots()), {"path": teacher.name}

    def _keep(self, job: "_Job", outcome: "Outcome") -> Report:
        """Stores and saves; on any failure, or when the client left meanwhile, nothing is kept."""
        if job.should_stop():
            raise TrainingStoppedError("Training was stopped because nobody waits for its result any more.")
        entry = job.wait_for(self._registry.store(_entry_of(job, outcome), outcome.file, job.origin))
        saving = job.request.saving
        try:
            if job.stopped.is_set():
                raise TrainingStoppedError("The client left before the result was stored.")
            path = None
            if saving is not None:
                path = self._models.save(saving.model_id, outcome.file, overwrite=saving.overwrite)
        except BaseException:
            job.wait_for(self._registry.remove(job.run_id))
            raise
        return _answer(entry, outcome, saving.model_id if saving else None, path)


class _Job:
    """One training as its thread sees it."""

    def __init__(
        self,
        run_id: str,
        request: TrainRequest | DistillRequest,
        origin: Origin,
        emit: Callable[[Report], None],
        deadline: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.run_id, self.request, self.origin = run_id, request, origin
        self.kind: JobKind = "train" if isinstance(request, TrainRequest) else "distill"
        self.stopped = threading.Event()
        self._emit, self._deadline, self._loop = emit, deadline, loop

    def log_fields(self) -> dict[str, str]:
        return {"run_id": self.run_id, **self.origin.log_fields()}

    def should_stop(self) -> bool:
        return self.stopped.is_set() or time.monotonic() > self._deadline

    def wait_for(self, coroutine: Coroutine[object, object, Result]) -> Result:
        """Runs a coroutine on the replica's loop while this thread waits."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def follow(self, work: "Work") -> "Outcome":
        """Runs the training to its end and passes on reports, not more often than people can read."""
        emitted, waiting = -math.inf, None
        while True:
            try:
                waiting = next(work)
            except StopIteration as end:
                if waiting is not None:  # the last epoch is told, however quick it was
                    self._emit({"event": "epoch", **asdict(waiting)})
                return end.value  # type: ignore[no-any-return]
            if time.monotonic() - emitted >= REPORT_EVERY_S:
                emitted = time.monotonic()
                self._emit({"event": "epoch", **asdict(waiting)})
                waiting = None


def _warm_up() -> None:
    """Imports what jobs need, and lets collections pass over it: they took 0.25 s after every job."""
    if _runtime_error() is None and not gc.get_freeze_count():
        importlib.import_module("core.distillation")
        gc.collect()
        gc.freeze()


def _give_way() -> None:
    """Lets those who answer go first where they share cores: on Linux it concerns this thread and its own."""
    os.nice(NICENESS)


def _runtime_error() -> str | None:
    try:
        importlib.import_module("torch")
    except Exception as error:  # noqa: BLE001  # a broken installation raises what it likes
        return without_paths(f"{type(error).__name__}: {error}")
    return None


def _release_memory() -> None:
    """Gives what the last training used back to the machine and to the device."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


async def _until_done(work: asyncio.Future[Report]) -> None:
    """Waits for the thread even while this task is being cancelled again and again."""
    while not work.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([work])
    if not work.cancelled():
        work.exception()  # marks it as seen


def _entry_of(job: _Job, outcome: "Outcome") -> RunEntry:
    metrics, bundle = outcome.bundle.metrics, outcome.bundle
    now = time.time()
    return RunEntry(
        run_id=job.run_id,
        kind=job.kind,
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
