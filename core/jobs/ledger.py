"""The ledger of jobs: the one truth about them, and the only writer of their states.

Every change is one transaction that names the attempt and the state it expects, so a late, repeated or
foreign word changes nothing. Blocking, and safe in threads and beside a second ledger on the same database.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection, Select, func, insert, select

from core.errors import (
    JobBusyError,
    JobStateConflictError,
    QueueFullError,
    QuotaExceededError,
    StillhouseError,
    WorkerDiedError,
)
from core.jobs import tables as t
from core.jobs.database import Database
from core.jobs.moves import Moves, Rules
from core.jobs.records import Assignment, Executor, Failure, Job, NewJob, Report, Verdict
from core.jobs.rows import (
    close_attempt,
    count_jobs,
    find_job,
    first_row,
    get_job,
    is_current,
    is_heard,
    named_checkpoint,
    set_job,
    verdict,
)
from core.jobs.states import TERMINAL, WAITING, WORKING, JobState


class Ledger:
    """Args:
    clock: Unix seconds.
    changed: Told the id of each job that changed, after the change is kept.
    """

    def __init__(
        self,
        database: Database,
        rules: Rules,
        clock: Callable[[], float] = time.time,
        changed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._database, self._rules, self._clock, self._changed = database, rules, clock, changed
        self._moves = Moves(rules, clock)

    # ── From clients ────────────────────────────────────────────────────────────────────────────────────

    def create(self, new: NewJob, *, busy: bool = False) -> Job:
        """Files a job; the same id again gives the job that is there.

        Args:
            busy: Whether it must wait for a trainer.

        Raises:
            QuotaExceededError: if the owner has as many jobs as one may.
            QueueFullError: if as many wait as may.
        """
        now = self._clock()
        state = JobState.QUEUED if busy else JobState.PENDING

        def work(connection: Connection) -> Job:
            there = find_job(connection, new.job_id)
            if there is not None:
                return there
            self._check_room(connection, new.owner)
            connection.execute(insert(t.jobs).values(**first_row(new, state, now)))
            self._moves.open_attempt(connection, new.job_id, 1, "created", {}, None)
            job = get_job(connection, new.job_id)
            return self._moves.told(connection, job, "status_change", {"old": None, "new": state.value})

        return self._change("create", work)

    def cancel(self, job_id: str) -> Job:
        """Ends a job, at once where it waits; one that is cancelled already stays so.

        Raises:
            JobNotFoundError
            JobStateConflictError: if it has completed or failed.
        """

        def work(connection: Connection) -> Job:
            job = get_job(connection, job_id, lock=True)
            if job.state in (JobState.CANCELLED, JobState.CANCELLING):
                return job
            if job.state in TERMINAL:
                raise JobStateConflictError(
                    f"Only a job that has not ended can be cancelled; this one is {job.state}.",
                    state=job.state.value,
                )
            if job.state in WAITING:
                return self._moves.end(connection, job, JobState.CANCELLED)
            job = self._moves.moved(connection, job, JobState.CANCELLING, cancel_at=self._clock())
            return self._moves.told(connection, job, "event", {"message": "The job is asked to end."})

        return self._change("cancel", work)

    def retry(
        self, job_id: str, payload: Mapping[str, object], changes: Mapping[str, object], resume_from: str
    ) -> Job:
        """Runs a job that has ended once more, as a new attempt; the earlier ones stay on record.

        Args:
            payload: The request of the new attempt.
            changes: What differs in it, for the record.
            resume_from: ``none``, ``best``, ``last`` or the id of a checkpoint.

        Raises:
            JobBusyError: if it has not ended.
            CheckpointMissingError
        """

        def work(connection: Connection) -> Job:
            job = get_job(connection, job_id, lock=True)
            if job.state not in TERMINAL:
                raise JobBusyError(
                    f"Only a job that has ended can be retried; this one is {job.state}.",
                    state=job.state.value,
                )
            self._check_room(connection, job.owner)
            checkpoint = named_checkpoint(connection, job, resume_from)
            if changes.get("new_snapshot"):
                job = set_job(connection, job, snapshot=None)
            job = set_job(connection, job, payload=dict(payload), completed_at=None, result=None, error=None)
            return self._moves.again(connection, job, "retry", dict(changes), checkpoint, first=True)

        return self._change("retry", work)

    # ── From whoever runs jobs ──────────────────────────────────────────────────────────────────────────

    def claim(self, worker: str, executor: Executor = "ray") -> Assignment | None:
        """The next job for a worker, which runs from now on; None where none may start.

        The highest priority first, then the one that has waited longest; owners with as many running jobs as
        they may are passed over. A worker that asks again without having ended its job gets the same one: it
        did not hear the answer.
        """

        def work(connection: Connection) -> Job | None:
            held = (t.jobs.c.state == JobState.RUNNING) & (t.jobs.c.worker == worker)
            again = connection.execute(select(t.jobs).where(held)).mappings().first()
            if again is not None and executor == "ray":
                return Job.of(again)
            row = connection.execute(self._next(executor)).mappings().first()
            if row is None:
                return None
            now = self._clock()
            job = self._moves.moved(
                connection,
                Job.of(row),
                JobState.RUNNING,
                worker=worker,
                started_at=row["started_at"] or now,
                heartbeat_at=now,
                active_at=now,
                stale_warned=False,
            )
            close_attempt(connection, job, worker=worker, started_at=now)
            return job

        claimed = self._database.run("claim", work)
        if claimed is None:
            return None
        self._changed(claimed.job_id)
        return self._assignment(claimed)

    def report(self, job_id: str, attempt: int, report: Report) -> Verdict:
        """Takes down how an attempt goes on; raises JobNotFoundError."""
        if not report:
            return self._heartbeat(job_id, attempt, report.silent_s)

        def work(connection: Connection) -> tuple[Job, bool]:
            job = get_job(connection, job_id, lock=True)
            if not is_current(job, attempt):
                return job, False
            if report.message is not None and is_heard(connection, job, report.message):
                return job, False
            return self._moves.noted(connection, job, report), True

        return self._told("report", attempt, work)

    def complete(self, job_id: str, attempt: int, result: Mapping[str, object]) -> Verdict:
        """The attempt has a model. First terminal state wins."""

        def work(connection: Connection) -> tuple[Job, bool]:
            job = get_job(connection, job_id, lock=True)
            if not is_current(job, attempt):
                return job, False
            job = set_job(connection, job, result=dict(result))
            return self._moves.end(connection, job, JobState.COMPLETED), True

        return self._told("complete", attempt, work)

    def fail(self, job_id: str, attempt: int, error: StillhouseError) -> Verdict:
        """The attempt has no model: the job is cancelled, tried again or failed, as its error says."""

        def work(connection: Connection) -> tuple[Job, bool]:
            job = get_job(connection, job_id, lock=True)
            if not is_current(job, attempt):
                return job, False
            return self._moves.failed(connection, job, error), True

        return self._told("fail", attempt, work)

    def fail_waiting(self, job_id: str, attempt: int, error: StillhouseError) -> None:
        """No trainer could be reached for a job: it fails, unless one took it after all."""

        def work(connection: Connection) -> Job:
            job = get_job(connection, job_id, lock=True)
            if job.attempt != attempt or job.state not in WAITING:
                return job
            failure = Failure.of(error).to_dict()
            return self._moves.end(connection, set_job(connection, job, error=failure), JobState.FAILED)

        self._change("fail", work)

    def lost(self, worker: str) -> list[Job]:
        """A worker is gone: what it ran goes on elsewhere, or ends."""

        def work(connection: Connection) -> list[Job]:
            running = t.jobs.c.state.in_(WORKING) & (t.jobs.c.worker == worker)
            rows = connection.execute(select(t.jobs).where(running).with_for_update()).mappings().all()
            return [self._moves.failed(connection, Job.of(row), WorkerDiedError()) for row in rows]

        jobs = self._database.run("lost", work)
        for job in jobs:
            self._changed(job.job_id)
        return jobs

    def watch(self) -> list[Job]:
        """Ends or warns of what does not go on; to be called every few seconds.

        Returns:
            The jobs whose workers must be stopped, for they have passed a limit or were lost.
        """
        now = self._clock()

        def work(connection: Connection) -> list[Job]:
            rows = connection.execute(select(t.jobs).where(t.jobs.c.state.in_(WORKING))).mappings().all()
            jobs = [Job.of(row) for row in rows]
            return [job for job in jobs if self._moves.looked_after(connection, job, now)]

        jobs = self._database.run("watch", work)
        for job in jobs:
            self._changed(job.job_id)
        return jobs

    def limit_s(self, job: Job) -> float:
        """Of one attempt at a job."""
        return self._moves.limit_of(job)

    # ── How it is done ──────────────────────────────────────────────────────────────────────────────────

    def _change(self, operation: str, work: Callable[[Connection], Job]) -> Job:
        job = self._database.run(operation, work)
        self._changed(job.job_id)
        return job

    def _told(self, operation: str, attempt: int, work: Callable[[Connection], tuple[Job, bool]]) -> Verdict:
        job, applied = self._database.run(operation, work)
        if applied:
            self._changed(job.job_id)
        return verdict(job, attempt, applied)

    def _check_room(self, connection: Connection, owner: str) -> None:
        active = t.jobs.c.state.not_in(TERMINAL)
        own = connection.scalar(count_jobs().where(active, t.jobs.c.owner == owner)) or 0
        if own >= self._rules.active_per_owner:
            raise QuotaExceededError(
                f"You have {own} jobs that have not ended, which is the limit: wait, or cancel some.",
                resource="training jobs",
                limit=self._rules.active_per_owner,
                current=own,
            )
        waiting = connection.scalar(count_jobs().where(t.jobs.c.state.in_(WAITING))) or 0
        if waiting >= self._rules.waiting:
            raise QueueFullError(f"{waiting} jobs wait already: try again later.")

    def _next(self, executor: Executor) -> Select[Any]:
        at_limit = (
            select(t.jobs.c.owner)
            .where(t.jobs.c.state.in_(WORKING))
            .group_by(t.jobs.c.owner)
            .having(func.count() >= self._rules.running_per_owner)
        )
        return (
            select(t.jobs)
            .where(
                t.jobs.c.state.in_(WAITING),
                t.jobs.c.executor == executor,
                t.jobs.c.not_before <= self._clock(),
                t.jobs.c.owner.not_in(at_limit),
            )
            .order_by(t.jobs.c.priority.desc(), t.jobs.c.queued_at, t.jobs.c.job_id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )

    def _assignment(self, job: Job) -> Assignment:
        def find(connection: Connection) -> str | None:
            path = select(t.checkpoints.c.path).where(t.checkpoints.c.checkpoint_id == job.resume_from)
            return connection.scalar(path)

        return Assignment(
            job_id=job.job_id,
            attempt=job.attempt,
            kind=job.kind,
            payload=job.payload,
            options=job.options,
            trace_id=job.trace_id,
            checkpoint=self._database.run("checkpoint", find) if job.resume_from else None,
            snapshot=job.snapshot,
            losses=job.losses,
            remaining_s=self._moves.limit_of(job),
        )

    def _heartbeat(self, job_id: str, attempt: int, silent_s: float) -> Verdict:
        now = self._clock()

        def work(connection: Connection) -> tuple[Job, bool]:
            job = get_job(connection, job_id)
            if not is_current(job, attempt):
                return job, False
            set_job(connection, job, heartbeat_at=now, active_at=max(job.active_at or 0, now - silent_s))
            return job, True

        job, applied = self._database.run("heartbeat", work)
        return verdict(job, attempt, applied)
