"""One attempt at a job, where it runs: told as it goes on, kept as it goes on, ended when it must."""

import asyncio
import contextlib
import hashlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final, Protocol

from core.contract import DistillRequest, TrainRequest, validate_distill, validate_train
from core.errors import (
    DatasetError,
    ServiceUnavailableError,
    SnapshotError,
    StillhouseError,
    StorageError,
    TrainingStoppedError,
    WorkerDiedError,
)
from core.jobs.records import Assignment, Checkpoint, EpochMetrics, LogLine, Report, Verdict
from core.jobs.snapshots import check_snapshot, take_snapshot
from core.storage import Storage
from core.table import Opener
from deployments.callback_desk import Told
from deployments.lookups import World

log = logging.getLogger(__name__)

TELL_EVERY_S: Final = 0.5
BEAT_EVERY_S: Final = 2.0
FOLDER: Final = "jobs"
TOLD_WITHIN_S: Final = 600.0
"""The last word of an attempt is repeated for so long; then its heartbeats are missed, and it runs again."""
_EPOCH_FIELDS: Final = frozenset({"event", "epoch", "epochs"})


class JobSource(Told, Protocol):
    """Gives out jobs and is told of them: the dispatcher."""

    async def claim(self, worker: str, wake: str) -> Assignment | None: ...


class Attempt:
    """What one attempt has to tell, filled by its thread and emptied by ``telling``.

    Attributes:
        run_id: The same for all attempts at a job: they end with the same bits.
        ended: Set when the job is no more this attempt's to run, or is to be cancelled.
    """

    def __init__(
        self, assignment: Assignment, storage: Storage, every_s: float, clock: Callable[[], float]
    ) -> None:
        self.assignment, self._storage = assignment, storage
        self.run_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"stillhouse job {assignment.job_id}"))
        self._every_s, self._clock = every_s, clock
        self._kept_at = self._active_at = clock()
        self._epochs: list[EpochMetrics] = []
        self._logs: list[LogLine] = []
        self._checkpoints: list[Checkpoint] = []
        self._snapshot: dict[str, object] | None = None
        self._best_loss = float("inf")

    # ── From the thread that trains ─────────────────────────────────────────────────────────────────────

    def moved(self) -> None:
        """The training went on."""
        self._active_at = self._clock()

    def epoch(self, report: Mapping[str, object]) -> None:
        metrics = {name: value for name, value in report.items() if name not in _EPOCH_FIELDS}
        number, of = report["epoch"], report["epochs"]
        assert isinstance(number, int) and isinstance(of, int)  # noqa: S101, PT018  # the engine's
        self._epochs.append(EpochMetrics(number, of, metrics))

    def say(self, message: str) -> None:
        self._logs.append(LogLine(self._clock(), "info", message))

    def check_data(self, request: TrainRequest | DistillRequest, open_file: Opener) -> None:
        """Records what is going to be read, or compares it with what an earlier attempt recorded.

        Raises:
            DatasetError, DatasetBrokenError, SnapshotError
        """
        if self.assignment.snapshot is not None:
            check_snapshot(self.assignment.snapshot, open_file)
            return
        try:
            self._snapshot = take_snapshot(request, open_file, self._clock())
        except DatasetError:
            raise
        except StorageError as error:
            raise SnapshotError("The snapshot of the dataset could not be taken.") from error

    # ── core.training.Checkpoints ───────────────────────────────────────────────────────────────────────

    def latest(self) -> bytes | None:
        path = self.assignment.checkpoint
        if path is None:
            return None
        state = self._storage.read(path)
        self.say("The training goes on from its last checkpoint.")
        return state

    def due(self, epoch: int) -> bool:
        return epoch > 0 and self._clock() - self._kept_at >= self._every_s

    def keep(self, epoch: int, state: bytes) -> None:
        """Storage that fails now spoils no training: the next checkpoint is tried in its turn."""
        job, self._kept_at = self.assignment, self._clock()
        name = f"{job.attempt:04d}-{epoch:06d}"
        path = f"{FOLDER}/{job.job_id}/checkpoints/{name}.safetensors"
        try:
            self._storage.write(path, state)
        except StorageError as error:
            log.warning("a checkpoint of job %s could not be kept", job.job_id)
            self._logs.append(LogLine(self._clock(), "warning", f"No checkpoint was kept: {error.code}."))
            return
        metrics = dict(self._epochs[-1].metrics) if self._epochs else {}
        digest = hashlib.sha256(state).hexdigest()
        self._checkpoints.append(
            Checkpoint(
                checkpoint_id=f"{job.job_id}.{name}",
                job_id=job.job_id,
                attempt=job.attempt,
                epoch=epoch,
                is_best=self._is_best(metrics),
                metrics=metrics,
                bytes=len(state),
                sha256=digest,
                created_at=self._kept_at,
                path=path,
            )
        )

    def _is_best(self, metrics: Mapping[str, object]) -> bool:
        loss = metrics.get("validation_loss")
        if not isinstance(loss, int | float) or loss >= self._best_loss:
            return False
        self._best_loss = loss
        return True

    # ── On the loop ─────────────────────────────────────────────────────────────────────────────────────

    def report(self) -> Report:
        """What there is to tell, once."""
        epochs, self._epochs = self._epochs, []
        logs, self._logs = self._logs, []
        checkpoints, self._checkpoints = self._checkpoints, []
        snapshot, self._snapshot = self._snapshot, None
        silent_s = max(0.0, self._clock() - self._active_at)
        return Report(tuple(epochs), tuple(logs), (), tuple(checkpoints), snapshot, silent_s)

    def put_back(self, report: Report) -> None:
        """What could not be told is told with what comes next."""
        self._epochs[:0], self._logs[:0] = report.epochs, report.logs
        self._checkpoints[:0] = report.checkpoints
        self._snapshot = self._snapshot or (None if report.snapshot is None else dict(report.snapshot))


