"""Runs jobs of the ledger on a trainer, one attempt after the other."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable
from typing import Final, Protocol

from core.errors import StillhouseError, TrainingStoppedError
from core.jobs.records import Assignment
from core.jobs.states import JobState
from deployments.attempts import Attempt, JobSource, as_lost, insist, request_of, told_meanwhile
from deployments.lookups import World
from deployments.origin import Origin
from deployments.registry import RegistryClient
from deployments.service import Report
from deployments.telemetry import Telemetry
from deployments.workload import Workload, runtime_error, until_done

log = logging.getLogger(__name__)

LEASE_S: Final = 5.0
"""After so long a trainer takes no further job before other requests had their turn."""


class Bench(Protocol):
    """Where a workload is done: ``Trainer``."""

    observer: Telemetry

    def start(self, workload: Workload) -> "asyncio.Future[Report]":
        """Begins it in the thread that trains; the result is the body of the contract's 200."""


class JobWorker:
    """Args:
    name: Of the process, by which it can be killed.
    """

    def __init__(
        self,
        name: str,
        bench: Bench,
        world: World,
        registry: RegistryClient,
        ledger: JobSource,
    ) -> None:
        self._name, self._bench, self._world = name, bench, world
        self._registry, self._ledger = registry, ledger

    async def work(self, wake: str) -> int:
        """Runs jobs until none waits or ``LEASE_S`` have passed; returns how many.

        Args:
            wake: Names the call that it answers, for the ledger.
        """
        took, until = 0, time.monotonic() + LEASE_S
        while time.monotonic() < until:
            assignment = await self._ledger.claim(self._name, wake)
            if assignment is None:
                break
            took += 1
            await self._run(assignment)
        return took

    async def _run(self, assignment: Assignment) -> None:
        """Runs one attempt to its end and tells that; whatever goes wrong is the job's failure."""
        every_s = self._world.settings.jobs.checkpoint_every_s
        attempt = Attempt(assignment, self._world.storage, every_s, time.time)
        workload = self._workload(assignment, attempt, await self._teacher_error(assignment))
        asked_to_end = asyncio.Event()

        def end() -> None:
            asked_to_end.set()
            workload.stopped.set()

        log.info(
            "job %s starts, attempt %d", assignment.job_id, assignment.attempt, extra=workload.log_fields()
        )
        try:
            async with told_meanwhile(attempt, self._ledger, end):
                body = await self._done(workload)
        except StillhouseError as error:
            await self._tell_failure(assignment, as_lost(error, asked_to_end=asked_to_end.is_set()))
        except asyncio.CancelledError:
            await self._tell_failure(assignment, as_lost(TrainingStoppedError(), asked_to_end=False))
            raise
        else:
            await self._tell_result(assignment, body)

    def _workload(
        self, assignment: Assignment, attempt: Attempt, teacher_error: StillhouseError | None
    ) -> Workload:
        return Workload(
            attempt.run_id,
            assignment.kind,
            lambda: request_of(assignment, self._world, runtime_error(), teacher_error),
            Origin(request_id=assignment.job_id, trace_id=assignment.trace_id),
            attempt.epoch,
            limit_s=assignment.remaining_s,
            report_every_s=0.0,  # the attempt gathers them
            reading=attempt.check_data,
            moved=attempt.moved,
            checkpoints=attempt,
        )

    async def _done(self, workload: Workload) -> Report:
        """The body; ends only when the thread has really stopped, which being cancelled asks it to."""
        with self._bench.observer.training(workload.kind):
            working = self._bench.start(workload)
            try:
                return await asyncio.shield(working)
            finally:
                workload.stopped.set()
                await until_done(working)

    async def _teacher_error(self, assignment: Assignment) -> StillhouseError | None:
        """Why the run that should teach cannot; asked here, because a lookup may hold no thread."""
        run_id = assignment.payload.get("teacher_run_id")
        if assignment.kind == "distill" and isinstance(run_id, str):
            try:
                await self._registry.peek(run_id)
            except StillhouseError as error:
                return error
        return None

    async def _tell_failure(self, assignment: Assignment, error: StillhouseError) -> None:
        self._bench.observer.training_failed(error)
        await insist(lambda: self._ledger.fail(assignment.job_id, assignment.attempt, error))

    async def _tell_result(self, assignment: Assignment, body: Report) -> None:
        verdict = await insist(lambda: self._ledger.complete(assignment.job_id, assignment.attempt, body))
        if verdict is not None and not verdict.applied and verdict.state is JobState.CANCELLED:
            await _quietly(self._registry.remove(str(body["run_id"])))  # it has no model then
            if body["model_id"] is not None:
                await _quietly(asyncio.to_thread(self._world.models.delete, str(body["model_id"])))


async def _quietly(call: Awaitable[None]) -> None:
    with contextlib.suppress(StillhouseError):
        await call
