"""Calls of the ingress to replicas: their time limits, and Ray's failures told as ours."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from core.errors import (
    QueueFullError,
    ServiceUnavailableError,
    StillhouseError,
    TrainerUnreachableError,
    TrainingError,
    UnexpectedError,
    without_paths,
)
from core.resilience import is_worth_another_attempt
from deployments.service import Report

CALL_TIMEOUT_S: Final = 60.0
PROBE_TIMEOUT_S: Final = 5.0
PROBE_EVERY_S: Final = 30.0
Result = TypeVar("Result")


async def answer_of(response: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:  # noqa: ANN401  # Serve is untyped
    """The answer of a replica, or an error of ours; the call is cancelled with its waiter."""
    try:
        async with asyncio.timeout(timeout_s):
            return await response
    except asyncio.CancelledError:
        cancel(response)
        raise
    except TimeoutError as error:
        cancel(response)
        raise ServiceUnavailableError(
            "Part of the service does not answer: try again in a few seconds."
        ) from error
    except (RayError, RayServeException) as error:
        if own := _own_error(error):
            raise own from error
        if isinstance(error, RayTaskError) and not isinstance(error.cause, RayError):
            raise UnexpectedError(without_paths(str(error.cause))) from error
        raise ServiceUnavailableError(
            "Part of the service failed while it worked on this request: try again in a few seconds."
        ) from error


def cancel(response: Any) -> None:  # noqa: ANN401
    """Best effort; a call that failed before it reached a replica raises its error once more here."""
    with contextlib.suppress(RayError, RayServeException):
        response.cancel()


def was_lost(error: BaseException) -> bool:
    """Whether another replica should be asked: not when one took too long, for so would the next."""
    return is_worth_another_attempt(error) and not isinstance(error.__cause__, TimeoutError)


def _own_error(error: Exception) -> StillhouseError | None:
    """The error that a replica raised, free of Ray's wrapping; None where Ray itself failed."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, StillhouseError):
        return error.cause
    if isinstance(error, BackPressureError):
        return QueueFullError("Too many requests wait already: try again later.")
    return None


def _job_error(error: Exception) -> StillhouseError:
    if own := _own_error(error):
        return own
    if isinstance(error, RayTaskError):
        return TrainingError(f"Training failed: {without_paths(str(error.cause))}")
    return TrainerUnreachableError(
        "The trainer of this request was lost before it answered: send the request again."
    )


async def probed(call: Awaitable[Result]) -> Result | None:
    """The answer, or None where there was none."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            return await call
    except (TimeoutError, StillhouseError, RayError):
        return None


async def within(limit_s: float, call: Awaitable[Result], late: StillhouseError) -> Result:
    """The result, or ``late`` where it does not come in time."""
    try:
        async with asyncio.timeout(limit_s):
            return await call
    except TimeoutError:
        raise late from None


async def next_report(stream: Any) -> Report | None:  # noqa: ANN401
    """The next report of a trainer, None after the last; its failures as ours."""
    try:
        report: Report | None = await anext(stream, None)
    except (RayError, RayServeException) as error:
        raise _job_error(error) from error  # for the log: it has the replica's traceback
    return report


class RuntimeProbe:
    """Whether trainers can import PyTorch: asked anew unless the last answer is good and recent.

    Once it was good a request does not wait for the next one.

    A trainer that is busy does not answer, but it trains, so it has PyTorch; hence no answer is no error.
    """

    def __init__(self, trainer: DeploymentHandle[Any]) -> None:
        self._trainer = trainer
        self._asked_at = -PROBE_EVERY_S
        self._answered = False
        self._asking: asyncio.Task[None] | None = None
        self.error: str | None = None

    async def refresh(self) -> None:
        now = time.monotonic()
        if self.error is None and now - self._asked_at < PROBE_EVERY_S:
            return
        self._asked_at = now
        self._asking = asyncio.create_task(self._ask())
        if self.error is not None or not self._answered:
            await self._asking

    async def _ask(self) -> None:
        with contextlib.suppress(ServiceUnavailableError, UnexpectedError):
            self.error = await answer_of(self._trainer.runtime_error.remote(), PROBE_TIMEOUT_S)
            self._answered = True
