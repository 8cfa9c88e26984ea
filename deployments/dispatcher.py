"""Jobs in motion: what waits is given to trainers, what happens is told to those who follow."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, ParamSpec, Protocol, TypeVar

from core.errors import StillhouseError, TrainerUnreachableError
from core.jobs.callbacks import CallbackKind
from core.jobs.database import Database
from core.jobs.inquiries import Inquiries, Turn, Wanted
from core.jobs.ledger import Ledger
from core.jobs.moves import Rules
from core.jobs.outbox import Outbox
from core.jobs.records import Assignment, Checkpoint, Event, Executor, Job, NewJob, Report, Verdict
from core.jobs.states import TERMINAL, JobState
from core.paging import Page
from core.resilience import POLICIES, Caller, Integration
from deployments.callback_desk import CallbackDesk
from deployments.external import ExternalCommand, Externals
from deployments.webhooks import Courier, Webhooks

log = logging.getLogger(__name__)
Params = ParamSpec("Params")
Result = TypeVar("Result")

WATCH_EVERY_S: Final = 2.0
FOLLOW_S: Final = 20.0
THREADS: Final = 8


class Pool(Protocol):
    """Trainers that take jobs."""

    def capacity(self) -> int:
        """How many work at once at most."""

    async def check(self) -> None:
        """Raises TrainerUnreachableError where no trainer runs and none is about to."""

    async def work(self, wake: str) -> int:
        """Lets one trainer take jobs until none waits or it has had its time; returns how many it took.

        Raises:
            Exception: if it was lost meanwhile.
        """

    async def kill(self, worker: str) -> None:
        """Ends the process of a worker, which may be gone already."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is; each change of it has a higher ``version``."""

    version: int
    attempt: int
    at: float
    epoch: int
    epochs: int
    metrics: Mapping[str, object]
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class News:
    """What came since a follower last asked: events lose none, of progress only the latest counts."""

    events: list[Event]
    progress: Progress | None
    ended: bool


@dataclass(frozen=True, slots=True)
class Filed:
    """A job and where it stands in the queue."""

    job: Job
    turn: Turn


