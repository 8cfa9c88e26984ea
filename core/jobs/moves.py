"""What happens to a job, each within a transaction of the ledger."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, insert, select

from core.catalogue import ErrorType, RetryMode
from core.errors import (
    CudaOutOfMemoryError,
    JobCancelledError,
    JobStaleError,
    StillhouseError,
    TrainingStoppedError,
    TrainingTimeoutError,
    WorkerDiedError,
)
from core.jobs import tables as t
from core.jobs.records import Event, Failure, Job, Reason, Report
from core.jobs.rows import (
    add_epochs,
    add_logs,
    close_attempt,
    host_of,
    knows_checkpoint,
    latest_checkpoint,
    set_job,
    smaller_batch,
)
from core.jobs.states import JobState


@dataclass(frozen=True, slots=True)
class Rules:
    """How many, how often and how long.

    Attributes:
        running_per_owner: Jobs of one owner that run at once; further ones wait.
        active_per_owner: Jobs of one owner that have not ended; further ones are refused.
        waiting: Jobs that wait, of all owners; further ones are refused.
        losses: Trainers that a job may lose before it fails.
        lost_after_s: Without a heartbeat a trainer is taken for lost.
        warn_after_s, stale_after_s: A training that does not go on is warned of, and then ended.
        time_limit_s: Of one attempt; a job may ask for less.
    """

    running_per_owner: int = 4
    active_per_owner: int = 2000
    waiting: int = 10_000
    losses: int = 3
    lost_after_s: float = 15
    warn_after_s: float = 600
    stale_after_s: float = 1800
    time_limit_s: float = 86_400


class Moves:
    """Args:
    clock: Unix seconds.
    """

    def __init__(self, rules: Rules, clock: Callable[[], float]) -> None:
        self._rules, self._clock = rules, clock

    def limit_of(self, job: Job) -> float:
        asked = job.options.get("time_limit_s")
        return (
            min(self._rules.time_limit_s, asked)
            if isinstance(asked, int | float)
            else self._rules.time_limit_s
        )

    def noted(self, connection: Connection, job: Job, report: Report) -> Job:
        now = self._clock()
        values: dict[str, object] = {
            "heartbeat_at": now,
            "active_at": now - report.silent_s,
            "updated_at": now,
        }
        if report.snapshot is not None:
            values["snapshot"] = dict(report.snapshot)
        if fresh := add_epochs(connection, job, report, now):
            values |= fresh
        if report.logs:
            values["log_seq"] = add_logs(connection, job, report)
        job = set_job(connection, job, **values)
        for checkpoint in report.checkpoints:
            if connection.scalar(knows_checkpoint(checkpoint.checkpoint_id)):
                continue
            connection.execute(insert(t.checkpoints).values(**asdict(checkpoint)))
            shown = {"checkpoint_id": checkpoint.checkpoint_id, "epoch": checkpoint.epoch}
            job = self.told(connection, job, "checkpoint", shown)
        for kind, data in report.events:
            job = self.told(connection, job, kind, dict(data))
        return job

    def failed(self, connection: Connection, job: Job, error: StillhouseError) -> Job:
        if job.state is JobState.CANCELLING or isinstance(error, JobCancelledError):
            return self.end(connection, job, JobState.CANCELLED)
        failure = Failure.of(error).to_dict()
        if isinstance(error, CudaOutOfMemoryError) and (smaller := smaller_batch(job, error)):
            payload = {**job.payload, "batch_size": smaller}
            job = set_job(connection, job, payload=payload)
            return self.again(connection, job, "memory", {"batch_size": smaller}, None, failure=failure)
        passes = error.error_type is ErrorType.TRANSIENT and error.retry_mode is RetryMode.AUTO
        if passes and job.losses < self._rules.losses:
            checkpoint = latest_checkpoint(connection, job) or job.resume_from
            wait_s = 0.0 if isinstance(error, WorkerDiedError) else error.retry_after_s or 0.0
            return self.again(connection, job, "lost", {}, checkpoint, failure=failure, wait_s=wait_s)
        if isinstance(error, WorkerDiedError | TrainingStoppedError):
            failure = Failure.of(WorkerDiedError(f"The job lost {job.losses + 1} trainers.")).to_dict()
        return self.end(connection, set_job(connection, job, error=failure), JobState.FAILED)

    def again(
        self,
        connection: Connection,
        job: Job,
        reason: Reason,
        changes: dict[str, object],
        checkpoint: str | None,
        *,
        failure: dict[str, object] | None = None,
        wait_s: float = 0.0,
        first: bool = False,
    ) -> Job:
        """The next attempt waits for its turn."""
        now, attempt = self._clock(), job.attempt + 1
        if not first:
            close_attempt(connection, job, ended_at=now, outcome="lost", error=failure)
        self.open_attempt(connection, job.job_id, attempt, reason, changes, checkpoint)
        return self.moved(
            connection,
            job,
            JobState.PENDING if first else JobState.QUEUED,
            {"reason": reason, "attempt": attempt, **({"error": failure} if failure else {})},
            attempt=attempt,
            first_attempt=job.first_attempt if reason == "lost" else attempt,
            losses=job.losses + 1 if reason == "lost" else 0,
            queued_at=now if first else job.queued_at,
            not_before=now + wait_s,
            worker=None,
            resume_from=checkpoint,
            cancel_at=None,
        )

    def end(self, connection: Connection, job: Job, state: JobState) -> Job:
        now = self._clock()
        close_attempt(connection, job, ended_at=now, outcome=state.value, error=job.error)
        if state is JobState.CANCELLED:
            job = set_job(connection, job, error=Failure.of(JobCancelledError()).to_dict())
        why = {} if state is JobState.COMPLETED else {"error": job.error}
        job = self.moved(connection, job, state, why, completed_at=now, worker=None)
        data = {"result": job.result} if state is JobState.COMPLETED else {"error": job.error}
        return self.told(connection, job, state.value, data)

    def moved(
        self,
        connection: Connection,
        job: Job,
        state: JobState,
        data: Mapping[str, object] = {},
        **values: object,
    ) -> Job:
        old = job.state
        job = set_job(connection, job, state=state.value, updated_at=self._clock(), **values)
        return self.told(connection, job, "status_change", {"old": old.value, "new": state.value, **data})

    def told(self, connection: Connection, job: Job, kind: str, data: Mapping[str, object]) -> Job:
        """Appends an event, and files it for the job's callback where it has one."""
        seq, now = job.seq + 1, self._clock()
        event = Event(job.job_id, seq, job.attempt, now, kind, data)
        connection.execute(insert(t.events).values(**{**asdict(event), "data": dict(data)}))
        url = job.options.get("callback_url")
        if kind == "status_change" and isinstance(url, str):
            delivery = {"job_id": job.job_id, "seq": seq, "due_at": now, "tries": 0, "done": False}
            connection.execute(insert(t.deliveries).values(**delivery, host=host_of(url)))
        return set_job(connection, job, seq=seq)

    def open_attempt(
        self,
        connection: Connection,
        job_id: str,
        attempt: int,
        reason: Reason,
        changes: dict[str, object],
        checkpoint: str | None,
    ) -> None:
        values = {"job_id": job_id, "attempt": attempt, "reason": reason, "changes": changes}
        connection.execute(insert(t.attempts).values(**values, resumed_from=checkpoint))

    def looked_after(self, connection: Connection, job: Job, now: float) -> bool:
        """Whether the job's worker must be stopped."""
        beat, active = job.heartbeat_at or now, job.active_at or now
        limit_s = self.limit_of(job)
        started = connection.scalar(
            select(t.attempts.c.started_at).where(
                t.attempts.c.job_id == job.job_id, t.attempts.c.attempt == job.attempt
            )
        )
        if job.executor == "ray" and now - beat > self._rules.lost_after_s:
            self.failed(connection, job, WorkerDiedError())
        elif now - (started or now) > limit_s + self._rules.lost_after_s:  # the trainer keeps it itself
            self.failed(connection, job, TrainingTimeoutError(limit_s=limit_s))
        elif now - active > self._rules.stale_after_s:
            self.failed(connection, job, JobStaleError(silent_s=round(now - active)))
        elif now - active > self._rules.warn_after_s and not job.stale_warned:
            job = set_job(connection, job, stale_warned=True)
            self.told(connection, job, "event", {"code": "JOB_STALE", "silent_s": round(now - active)})
            return False
        else:
            return False
        return True
