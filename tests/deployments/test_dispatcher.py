"""The dispatcher with trainers that are told what to do: how many are called, and when."""

import asyncio

import pytest

from core.jobs.moves import Rules
from core.jobs.records import NewJob
from core.jobs.states import JobState
from deployments.dispatcher import Dispatcher

pytestmark = pytest.mark.anyio


class Crew:
    """Trainers that take one job each and finish it when the gate is opened."""

    def __init__(self, trainers: int) -> None:
        self.trainers, self.gate = trainers, asyncio.Event()
        self.at_work, self.most, self.calls = 0, 0, 0
        self.dispatcher: Dispatcher
        self.losses = 0

    def capacity(self) -> int:
        return self.trainers

    async def check(self) -> None: ...

    async def work(self, wake: str) -> int:
        self.calls += 1
        assignment = await self.dispatcher.claim(f"trainer {wake}", wake)
        if assignment is None:
            return 0
        if self.losses:
            self.losses -= 1
            raise ConnectionError("the trainer died")
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        await self.gate.wait()
        self.at_work -= 1
        await self.dispatcher.complete(assignment.job_id, assignment.attempt, {})
        return 1

    async def kill(self, worker: str) -> None: ...


@pytest.fixture
async def crew(tmp_path):
    crew = Crew(trainers=3)
    crew.dispatcher = Dispatcher(
        f"sqlite:///{tmp_path}/jobs.db", Rules(running_per_owner=10), crew, stop_within_s=0.1
    )
    yield crew
    crew.gate.set()
    await crew.dispatcher.close()


async def file(crew, number: int) -> str:
    new = NewJob(f"job-{number}", "ada", "train", {"dataset_id": "d"}, {}, "0" * 32)
    return (await crew.dispatcher.create(new)).job.job_id


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110  # nothing tells
            await asyncio.sleep(0.01)


async def test_jobs_that_come_one_by_one_run_beside_one_another(crew):
    for number in range(3):
        await file(crew, number)

        async def runs(wanted=number + 1):
            return crew.at_work == wanted

        await until(runs)


async def test_no_more_trainers_are_called_than_there_are(crew):
    ids = [await file(crew, number) for number in range(8)]

    async def all_at_work():
        return crew.at_work == 3

    await until(all_at_work)
    crew.gate.set()

    async def all_done():
        filed = [await crew.dispatcher.get(job_id, None) for job_id in ids]
        return all(found.job.state is JobState.COMPLETED for found in filed)

    await until(all_done)
    assert crew.most == 3


async def test_job_of_a_trainer_that_died_is_given_to_the_next_at_once(crew):
    crew.losses = 1
    crew.gate.set()
    job_id = await file(crew, 1)

    async def done():
        return (await crew.dispatcher.get(job_id, None)).job.state is JobState.COMPLETED

    await until(done)
    assert (await crew.dispatcher.get(job_id, None)).job.attempt == 2


async def test_owner_at_the_limit_costs_no_endless_calls(tmp_path):
    crew = Crew(trainers=3)
    crew.dispatcher = Dispatcher(
        f"sqlite:///{tmp_path}/jobs.db", Rules(running_per_owner=1), crew, stop_within_s=0.1
    )
    for number in range(3):
        await file(crew, number)
    for _ in range(50):
        await asyncio.sleep(0.01)
    assert crew.at_work == 1
    assert crew.calls < 20
    crew.gate.set()
    await crew.dispatcher.close()
