"""Jobs followed live: one call to the dispatcher serves all who follow the same job here."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from core.errors import StillhouseError
from core.jobs.records import Event
from core.jobs.states import TERMINAL
from deployments.dispatcher import Progress
from deployments.job_desk import Jobs

News = Event | Progress


@dataclass(slots=True, eq=False)
class _Follower:
    """What one reader has not taken yet: every event, but of progress only the latest."""

    events: list[Event] = field(default_factory=list)
    progress: tuple[int, Progress] | None = None  # behind the number of the event that it followed
    ended: bool = False
    error: StillhouseError | None = None
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self) -> list[News]:
        """All that waits, in the order in which it happened."""
        (events, self.events), (progress, self.progress) = (self.events, []), (self.progress, None)
        if progress is None:
            return [*events]
        place, latest = progress
        return [*(e for e in events if e.seq <= place), latest, *(e for e in events if e.seq > place)]


class JobFeed:
    """Not thread-safe: for one event loop."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._topics: dict[str, _Topic] = {}

    async def follow(self, job_id: str, owner: str | None, after: int) -> AsyncGenerator[News]:
        """Events after a number, each once and in order, and progress as it comes; ends with the job.

        A reader that is slow loses progress, never events.

        Raises:
            JobNotFoundError: and what the dispatcher raises.
        """
        topic, follower = self._enter(job_id)
        last, over = after, False
        try:
            while past := await self._jobs.events(job_id, owner, last, 1000):
                for event in past:
                    last = event.seq
                    over = over or event.type in TERMINAL
                    yield event
            while True:
                follower.heard.clear()
                for item in follower.take():
                    if isinstance(item, Progress):
                        if not over:  # the end says all that it would
                            yield item
                    elif item.seq > last:
                        last, over = item.seq, over or item.type in TERMINAL
                        yield item
                if follower.error is not None:
                    raise follower.error
                if follower.ended and not follower.events:
                    return
                await follower.heard.wait()
        finally:
            self._leave(topic, follower)

    def _enter(self, job_id: str) -> tuple["_Topic", _Follower]:
        topic = self._topics.get(job_id)
        if topic is None or topic.task.done():
            topic = self._topics[job_id] = _Topic(self._jobs, job_id)
        follower = _Follower()
        topic.followers.add(follower)
        return topic, follower

    def _leave(self, topic: "_Topic", follower: _Follower) -> None:
        topic.followers.discard(follower)
        if not topic.followers:
            topic.task.cancel()
            if self._topics.get(topic.job_id) is topic:
                del self._topics[topic.job_id]


class _Topic:
    def __init__(self, jobs: Jobs, job_id: str) -> None:
        self._jobs, self.job_id = jobs, job_id
        self.followers: set[_Follower] = set()
        self.task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        """Passes on what the dispatcher tells, until the job has ended or the dispatcher fails."""
        try:
            seq = version = 0  # the first answer has all that was: readers drop what they had already
            while True:
                news = await self._jobs.follow(self.job_id, None, seq, version)
                seq = news.events[-1].seq if news.events else seq
                version = news.progress.version if news.progress else version
                place = min([seq, *(event.seq - 1 for event in news.events if _ends(event))])
                for follower in self.followers:
                    follower.events.extend(news.events)
                    if news.progress is not None:
                        follower.progress = place, news.progress
                    follower.ended = news.ended
                    follower.heard.set()
                if news.ended:
                    return
        except StillhouseError as error:
            for follower in self.followers:
                follower.error = error
                follower.heard.set()


def _ends(event: Event) -> bool:
    """No progress comes after it."""
    return event.type in TERMINAL or event.data.get("new") in TERMINAL
