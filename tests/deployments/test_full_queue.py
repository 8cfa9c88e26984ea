"""A refusal for want of a place is repeated by the proxy, for a moment and to the same caller alone."""

import asyncio

import httpx
import pytest

from core.errors import QueueFullError
from deployments.full_queue import DOUBTED_FOR_S, KNOWN_FOR_S, PROBES, FullQueue
from deployments.refusals import send_error
from tests.deployments.local import DISTILL, PROBLEM, RUNS, TRAIN, failed

pytestmark = pytest.mark.anyio
BEARER = {"authorization": "Bearer one"}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Queue:
    """A service that lets in who has a token, as long as there are places; it counts what it is asked."""

    def __init__(self) -> None:
        self.free, self.asked = 0, 0
        self.holding, self.opened = False, asyncio.Event()

    async def __call__(self, scope, receive, send) -> None:
        self.asked += 1
        if self.holding:
            await self.opened.wait()
        if dict(scope["headers"]).get(b"authorization", b"") == b"Bearer wrong":
            answer = {"type": "http.response.start", "status": 401, "headers": [(b"x-trace-id", b"0")]}
        elif self.free and scope["path"] != RUNS:
            self.free -= 1
            answer = {"type": "http.response.start", "status": 200, "headers": []}
        elif scope["path"] == RUNS:
            answer = {"type": "http.response.start", "status": 204, "headers": []}
        else:
            return await send_error(QueueFullError("No place.", retry_after=7.2), scope, [], send)
        await send(answer)
        return await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def client(queue, clock):
    transport = httpx.ASGITransport(FullQueue(queue, clock))
    async with httpx.AsyncClient(transport=transport, base_url="http://stillhouse") as client:
        yield client


async def test_same_caller_is_refused_again_as_before_without_asking(client, queue, clock):
    first = await client.post(TRAIN, headers=BEARER)
    clock.now += KNOWN_FOR_S - 0.01
    second = await client.post(TRAIN, headers=BEARER)
    for answer in (first, second):
        failed(answer, 503, "QUEUE_FULL")
    assert queue.asked == 1
    assert (first.headers["retry-after"], second.headers["retry-after"]) == ("8", "8")
    assert second.headers["x-trace-id"]


async def test_refusal_comes_in_the_dialect_that_was_asked_for(client, queue):
    await client.post(DISTILL)
    failed(await client.post(DISTILL, headers={"accept": PROBLEM}), 503, "QUEUE_FULL")
    assert queue.asked == 1


async def test_after_the_moment_few_find_out_for_all(client, queue, clock):
    await client.post(TRAIN)
    clock.now += KNOWN_FOR_S
    queue.holding = True
    asked = [asyncio.create_task(client.post(TRAIN)) for _ in range(PROBES + 20)]
    done, waiting = await asyncio.wait(asked, timeout=0.2)
    assert (len(done), len(waiting), queue.asked) == (20, PROBES, 1 + PROBES)
    queue.opened.set()
    for answer in await asyncio.gather(*asked):
        failed(answer, 503, "QUEUE_FULL")


async def test_room_is_found_within_a_second_though_nobody_says_so(client, queue, clock):
    await client.post(TRAIN)
    queue.free, queue.holding = 1000, True
    clock.now += KNOWN_FOR_S
    asked = [asyncio.create_task(client.post(TRAIN)) for _ in range(PROBES)]
    await asyncio.wait(asked, timeout=0.2)
    clock.now += DOUBTED_FOR_S
    asked += [asyncio.create_task(client.post(TRAIN)) for _ in range(20)]
    await asyncio.wait(asked, timeout=0.2)
    queue.opened.set()
    assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}
    assert KNOWN_FOR_S + DOUBTED_FOR_S <= 1


async def test_training_that_ends_opens_the_queue_at_once(client, queue):
    await client.post(TRAIN, headers=BEARER)
    queue.free = 2
    assert (await client.post(DISTILL, headers=BEARER)).status_code == 200
    assert (await client.post(TRAIN, headers=BEARER)).status_code == 200


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (TRAIN, {"authorization": "Bearer wrong"}, 401),
        (TRAIN, {}, 503),
        (TRAIN, {**BEARER, "idempotency-key": "k"}, 503),
        (TRAIN, {**BEARER, "prefer": "respond-async"}, 503),
        (DISTILL, BEARER, 503),
        (RUNS, BEARER, 204),
    ],
)
async def test_what_may_be_answered_otherwise_is_asked(client, queue, path, headers, status):
    await client.post(TRAIN, headers=BEARER)
    assert (await client.post(path, headers=headers)).status_code == status
    assert queue.asked == 2


async def test_burst_is_refused_before_it_is_in_the_hands_of_the_service(queue, clock):
    async def sleep(seconds):
        assert seconds <= 0.003
        clock.now += seconds
        await asyncio.sleep(0)

    guard = FullQueue(queue, clock, sleep)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(guard), base_url="http://stillhouse"
    ) as client:
        answers = await asyncio.gather(*(client.post(TRAIN) for _ in range(200)))
    for answer in answers:
        failed(answer, 503, "QUEUE_FULL")
    assert queue.asked < 10


async def test_who_names_many_tokens_is_forgotten_in_time(queue, clock):
    guard = FullQueue(queue, clock)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(guard), base_url="http://stillhouse"
    ) as client:
        for number in range(100):
            clock.now += KNOWN_FOR_S / 2
            await client.post(TRAIN, headers={"authorization": f"Bearer {number}"})
    assert len(guard._told) <= 4
