"""A bounded queue before a pool of workers, and when it is worth coming back to it."""

import statistics
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from core.errors import QueueFullError

_REMEMBERED: Final = 32
_UNKNOWN_S: Final = 30.0
"""How long work takes before any was seen to end."""
_UNKNOWN_LEAST_S: Final = 10.0


class Ticket:
    """A place in the queue, and then at a worker.

    Attributes:
        started_at: When a worker took the work, monotonic seconds; None while it waits.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.started_at: float | None = None

    def start(self) -> None:
        if self.started_at is None:
            self.started_at = self._clock()


class Admission:
    """Lets at most ``capacity`` requests in, those at work included. Not thread-safe: for one event loop.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, capacity: int, clock: Callable[[], float]) -> None:
        self.capacity = capacity
        self._clock = clock
        self._tickets: set[Ticket] = set()
        self._durations_s: deque[float] = deque(maxlen=_REMEMBERED)

    @property
    def free(self) -> int:
        return max(0, self.capacity - len(self._tickets))

    @property
    def running(self) -> int:
        return sum(ticket.started_at is not None for ticket in self._tickets)

    @property
    def waiting(self) -> int:
        return len(self._tickets) - self.running

    def check(self) -> None:
        """Takes no place, but raises QueueFullError if there is none."""
        if not self.free:
            raise QueueFullError(
                f"All {self.capacity} places before the trainers are taken: try again later.",
                retry_after=self.retry_after_s(),
            )

    @contextmanager
    def enter(self) -> Iterator[Ticket]:
        """A place for as long as the block runs.

        Raises:
            QueueFullError: if all are taken; ``retry_after`` is when one should be free.
        """
        self.check()
        ticket = Ticket(self._clock)
        self._tickets.add(ticket)
        try:
            yield ticket
        finally:
            self._tickets.discard(ticket)
            if ticket.started_at is not None:
                self._durations_s.append(self._clock() - ticket.started_at)

    def retry_after_s(self) -> float:
        """Until the next running work should end: a usual duration less its age, one second at least.

        As long as no duration is known, ten seconds at least.
        """
        usual_s = statistics.median(self._durations_s) if self._durations_s else _UNKNOWN_S
        least_s = 1.0 if self._durations_s else _UNKNOWN_LEAST_S
        now = self._clock()
        ages_s = [now - t.started_at for t in self._tickets if t.started_at is not None]
        return max(least_s, usual_s - max(ages_s, default=0.0))
