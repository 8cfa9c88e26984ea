"""What external trainers say, on its way into the ledger."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from core.errors import CallbackForeignError, StillhouseError
from core.jobs.callbacks import Callback, CallbackKind, Completed, Failed, parse_callback
from core.jobs.database import Database
from core.jobs.inquiries import Inquiries
from core.jobs.ledger import Ledger
from core.jobs.records import Assignment, Job, Report, Verdict
from core.jobs.tokens import LIFE_S, Bearer, CallbackTokens, kept_secret
from deployments.webhooks import InThread

log = logging.getLogger(__name__)


class Told(Protocol):
    """Who takes it down and passes it on: the dispatcher."""

    async def report(self, job_id: str, attempt: int, report: Report) -> Verdict: ...
    async def complete(self, job_id: str, attempt: int, result: Mapping[str, object]) -> Verdict: ...
    async def fail(self, job_id: str, attempt: int, error: StillhouseError) -> Verdict: ...


class CallbackDesk:
    """Args:
    clock: Unix seconds.
    failed: Told each error that ended an attempt.
    """

    def __init__(
        self,
        told: Told,
        database: Database,
        ledger: Ledger,
        ask: Inquiries,
        in_thread: InThread,
        clock: Callable[[], float] = time.time,
        failed: Callable[[StillhouseError], None] = lambda _: None,
    ) -> None:
        self._told, self._ledger, self._ask = told, ledger, ask
        self._in_thread, self._clock, self._failed = in_thread, clock, failed
        self._tokens = CallbackTokens(kept_secret(database, "callback tokens"), clock)

    async def hear(self, job_id: str, token: str, kind: CallbackKind, body: Mapping[str, object]) -> Verdict:
        """Raises:
        AuthenticationError: for a token that is none.
        CallbackRejectedError: for that of another job or attempt, and for what cannot be understood.
        """
        bearer = self._tokens.check(token, job_id)
        callback = parse_callback(kind, body, self._clock())
        if callback.attempt not in (None, bearer.attempt):
            raise CallbackForeignError("The attempt must be that of the callback token.", field="attempt")
        return await self.take(job_id, bearer.attempt, callback)

    async def bearer(self, job_id: str, token: str) -> Job:
        """The job for which a token speaks; raises as ``hear`` does."""
        self._tokens.check(token, job_id)
        return await self.current(job_id)

    # ── deployments.external.Office ─────────────────────────────────────────────────────────────────────

    async def take(self, job_id: str, attempt: int, callback: Callback) -> Verdict:
        if isinstance(callback.ending, Completed):
            await self._noted(job_id, attempt, callback.report)
            return await self._told.complete(job_id, attempt, callback.ending.result)
        if isinstance(callback.ending, Failed):
            await self._noted(job_id, attempt, callback.report)
            return await self.fail(job_id, attempt, callback.ending.error)
        return await self._told.report(job_id, attempt, callback.report)

    async def fail(self, job_id: str, attempt: int, error: StillhouseError) -> Verdict:
        verdict = await self._told.fail(job_id, attempt, error)
        if verdict.applied:
            self._failed(error)
            log.warning("attempt %d at job %s failed: %s", attempt, job_id, error.code)
        return verdict

    async def claim_external(self, worker: str) -> Assignment | None:
        return await self._in_thread(self._ledger.claim, worker, "external")

    async def external_jobs(self) -> list[Job]:
        return await self._in_thread(self._ask.working, "external")

    async def current(self, job_id: str) -> Job:
        return await self._in_thread(self._ask.get, job_id, None)

    def limit_of(self, job: Job) -> float:
        return self._ledger.limit_s(job)

    def token_of(self, assignment: Assignment) -> str:
        """Lives as long as the attempt may, and no less than two days."""
        life_s = max(LIFE_S, assignment.remaining_s + 3600)
        return self._tokens.issue(Bearer(assignment.job_id, assignment.attempt), life_s)

    async def _noted(self, job_id: str, attempt: int, report: Report) -> None:
        if report:
            await self._told.report(job_id, attempt, report)
