"""Which failures of a call are worth another attempt, and how long to wait for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from core.errors import StillhouseError
from stillhouse.failures import failure_of

FIRST_WAIT_S: Final = 0.25
LONGEST_WAIT_S: Final = 10.0  # reached before the tenth attempt


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call may go on.

    Attributes:
        attempts: At most, the first included.
        deadline_s: From the start of the call; no attempt begins later, and none waits longer for an answer.
            Train and distil may work on after it.
    """

    attempts: int = 5
    deadline_s: float = 60.0


DEFAULT_PATIENCE: Final = Patience()


class Attempts:
    """The attempts of one call: waits grow exponentially, with full jitter, above what the service asks.

    Args:
        clock: Seconds, monotonic.
        random: Uniform in [0, 1).
    """

    def __init__(self, patience: Patience, clock: Callable[[], float], random: Callable[[], float]) -> None:
        self._patience, self._clock, self._random = patience, clock, random
        self._deadline = clock() + patience.deadline_s
        self._failed = 0

    def remaining_s(self) -> float:
        """Until the deadline."""
        return max(0.0, self._deadline - self._clock())

    def wait_after(self, error: StillhouseError) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            StillhouseError: the error itself, where another attempt would not help or would come too late.
        """
        failure = failure_of(error)
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(self._failed, 9))
        wait_s = (failure.retry_after_s or 0.0) + longest * self._random()
        self._failed += 1
        told_when = failure.retry_after_s is not None or failure.status is None  # or there was no answer
        if (
            not (failure.retryable and told_when)
            or self._failed >= self._patience.attempts
            or wait_s >= self.remaining_s()
        ):
            raise error
        return wait_s
