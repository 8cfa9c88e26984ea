"""Calls to what may fail: how often they are tried (seed 001, Retry Policies) and when they are spared."""

import asyncio
import logging
import math
import random
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal, Protocol, TypeVar

import tenacity

from core.catalogue import ErrorType
from core.errors import CircuitOpenError, QueueFullError, StillhouseError

log = logging.getLogger(__name__)
Result = TypeVar("Result")
Outcome = Literal["ok", "retried", "failed"]


class Integration(StrEnum):
    """What is called."""

    TRAINER = "trainer"
    MLFLOW = "mlflow"
    S3 = "s3"
    TEMPORAL = "temporal"
    DATABASE = "database"
    LLM = "llm"
    GENERIC = "generic"
    PREDICTOR = "predictor"
    REGISTRY = "registry"


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """Opens after so many consecutive failures, for so many seconds.

    Attributes:
        of_calls: Whether a failure is a call that was given up, rather than one of its attempts.
    """

    failures: int
    cool_down_s: float
    of_calls: bool = False


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How one integration is called.

    Attributes:
        attempts: The first one included.
        first_wait_s, max_wait_s: After n failures the wait is between the first and the first doubled n
            times, but not above the last; the moment is drawn, so that callers do not come back together.
        deadline_s: No attempt begins later than this after the first.
        critical: Whether the caller cannot do without; the last failure is swallowed otherwise.
    """

    attempts: int
    first_wait_s: float
    max_wait_s: float
    breaker: BreakerPolicy | None = None
    deadline_s: float = 300
    critical: bool = True

    def wait_s(self, failed_attempts: int, drawn: float) -> float:
        """Seconds before the next attempt.

        Args:
            drawn: From 0 to 1.
        """
        ceiling: float = min(self.max_wait_s, self.first_wait_s * 2.0**failed_attempts)
        return self.first_wait_s + drawn * max(0.0, ceiling - self.first_wait_s)


POLICIES: Final[Mapping[Integration, RetryPolicy]] = {
    Integration.TRAINER: RetryPolicy(3, 4, 30, BreakerPolicy(5, 60), deadline_s=math.inf),
    Integration.MLFLOW: RetryPolicy(5, 1, 5, critical=False),
    Integration.S3: RetryPolicy(3, 2, 10, BreakerPolicy(5, 120)),
    Integration.TEMPORAL: RetryPolicy(5, 5, 60, BreakerPolicy(5, 120), critical=False),
    Integration.DATABASE: RetryPolicy(2, 1, 5, BreakerPolicy(3, 30)),
    Integration.LLM: RetryPolicy(3, 5, 30, BreakerPolicy(5, 300), critical=False),
    Integration.GENERIC: RetryPolicy(3, 2, 10),
    Integration.PREDICTOR: RetryPolicy(3, 2, 10, BreakerPolicy(5, 30)),
    Integration.REGISTRY: RetryPolicy(40, 0.2, 1, BreakerPolicy(5, 15, of_calls=True), deadline_s=20),
}
"""Seed 001, Integration-Specific Retry Policies; the generic one from its decorators, the last two ours.

