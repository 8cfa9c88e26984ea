"""What can be asked of the ledger: jobs, their history, and what waits. Nothing here changes anything."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Select, Table, and_, func, or_, select

from core.jobs import tables as t
from core.jobs.database import Database
from core.jobs.moves import Rules
from core.jobs.records import Checkpoint, Event, Executor, Job
from core.jobs.rows import count_jobs, get_job, job_not_found
from core.jobs.states import WAITING, WORKING, JobState
from core.paging import Page, cursor_of, position_of

EVENTS_AT_ONCE: Final = 1000


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which jobs a list shows.

    Attributes:
        owner: None: everybody's.
        created_after: Unix seconds.
    """

    owner: str | None
    states: frozenset[JobState] | None = None
    project_id: str | None = None
    created_after: float | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """Where a job that waits stands.

    Attributes:
        position: 1 is next; None for a job that does not wait.
        reason: For people.
    """

    position: int | None
    reason: str | None


class Inquiries:
    """Blocking, and safe in threads."""

    def __init__(self, database: Database, rules: Rules, clock: Callable[[], float] = time.time) -> None:
        self._database, self._rules, self._clock = database, rules, clock

    def get(self, job_id: str, owner: str | None) -> Job:
        """Raises JobNotFoundError, also for a job of somebody else."""
        return self._database.run("get", lambda connection: _owned(connection, job_id, owner))

    def page(self, wanted: Wanted, limit: int, cursor: str | None) -> tuple[Page[Job], int]:
        """Jobs, newest first, and how many there are in all.

        Raises:
            RequestError: for a cursor of another list.
        """
        after = None if cursor is None else position_of(cursor, 2)

        def work(connection: Connection) -> tuple[Page[Job], int]:
            total = connection.scalar(count_jobs().where(*_filters(wanted))) or 0
            query = select(t.jobs).where(*_filters(wanted))
            if after is not None:
                at, job_id = after
                earlier = t.jobs.c.created_at < at, and_(t.jobs.c.created_at == at, t.jobs.c.job_id < job_id)
                query = query.where(or_(*earlier))
            newest = t.jobs.c.created_at.desc(), t.jobs.c.job_id.desc()
            rows = connection.execute(query.order_by(*newest).limit(limit + 1)).mappings().all()
            jobs = [Job.of(row) for row in rows]
            last = jobs[limit - 1] if len(jobs) > limit else None
            following = None if last is None else cursor_of((last.created_at, last.job_id))
            return Page(jobs[:limit], following), total

        return self._database.run("list", work)

    def turn(self, job: Job) -> Turn:
        """Where a job stands in the queue, and why it waits."""
        if job.state not in WAITING:
            return Turn(None, None)

        def work(connection: Connection) -> Turn:
            before = or_(
                t.jobs.c.priority > job.priority,
                and_(t.jobs.c.priority == job.priority, t.jobs.c.queued_at < job.queued_at),
                and_(
                    t.jobs.c.priority == job.priority,
                    t.jobs.c.queued_at == job.queued_at,
                    t.jobs.c.job_id < job.job_id,
                ),
            )
            ahead = connection.scalar(count_jobs().where(t.jobs.c.state.in_(WAITING), before)) or 0
            working = t.jobs.c.state.in_(WORKING)
            own = connection.scalar(count_jobs().where(working, t.jobs.c.owner == job.owner)) or 0
            return Turn(ahead + 1, self._reason(job, ahead, own))

        return self._database.run("turn", work)

    def _reason(self, job: Job, ahead: int, own: int) -> str:
        wait_s = job.not_before - self._clock()
        if wait_s > 0:
            return f"The last attempt failed; the next one starts in {wait_s:.0f} s."
        if own >= self._rules.running_per_owner:
            return f"You run {own} jobs, which is the limit; this one starts when one of them ends."
        if ahead:
            return f"{ahead} {'job is' if ahead == 1 else 'jobs are'} ahead of this one."
        return "This job is next; it starts when a trainer is free."

    def backlog(self, executor: Executor = "ray") -> int:
        """How many jobs could start now, the limits of owners aside."""
        ready = t.jobs.c.state.in_(WAITING), t.jobs.c.not_before <= self._clock()
        query = count_jobs().where(*ready, t.jobs.c.executor == executor)
        return self._database.run("backlog", lambda connection: connection.scalar(query) or 0)

    def working(self, executor: Executor) -> list[Job]:
        """Jobs that run now."""
        query = select(t.jobs).where(t.jobs.c.state.in_(WORKING), t.jobs.c.executor == executor)

        def work(connection: Connection) -> list[Job]:
            return [Job.of(row) for row in connection.execute(query).mappings()]

        return self._database.run("working", work)

    def counts(self) -> Mapping[str, int]:
        """Jobs by state."""
        query = select(t.jobs.c.state, func.count()).group_by(t.jobs.c.state)

        def work(connection: Connection) -> dict[str, int]:
            return {row[0]: row[1] for row in connection.execute(query)}

        return self._database.run("counts", work)

    def events(self, job_id: str, owner: str | None, after: int, limit: int = EVENTS_AT_ONCE) -> list[Event]:
        """The history of a job from ``after`` on, oldest first; raises JobNotFoundError."""

        def work(connection: Connection) -> list[Event]:
            _owned(connection, job_id, owner)
            query = select(t.events).where(t.events.c.job_id == job_id, t.events.c.seq > after)
            rows = connection.execute(query.order_by(t.events.c.seq).limit(limit)).mappings()
            return [Event(**row) for row in rows]

        return self._database.run("events", work)

    def attempts(self, job_id: str) -> list[dict[str, object]]:
        return self._rows("attempts", t.attempts, job_id, t.attempts.c.attempt)

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        rows = self._rows("checkpoints", t.checkpoints, job_id, t.checkpoints.c.created_at)
        return [Checkpoint(**row) for row in rows]  # type: ignore[arg-type]

    def epochs(
        self, job_id: str, attempt: int, limit: int, from_epoch: int | None
    ) -> list[dict[str, object]]:
        """Metrics of an attempt, ascending: from an epoch on, or the latest."""
        own = t.epochs.c.job_id == job_id, t.epochs.c.attempt == attempt
        query = select(t.epochs.c.epoch, t.epochs.c.at, t.epochs.c.metrics).where(*own)
        if from_epoch is not None:
            query = query.where(t.epochs.c.epoch >= from_epoch).order_by(t.epochs.c.epoch)
            return self._dicts("epochs", query.limit(limit))
        return self._dicts("epochs", query.order_by(t.epochs.c.epoch.desc()).limit(limit))[::-1]

    def logs(
        self,
        job_id: str,
        limit: int,
        *,
        after: int | None = None,
        level: str | None = None,
        attempt: int | None = None,
        since: float | None = None,
    ) -> list[dict[str, object]]:
        """Log lines, oldest first: those after a number, or the newest."""
        wanted = {t.logs.c.level: level, t.logs.c.attempt: attempt}
        query = select(t.logs).where(
            t.logs.c.job_id == job_id,
            *(column == value for column, value in wanted.items() if value is not None),
            *([t.logs.c.at >= since] if since is not None else []),
        )
        if after is not None:
            query = query.where(t.logs.c.seq > after).order_by(t.logs.c.seq)
            return self._dicts("logs", query.limit(limit))
        return self._dicts("logs", query.order_by(t.logs.c.seq.desc()).limit(limit))[::-1]

    def _rows(self, operation: str, table: Table, job_id: str, order: Any) -> list[dict[str, object]]:  # noqa: ANN401
        query = select(table).where(table.c.job_id == job_id).order_by(order)
        return self._dicts(operation, query)

    def _dicts(self, operation: str, query: Select[Any]) -> list[dict[str, object]]:
        def work(connection: Connection) -> list[dict[str, object]]:
            return [dict(row) for row in connection.execute(query).mappings()]

        return self._database.run(operation, work)


def _owned(connection: Connection, job_id: str, owner: str | None) -> Job:
    job = get_job(connection, job_id)
    if owner is not None and job.owner != owner:
        raise job_not_found(job_id)  # nobody learns which ids exist
    return job


def _filters(wanted: Wanted) -> list[Any]:
    filters: list[Any] = []
    if wanted.owner is not None:
        filters.append(t.jobs.c.owner == wanted.owner)
    if wanted.states is not None:
        filters.append(t.jobs.c.state.in_(wanted.states))
    if wanted.project_id is not None:
        filters.append(t.jobs.c.project_id == wanted.project_id)
    if wanted.created_after is not None:
        filters.append(t.jobs.c.created_at > wanted.created_after)
    return filters
