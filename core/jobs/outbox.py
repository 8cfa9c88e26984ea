"""What clients are still to be told of their jobs: each change of state, in order, until it has arrived."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, exists, func, select, update

from core.jobs import tables as t
from core.jobs.database import Database
from core.jobs.moves import Moves, Rules
from core.jobs.records import Event
from core.jobs.rows import get_job

FIRST_WAIT_S: Final = 5.0
LONGEST_WAIT_S: Final = 3600.0
MOST_TRIES: Final = 33
"""Which takes about a day: 10 tries in the first 90 minutes, then one an hour."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one address; ``tries`` were in vain so far."""

    event: Event
    trace_id: str
    url: str
    host: str
    tries: int

    @property
    def key(self) -> str:
        """The same at every try."""
        return f"{self.event.job_id}:{self.event.seq}"


class Outbox:
    """Blocking, and safe in threads. Survives every restart: it is part of the ledger's database.

    Args:
        clock: Unix seconds.
        changed: As of the ledger.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float] = time.time,
        changed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._database, self._clock, self._changed = database, clock, changed
        self._moves = Moves(Rules(), clock)

    def due(self, per_host: int, limit: int) -> list[Delivery]:
        """The first undelivered event of each job whose time has come, the longest overdue first.

        Args:
            per_host: Of one host at most, so that none crowds out the others.
        """
        earlier = t.deliveries.alias()
        waits_for_another = exists().where(
            earlier.c.job_id == t.deliveries.c.job_id,
            earlier.c.seq < t.deliveries.c.seq,
            earlier.c.done.is_(False),
        )
        turn = func.row_number().over(
            partition_by=t.deliveries.c.host, order_by=(t.deliveries.c.due_at, t.deliveries.c.job_id)
        )
        heads = (
            select(t.deliveries, turn.label("turn"))
            .where(t.deliveries.c.done.is_(False), t.deliveries.c.due_at <= self._clock(), ~waits_for_another)
            .subquery()
        )
        query = (
            select(heads.c.host, heads.c.tries, t.jobs.c.trace_id, t.jobs.c.options, t.events)
            .join(t.jobs, t.jobs.c.job_id == heads.c.job_id)
            .join(t.events, (t.events.c.job_id == heads.c.job_id) & (t.events.c.seq == heads.c.seq))
            .where(heads.c.turn <= per_host)
            .order_by(heads.c.due_at)
            .limit(limit)
        )

        def work(connection: Connection) -> list[Delivery]:
            return [
                Delivery(
                    Event(row.job_id, row.seq, row.attempt, row.at, row.type, row.data),
                    row.trace_id,
                    str(row.options["callback_url"]),
                    row.host,
                    row.tries,
                )
                for row in connection.execute(query)
            ]

        return self._database.run("outbox", work)

    def arrived(self, delivery: Delivery) -> None:
        self._database.run("delivered", lambda connection: _set(connection, delivery, done=True))

    def failed(self, delivery: Delivery, reason: str, drawn: float) -> None:
        """It is tried again later, or given up, of which the job's events tell.

        Args:
            reason: For people.
            drawn: From 0 to 1; spreads the tries of many.
        """
        tries = delivery.tries + 1
        if tries < MOST_TRIES:
            due_at = self._clock() + wait_s(tries, drawn)
            self._database.run("delay", lambda c: _set(c, delivery, tries=tries, due_at=due_at))
            return

        def give_up(connection: Connection) -> None:
            _set(connection, delivery, tries=tries, done=True)
            job = get_job(connection, delivery.event.job_id, lock=True)
            told = {"code": "CALLBACK_UNDELIVERED", "event": delivery.key, "tries": tries, "message": reason}
            self._moves.told(connection, job, "event", told)

        self._database.run("give up", give_up)
        self._changed(delivery.event.job_id)


def wait_s(tries: int, drawn: float) -> float:
    """Seconds to wait after so many tries: doubled each time, to the hour, less up to a fifth.

    >>> [wait_s(tries, 0.0) for tries in (1, 2, 3, 20)]
    [5.0, 10.0, 20.0, 3600.0]
    """
    wait: float = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (tries - 1))
    return wait * (1 - drawn / 5)


def _set(connection: Connection, delivery: Delivery, **values: object) -> None:
    event = delivery.event
    this = (t.deliveries.c.job_id == event.job_id) & (t.deliveries.c.seq == event.seq)
    connection.execute(update(t.deliveries).where(this).values(**values))