async def keep_telling(
    attempt: Attempt, ledger: JobSource, end: Callable[[], None], done: asyncio.Event
) -> None:
    """Tells what there is every ``TELL_EVERY_S``, or beats; a ledger that fails never stops a training.

    Args:
        end: Called when the ledger says that the attempt must end.
        done: Ends it.
    """
    told_at = -BEAT_EVERY_S
    while not done.is_set():
        report = attempt.report()
        now = time.monotonic()
        if report or now - told_at >= BEAT_EVERY_S:
            told_at = now
            if not await tell(attempt, ledger, report):
                end()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), TELL_EVERY_S)


async def tell(attempt: Attempt, ledger: JobSource, report: Report) -> bool:
    """Whether the attempt may go on."""
    job = attempt.assignment
    try:
        verdict = await ledger.report(job.job_id, job.attempt, report)
    except StillhouseError:
        log.warning("the ledger does not take the report of job %s; it is told later", job.job_id)
        attempt.put_back(report)
        return True
    return not verdict.cancel


async def insist(call: Callable[[], Awaitable[Verdict]]) -> Verdict | None:
    """The verdict on the last word of an attempt; None when it could not be told."""
    deadline = time.monotonic() + TOLD_WITHIN_S
    while True:
        try:
            return await call()
        except StillhouseError as error:
            log.warning("the ledger does not take the end of a job: %s", error)
            if not isinstance(error, ServiceUnavailableError) and not error.may_repeat:
                return None
        if time.monotonic() > deadline:
            return None
        await asyncio.sleep(1)


def request_of(
    assignment: Assignment, world: World, runtime_error: str | None, teacher_error: StillhouseError | None
) -> TrainRequest | DistillRequest:
    """The job's request, with everything that it names looked up; a missing dataset is said first.

    Raises:
        StillhouseError
    """
    payload = {"save_model": True, "model_id": assignment.job_id, **assignment.payload}
    if assignment.losses or payload["model_id"] == assignment.job_id:
        payload["overwrite"] = True  # what an earlier attempt may have saved
    lookups = world.lookups(runtime_error, teacher_error)
    dataset_id = payload.get("dataset_id")
    if isinstance(dataset_id, str) and payload.get("data_path") is None:
        lookups.find_dataset(dataset_id)
    return (validate_train if assignment.kind == "train" else validate_distill)(payload, lookups)


def as_lost(error: StillhouseError, *, asked_to_end: bool) -> StillhouseError:
    """A training that was stopped although nobody asked: its process is going down."""
    if isinstance(error, TrainingStoppedError) and not asked_to_end:
        return WorkerDiedError("The trainer of this job was shut down.")
    return error


@contextlib.asynccontextmanager
async def told_meanwhile(attempt: Attempt, ledger: JobSource, end: Callable[[], None]) -> AsyncIterator[None]:
    """Keeps telling while the block runs, and once more at its end."""
    done = asyncio.Event()
    telling = asyncio.create_task(keep_telling(attempt, ledger, end, done))
    try:
        yield
    finally:
        done.set()
        await asyncio.wait([telling])  # a report that is cut off would be lost
        if report := attempt.report():
            await tell(attempt, ledger, report)