class Dispatcher:
    """One for the whole service: the ledger's only writer, on the loop of its process.

    Args:
        clock: Unix seconds.
        stop_within_s: A worker that a cancel does not stop in this time is killed.
        courier: Brings changes of state to the ``callback_url`` of jobs; without it they wait.
        external: Runs jobs that no trainer of ours takes; without it they wait.
        failed: Told the errors of external trainers.
    """

    def __init__(
        self,
        database_url: str,
        rules: Rules,
        pool: Pool,
        *,
        stop_within_s: float,
        clock: Callable[[], float] = time.time,
        calling: Caller | None = None,
        courier: Courier | None = None,
        external: ExternalCommand | None = None,
        failed: Callable[[StillhouseError], None] = lambda _: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._rules, self._pool, self._clock, self._stop_within_s = rules, pool, clock, stop_within_s
        self._calling = calling or Caller("trainer", POLICIES[Integration.TRAINER])
        self._database = Database(database_url, Caller("database", POLICIES[Integration.DATABASE]))
        self._ledger = Ledger(self._database, rules, clock, self._changed_in_thread)
        self._ask = Inquiries(self._database, rules, clock)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="ledger")
        self._calls: dict[str, asyncio.Task[None]] = {}
        self._workers: dict[str, str] = {}
        self._busy: set[str] = set()  # calls whose trainer has a job
        self._progress: dict[str, Progress] = {}
        self._versions = 0
        self._news: defaultdict[str, list[asyncio.Event]] = defaultdict(list)
        self._unfilled = asyncio.Event()
        self._unfilled.set()  # jobs may wait from before
        self._tasks = [asyncio.create_task(self._fill()), asyncio.create_task(self._watch())]
        self._desk = CallbackDesk(
            self, self._database, self._ledger, self._ask, self._blocking, clock, failed
        )
        if courier is not None:
            outbox = Outbox(self._database, clock, self._changed_in_thread)
            self._tasks.append(asyncio.create_task(Webhooks(outbox, courier, self._blocking).run()))
        self._externals = None if external is None else Externals(external, self._desk)
        if self._externals is not None:
            self._tasks.append(asyncio.create_task(self._externals.run()))

    async def close(self) -> None:
        """Stops; nothing is done for jobs until another begins."""
        tasks = [*self._tasks, *self._calls.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.run_in_executor(self._threads, self._database.close)
        self._threads.shutdown()

    # ── For clients ─────────────────────────────────────────────────────────────────────────────────────

    async def create(self, new: NewJob) -> Filed:
        """Files a job and has a trainer called for it.

        Raises:
            TrainerUnreachableError: if none runs, after the attempts of the policy: the job has failed.
        """
        busy = self._is_busy(new.executor)
        job = await self._blocking(self._ledger.create, new, busy=busy)
        if job.executor == "ray":
            await self._reach_trainers(job)
        return await self._filed(job)

    def _is_busy(self, executor: Executor) -> bool:
        if executor == "external":
            return self._externals is None or self._externals.full
        return len(self._calls) >= self._pool.capacity()

    async def get(self, job_id: str, owner: str | None) -> Filed:
        return await self._filed(await self._blocking(self._ask.get, job_id, owner))

    async def page(self, wanted: Wanted, limit: int, cursor: str | None) -> tuple[Page[Job], int]:
        return await self._blocking(self._ask.page, wanted, limit, cursor)

    async def cancel(self, job_id: str) -> Job:
        """Ends a job; one that runs is waited for, and its trainer killed if it does not stop.

        Returns:
            The job: CANCELLED, or CANCELLING where its trainer had to be killed.
        """
        job = await self._blocking(self._ledger.cancel, job_id)
        if job.state is not JobState.CANCELLING:
            return job
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._stop_within_s):
                return await self._until(job_id, lambda job: job.state is not JobState.CANCELLING)
        await self._stop_hard(job)
        return await self._blocking(self._ask.get, job_id, None)

    async def retry(
        self, job_id: str, payload: Mapping[str, object], changes: Mapping[str, object], resume_from: str
    ) -> Filed:
        job = await self._blocking(self._ledger.retry, job_id, payload, changes, resume_from)
        self._progress.pop(job_id, None)
        if job.executor == "ray":
            await self._reach_trainers(job)
        return await self._filed(job)

    async def events(self, job_id: str, owner: str | None, after: int, limit: int) -> list[Event]:
        return await self._blocking(self._ask.events, job_id, owner, after, limit)

    async def follow(self, job_id: str, owner: str | None, after: int, version: int) -> News:
        """What came after an event and a version of the progress; waits up to ``FOLLOW_S`` for it."""
        heard = asyncio.Event()
        self._news[job_id].append(heard)
        try:
            async with asyncio.timeout(FOLLOW_S):
                while True:
                    heard.clear()
                    news = await self._since(job_id, owner, after, version)
                    if news.events or news.progress or news.ended:
                        return news
                    await heard.wait()
        except TimeoutError:
            return News([], None, ended=False)
        finally:
            self._news[job_id].remove(heard)
            if not self._news[job_id]:
                del self._news[job_id]

    async def attempts(self, job_id: str) -> list[dict[str, object]]:
        return await self._blocking(self._ask.attempts, job_id)

    async def checkpoints(self, job_id: str) -> list[Checkpoint]:
        return await self._blocking(self._ask.checkpoints, job_id)

    async def epochs(
        self, job_id: str, attempt: int, limit: int, from_epoch: int | None
    ) -> list[dict[str, object]]:
        return await self._blocking(self._ask.epochs, job_id, attempt, limit, from_epoch)

    async def logs(
        self,
        job_id: str,
        limit: int,
        after: int | None,
        level: str | None,
        attempt: int | None,
        since: float | None,
    ) -> list[dict[str, object]]:
        return await self._blocking(
            self._ask.logs, job_id, limit, after=after, level=level, attempt=attempt, since=since
        )

    async def counts(self) -> Mapping[str, int]:
        """Jobs by state."""
        return await self._blocking(self._ask.counts)

    # ── For workers ─────────────────────────────────────────────────────────────────────────────────────

    async def claim(self, worker: str, wake: str) -> Assignment | None:
        """The next job for a worker that was woken by a call."""
        self._workers[wake] = worker
        self._busy.discard(wake)
        assignment = await self._blocking(self._ledger.claim, worker)
        if assignment is not None and wake in self._calls:
            self._busy.add(wake)
        return assignment

    async def report(self, job_id: str, attempt: int, report: Report) -> Verdict:
        verdict = await self._blocking(self._ledger.report, job_id, attempt, report)
        if verdict.applied and report.epochs:
            self._went_on(job_id, attempt, report)
        return verdict

    async def complete(self, job_id: str, attempt: int, result: Mapping[str, object]) -> Verdict:
        return await self._blocking(self._ledger.complete, job_id, attempt, result)

    async def fail(self, job_id: str, attempt: int, error: StillhouseError) -> Verdict:
        return await self._blocking(self._ledger.fail, job_id, attempt, error)

    # ── For external trainers ───────────────────────────────────────────────────────────────────────────

    async def hear(self, job_id: str, token: str, kind: CallbackKind, body: Mapping[str, object]) -> Verdict:
        """See ``CallbackDesk.hear``."""
        return await self._desk.hear(job_id, token, kind, body)

    async def bearer(self, job_id: str, token: str) -> Job:
        """See ``CallbackDesk.bearer``."""
        return await self._desk.bearer(job_id, token)

    # ── Calls to trainers ───────────────────────────────────────────────────────────────────────────────

    async def _reach_trainers(self, job: Job) -> None:
        try:
            await self._calling.call(self._pool.check, {"trace_id": job.trace_id, "job_id": job.job_id})
        except TrainerUnreachableError as error:
            await self._blocking(self._ledger.fail_waiting, job.job_id, job.attempt, error)
            error.details["job_id"] = job.job_id
            raise
        self._unfilled.set()

    async def _fill(self) -> None:
        """Keeps as many trainers called as jobs wait, beside those that have one, for ever."""
        while True:
            await self._unfilled.wait()
            self._unfilled.clear()
            try:
                waiting = await self._blocking(self._ask.backlog)
            except StillhouseError:
                log.exception("the ledger does not say what waits; it is asked again")
                continue
            wanted = min(waiting + len(self._busy), self._pool.capacity())
            for _ in range(wanted - len(self._calls)):
                wake = str(uuid.uuid4())
                self._calls[wake] = asyncio.create_task(self._call(wake))

    async def _call(self, wake: str) -> None:
        """One call to a trainer, from which it takes jobs."""
        took = 0
        try:
            took = await self._pool.work(wake)
        except Exception as error:  # noqa: BLE001  # whatever ended the trainer, its job must go on
            log.warning("a trainer was lost: %s", error)
            await self._lost(wake)
        finally:
            del self._calls[wake]
            self._busy.discard(wake)
            self._workers.pop(wake, None)
            if took:  # else nothing may start before something changes
                self._unfilled.set()

    async def _lost(self, wake: str) -> None:
        worker = self._workers.get(wake)
        if worker is not None:
            with contextlib.suppress(StillhouseError):  # else its heartbeats are missed soon
                await self._blocking(self._ledger.lost, worker)

    async def _watch(self) -> None:
        """Ends what stands still, and looks again for what may start, for ever."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            try:
                for job in await self._blocking(self._ledger.watch):
                    await self._kill(job)
            except StillhouseError:
                log.exception("the ledger cannot be looked after; it is tried again")
            self._unfilled.set()

    async def _stop_hard(self, job: Job) -> None:
        log.warning("job %s does not stop: its trainer is killed", job.job_id)
        await self._kill(job)
        await self._blocking(self._ledger.lost, job.worker or "")

    async def _kill(self, job: Job) -> None:
        if job.executor == "ray":  # whoever watches over a process hears of it
            await self._pool.kill(job.worker or "")

    # ── News ────────────────────────────────────────────────────────────────────────────────────────────

    def _changed_in_thread(self, job_id: str) -> None:
        self._loop.call_soon_threadsafe(self._tell, job_id)

    def _tell(self, job_id: str) -> None:
        for heard in self._news.get(job_id, ()):
            heard.set()
        self._unfilled.set()
        if self._externals is not None:
            self._externals.changed(job_id)

    def _went_on(self, job_id: str, attempt: int, report: Report) -> None:
        latest, before = report.epochs[-1], self._progress.get(job_id)
        self._versions += 1
        now, eta_s = self._clock(), None
        if before is not None and before.attempt == attempt and latest.epoch > before.epoch:
            per_epoch_s = (now - before.at) / (latest.epoch - before.epoch)
            eta_s = per_epoch_s * (latest.epochs - latest.epoch)
        self._progress[job_id] = Progress(
            self._versions, attempt, now, latest.epoch, latest.epochs, latest.metrics, eta_s
        )
        self._tell(job_id)

    async def _since(self, job_id: str, owner: str | None, after: int, version: int) -> News:
        events = await self._blocking(self._ask.events, job_id, owner, after)
        progress = self._progress.get(job_id)
        fresh = progress if progress is not None and progress.version > version else None
        job = None if events or fresh else await self._blocking(self._ask.get, job_id, owner)
        ended = job is not None and job.state in TERMINAL and job.seq <= after
        if ended:
            self._progress.pop(job_id, None)
        return News(events, fresh, ended=ended)

    async def _until(self, job_id: str, holds: Callable[[Job], bool]) -> Job:
        heard = asyncio.Event()
        self._news[job_id].append(heard)
        try:
            while True:
                heard.clear()
                job = await self._blocking(self._ask.get, job_id, None)
                if holds(job):
                    return job
                await heard.wait()
        finally:
            self._news[job_id].remove(heard)

    async def _filed(self, job: Job) -> Filed:
        return Filed(job, await self._blocking(self._ask.turn, job))

    async def _blocking(
        self, call: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs
    ) -> Result:
        return await self._loop.run_in_executor(self._threads, lambda: call(*args, **kwargs))