An attempt at a trainer has the time in its queue in it, which has a limit of its own. A registry that was
lost is started again in a second or two, which every call outlasts; hence its breaker counts calls.
"""


class Breaker:
    """Spares a service that fails: after ``failures`` in a row calls are refused for ``cool_down_s``.

    Then one probe may pass; its outcome closes or opens the breaker again. One that takes longer than the
    cool-down, as in a queue, lets the next pass beside it. An error of the caller is an answer of the
    service, so it counts as a success. Safe in threads and tasks.

    Args:
        service: Its name for people.
        clock: Monotonic seconds.
        counts: Which errors are failures of the service.
    """

    def __init__(
        self,
        service: str,
        policy: BreakerPolicy,
        clock: Callable[[], float] = time.monotonic,
        counts: Callable[[Exception], bool] | None = None,
    ) -> None:
        self.service = service
        self._policy, self._clock = policy, clock
        self._counts = counts or is_failure_of_service
        self._lock = threading.Lock()
        self._failures = 0
        self._opened_at: float | None = None
        self._probes: dict[object, float] = {}  # and when they passed

    @property
    def state(self) -> Literal["closed", "open", "half_open"]:
        with self._lock:
            if self._opened_at is None:
                return "closed"
            return "open" if self._remaining_s() > 0 else "half_open"

    @property
    def retry_after_s(self) -> float:
        """What remains of the cool-down."""
        with self._lock:
            return max(0.0, self._remaining_s())

    def reset(self) -> None:
        """For operators: closes the breaker whatever happened."""
        with self._lock:
            self._close()

    @contextmanager
    def guard(self) -> Generator[None]:
        """Runs one attempt in its block.

        Raises:
            CircuitOpenError: instead of running it, while the service is spared.
        """
        attempt = object()
        self._enter(attempt)
        try:
            yield
        except Exception as error:
            self._left(attempt, failed=self._counts(error))
            raise
        except BaseException:  # cancelled: nothing was learnt
            with self._lock:
                self._probes.pop(attempt, None)
            raise
        self._left(attempt, failed=False)

    def _enter(self, attempt: object) -> None:
        with self._lock:
            if self._opened_at is None:
                return
            now = self._clock()
            shut_since = max([self._opened_at, *self._probes.values()])
            remaining_s = shut_since + self._policy.cool_down_s - now
            if remaining_s > 0:
                raise CircuitOpenError(service=self.service, retry_after=max(1.0, remaining_s))
            self._probes[attempt] = now

    def _left(self, attempt: object, *, failed: bool) -> None:
        with self._lock:
            if self._opened_at is not None and attempt not in self._probes:
                return  # a straggler from before says nothing of now
            if not failed:
                self._close()
                return
            self._failures += 1
            if self._opened_at is not None or self._failures >= self._policy.failures:
                log.error("breaker of %s opens after %d failures", self.service, self._failures)
                self._opened_at, self._probes = self._clock(), {}

    def _close(self) -> None:
        self._failures, self._opened_at, self._probes = 0, None, {}

    def _remaining_s(self) -> float:
        if self._opened_at is None:
            return 0.0
        return self._opened_at + self._policy.cool_down_s - self._clock()


def is_failure_of_service(error: Exception) -> bool:
    """Whether an error speaks against the service called, rather than against the request."""
    if isinstance(error, StillhouseError):
        return error.may_repeat and not isinstance(error, QueueFullError)  # it works, and at much
    return True


class AttemptObserver(Protocol):
    def attempted(self, service: str, outcome: Outcome) -> None:
        """``ok`` where the service answered, be it that the request was wrong; ``failed`` when given up."""


def is_worth_another_attempt(error: BaseException) -> bool:
    """Whether what failed should be gone by itself: never for faults of the system."""
    return (
        isinstance(error, StillhouseError)
        and error.error_type is ErrorType.TRANSIENT
        and error.may_repeat
        and not isinstance(error, CircuitOpenError)
    )


class Caller:
    """Calls one integration by its policy: retries what is retryable, and spares what keeps failing.

    Args:
        service: Its name for people, metrics and operators.
        is_retryable: Which errors are worth another attempt, where they are not of ours.
        counts: Which errors the breaker counts.
        sleep, draw: Waiting, and a number from 0 to 1, which tests replace.
    """

    def __init__(
        self,
        service: str,
        policy: RetryPolicy,
        *,
        observer: AttemptObserver | None = None,
        is_retryable: Callable[[BaseException], bool] = is_worth_another_attempt,
        counts: Callable[[Exception], bool] = is_failure_of_service,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.service, self.policy = service, policy
        self.breaker = Breaker(service, policy.breaker, clock, counts) if policy.breaker else None
        self._observer, self._is_retryable = observer, is_retryable
        self._clock, self._sleep, self._draw = clock, sleep, draw

    async def call(
        self, attempt: Callable[[], Awaitable[Result]], log_fields: Mapping[str, str] | None = None
    ) -> Result | None:
        """The result of the first attempt that succeeds.

        Args:
            attempt: Safe to repeat after the errors that it raises as retryable.
            log_fields: Join the log line of each attempt that fails (``trace_id`` …).

        Returns:
            None where the integration is not critical and every attempt failed.

        Raises:
            Exception: the last attempt's error, or CircuitOpenError.
        """
        retrying = tenacity.AsyncRetrying(sleep=self._sleep, **self._rules(log_fields))
        try:
            with self._guard(of_calls=True):
                result: Result = await retrying(self._guarded, attempt)
        except Exception as error:
            of_service = is_failure_of_service(error)
            self._observe("failed" if of_service else "ok")
            if self.policy.critical or not of_service:
                raise
            log.warning("%s failed and is done without: %s", self.service, error, extra=log_fields)
            return None
        self._observe("ok")
        return result

    def call_blocking(
        self, attempt: Callable[[], Result], sleep: Callable[[float], None] = time.sleep
    ) -> Result:
        """``call`` for a thread, of an integration that is critical."""

        def guarded() -> Result:
            with self._guard(of_calls=False):
                return attempt()

        retrying = tenacity.Retrying(sleep=sleep, **self._rules(None))
        with self._guard(of_calls=True):
            result: Result = retrying(guarded)
        return result

    def _rules(self, log_fields: Mapping[str, str] | None) -> dict[str, Any]:
        """The policy as tenacity has it, from now on."""
        latest = self._clock() + self.policy.deadline_s
        return {
            "stop": lambda state: (
                state.attempt_number >= self.policy.attempts
                or self._clock() + state.upcoming_sleep > latest
                or (self.breaker is not None and self.breaker.state == "open")
            ),
            "wait": self._wait_s,
            "retry": tenacity.retry_if_exception(self._is_retryable),
            "after": lambda state: self._log_failure(state, log_fields),
            "before_sleep": lambda _: self._observe("retried"),
            "reraise": True,
        }

    async def _guarded(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        with self._guard(of_calls=False):
            return await attempt()

    def _guard(self, *, of_calls: bool) -> AbstractContextManager[None]:
        """The breaker around all attempts or around each, whichever its policy counts."""
        if self.breaker is None or self.policy.breaker is None or self.policy.breaker.of_calls != of_calls:
            return nullcontext()
        return self.breaker.guard()

    def _wait_s(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        told = error.details.get("retry_after") if isinstance(error, StillhouseError) else None
        drawn = self.policy.wait_s(state.attempt_number, self._draw())
        return max(drawn, told) if isinstance(told, int | float) else drawn

    def _log_failure(self, state: tenacity.RetryCallState, fields: Mapping[str, str] | None) -> None:
        log.warning(
            "attempt %d of %d at %s failed: %s",
            state.attempt_number,
            self.policy.attempts,
            self.service,
            state.outcome.exception() if state.outcome else "",
            extra=fields,
        )

    def _observe(self, outcome: Outcome) -> None:
        if self._observer is not None:
            self._observer.attempted(self.service, outcome)
