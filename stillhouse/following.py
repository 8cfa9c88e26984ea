"""Where a reader of a live job stands: what both clients know between two connections."""

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Final

from core.errors import StillhouseError
from stillhouse.failures import error_of_problem, not_understood, still_running
from stillhouse.job_answers import Job, JobEvent, event_of
from stillhouse.job_calls import event_stream_page
from stillhouse.requests import Call
from stillhouse.retries import Attempts, Patience

AGAIN_S: Final = 1.0


class Following:
    """Reads the events of a job over any number of connections, each once and in order.

    Attributes:
        last: Number of the latest event; the next connection goes on after it.
        job: As it ended; None until then.

    Args:
        patience: Of its attempts there is no end: it is the time without news that counts.
        timeout_s: From now on; None waits for ever.
        clock, uniform: As of the client.
    """

    def __init__(
        self,
        job_id: str,
        after: int,
        *,
        patience: Patience,
        timeout_s: float | None,
        clock: Callable[[], float],
        uniform: Callable[[], float],
    ) -> None:
        self.job_id, self.last = job_id, after
        self.job: Job | None = None
        self._patience = dataclasses.replace(patience, attempts=sys.maxsize)
        self._clock, self._uniform = clock, uniform
        self._timeout_s = timeout_s
        self._deadline = float("inf") if timeout_s is None else clock() + timeout_s
        self._data: list[str] = []
        self._kind = ""
        self._heard()

    def connect(self) -> Call[None]:
        """The stream of what comes next; raises TimeoutError where the time is over."""
        self.check_time()
        self._data, self._kind = [], ""
        return event_stream_page(self.job_id, self.last)

    def feed(self, line: str) -> JobEvent | None:
        """The event that a line ends, unless it was read before.

        Raises:
            StillhouseError: what the stream itself tells of, or that it is none.
        """
        if line:
            name, _, value = line.partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
            elif name == "event":
                self._kind = value.removeprefix(" ")
            return None
        data, kind = "\n".join(self._data), self._kind
        self._data, self._kind = [], ""
        return self._read(kind, data) if data else None

    def take(self, event: JobEvent) -> bool:
        """Whether an event is new; all but progress count."""
        self._heard()
        if event.type == "progress":
            return True
        is_new, self.last = event.seq > self.last, max(event.seq, self.last)
        return is_new

    def ended(self, job: Job) -> bool:
        """Whether a job that was asked for after its stream had come to an end has ended too."""
        self._heard()
        self.job = job if job.ended else None
        return job.ended

    def check_time(self) -> None:
        if self.remaining_s() <= 0:
            raise still_running(self.job_id, self._timeout_s)

    def remaining_s(self) -> float:
        return self._deadline - self._clock()

    def wait_after(self, error: StillhouseError | None) -> float:
        """Seconds until the next connection; raises the error where none would help."""
        wait_s = AGAIN_S * self._uniform() if error is None else self._attempts.wait_after(error)
        return max(0.0, min(wait_s, self.remaining_s()))

    def _heard(self) -> None:
        self._attempts = Attempts(self._patience, self._clock, self._uniform)

    def _read(self, kind: str, data: str) -> JobEvent | None:
        try:
            frame = json.loads(data)
            if kind == "error":
                raise error_of_problem(frame["error"], status=None, request_id=None)
            event = event_of(frame)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise not_understood("The stream of events", 200) from None
        return event if self.take(event) else None
