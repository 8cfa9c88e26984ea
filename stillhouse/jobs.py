"""``client.jobs``: training jobs, which go on whatever becomes of the client."""

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Final

import httpx

from core.errors import StillhouseError
from stillhouse import job_calls
from stillhouse.failures import error_of_job
from stillhouse.following import Following
from stillhouse.job_answers import COMPLETED, Job, JobEvent, LogLine
from stillhouse.job_calls import MOST_LINES
from stillhouse.methods import all_pages, all_pages_awaited, awaiting, blocking

if TYPE_CHECKING:
    from stillhouse.client import AsyncClient, Client

# Others, such as a token that no header can carry, are mistakes of the caller.
PASSING: Final = (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError, httpx.ProxyError)


class Jobs:
    """Of the client that blocks."""

    def __init__(self, client: "Client") -> None:
        self._client, self._send = client, client._send

    create = blocking(job_calls.create)
    train = blocking(job_calls.train)
    distill = blocking(job_calls.distill)
    validate = blocking(job_calls.validate)
    list = all_pages(job_calls.jobs_page)
    get = blocking(job_calls.get_job)
    cancel = blocking(job_calls.cancel)
    retry = blocking(job_calls.retry)
    metrics = blocking(job_calls.metrics)
    logs = blocking(job_calls.logs)
    checkpoints = blocking(job_calls.checkpoints)
    attempts = blocking(job_calls.attempts)

    def events(self, job_id: str, after: int = 0) -> Iterator[JobEvent]:
        """What happened to a job after an event, oldest first. Asks for pages as they are needed."""
        while page := self._send(job_calls.events_page(job_id, after)):
            yield from page
            after = page[-1].seq

    def follow(self, job_id: str, after: int = 0) -> Iterator[JobEvent]:
        """What happened to a job after an event and what happens now, with progress, until it has ended.

        A connection that breaks is made anew for as long as the ``deadline_s`` of the client's patience; no
        event is lost by it and none comes twice.
        """
        return self._follow(self._client._following(job_id, after, None))

    def wait(self, job_id: str, timeout_s: float | None = None) -> Job:
        """Waits until a job has ended well.

        Raises:
            StillhouseError: what the job failed with; JobCancelledError where it was cancelled.
            TimeoutError: of ``stillhouse.errors``, after ``timeout_s``; the job goes on.
        """
        job = self.get(job_id)
        if not job.ended:
            following = self._client._following(job_id, 0, timeout_s)
            with closing(self._follow(following)) as events:
                for _ in events:
                    following.check_time()
            job = following.job or job
        return _completed(job)

    def follow_logs(
        self, job_id: str, after: int = 0, *, level: job_calls.Level | None = None, every_s: float = 1.0
    ) -> Iterator[LogLine]:
        """Log lines after a number, and those that come, until the job has ended; asks ``every_s``."""
        while True:
            ended = self.get(job_id).ended
            while lines := self.logs(job_id, after=after, level=level, limit=MOST_LINES):
                yield from lines
                after = lines[-1].seq
            if ended:
                return
            self._client._sleep(every_s)

    def _follow(self, following: Following) -> Generator[JobEvent, None, None]:
        client = self._client
        while True:
            call, failed = following.connect(), None
            try:
                with client._lines(call, following.remaining_s()) as lines:
                    for line in lines:
                        if event := following.feed(line):
                            yield event
                if following.ended(self.get(following.job_id)):
                    yield from filter(following.take, self.events(following.job_id, following.last))
                    return
            except PASSING as error:
                failed = client._unreachable(error)
            except StillhouseError as error:
                failed = error
            client._sleep(client._before_waiting(failed, following.wait_after(failed)))


class AsyncJobs:
    """Of the client that is awaited; ``list``, ``events``, ``follow`` and ``follow_logs`` are iterated."""

    def __init__(self, client: "AsyncClient") -> None:
        self._client, self._send = client, client._send

    create = awaiting(job_calls.create)
    train = awaiting(job_calls.train)
    distill = awaiting(job_calls.distill)
    validate = awaiting(job_calls.validate)
    list = all_pages_awaited(job_calls.jobs_page)
    get = awaiting(job_calls.get_job)
    cancel = awaiting(job_calls.cancel)
    retry = awaiting(job_calls.retry)
    metrics = awaiting(job_calls.metrics)
    logs = awaiting(job_calls.logs)
    checkpoints = awaiting(job_calls.checkpoints)
    attempts = awaiting(job_calls.attempts)

    async def events(self, job_id: str, after: int = 0) -> AsyncIterator[JobEvent]:
        while page := await self._send(job_calls.events_page(job_id, after)):
            for event in page:
                yield event
            after = page[-1].seq

    def follow(self, job_id: str, after: int = 0) -> AsyncIterator[JobEvent]:
        return self._follow(self._client._following(job_id, after, None))

    async def wait(self, job_id: str, timeout_s: float | None = None) -> Job:
        job = await self.get(job_id)
        if not job.ended:
            following = self._client._following(job_id, 0, timeout_s)
            async with aclosing(self._follow(following)) as events:
                async for _ in events:
                    following.check_time()
            job = following.job or job
        return _completed(job)

    async def follow_logs(
        self, job_id: str, after: int = 0, *, level: job_calls.Level | None = None, every_s: float = 1.0
    ) -> AsyncIterator[LogLine]:
        while True:
            ended = (await self.get(job_id)).ended
            while lines := await self.logs(job_id, after=after, level=level, limit=MOST_LINES):
                for line in lines:
                    yield line
                after = lines[-1].seq
            if ended:
                return
            await self._client._sleep(every_s)

    async def _follow(self, following: Following) -> AsyncGenerator[JobEvent, None]:
        client = self._client
        while True:
            call, failed = following.connect(), None
            try:
                async with client._lines(call, following.remaining_s()) as lines:
                    async for line in lines:
                        if event := following.feed(line):
                            yield event
                if following.ended(await self.get(following.job_id)):
                    async for event in self.events(following.job_id, following.last):
                        if following.take(event):
                            yield event
                    return
            except PASSING as error:
                failed = client._unreachable(error)
            except StillhouseError as error:
                failed = error
            await client._sleep(client._before_waiting(failed, following.wait_after(failed)))


def _completed(job: Job) -> Job:
    if job.status != COMPLETED:
        raise error_of_job(job)
    return job
