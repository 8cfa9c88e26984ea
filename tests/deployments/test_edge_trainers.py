"""Trainers that are lost, busy or too many: retries, breaker and queue around real calls (seed 001)."""

import asyncio
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.exceptions import BackPressureError

from core.catalogue import CATALOGUE
from core.resilience import POLICIES, Caller, Integration
from deployments.breakers import Breakers
from deployments.routes.error_pages import page_of_code
from deployments.settings import TrainerSettings
from deployments.trainer import Trainer
from deployments.web import build_web_app
from tests.deployments.asgi import ask, http_scope
from tests.deployments.local import (
    QUICK,
    RUNS,
    TRAIN,
    Clock,
    LocalHandle,
    failed,
    local_service,
    settings_in,
    strict_json,
    upload,
)

pytestmark = pytest.mark.anyio
BREAKERS = "/api/v1/breakers"


def unavailable():
    return ActorUnavailableError("lost", None)


class Pool:
    """A handle to trainers, some of which are lost: before they say anything, or after so many reports.

    Args:
        losses: For one call after the other: how many reports come before the trainer is lost; None for a
            healthy one, as all are behind the last.
    """

    def __init__(self, trainer, *losses, error=unavailable):
        self.trainer, self.losses, self.error = trainer, list(losses), error
        self.run_ids, self.streams = [], []

    def options(self, *, stream):
        return self

    @property
    def run(self):
        return self

    @property
    def runtime_error(self):
        return LocalHandle(self.trainer).runtime_error

    def remote(self, run_id, request, origin):
        self.run_ids.append(run_id)
        stream = LocalHandle(self.trainer, stream=True).run.remote(run_id, request, origin)
        self.streams.append(Stream(stream, self.losses.pop(0) if self.losses else None, self.error))
        return self.streams[-1]


class Stream:
    def __init__(self, stream, loss, error):
        self._stream, self._loss, self._error = stream, loss, error
        self.cancelled = False

    async def __anext__(self):
        if self._loss == 0:
            raise self._error()
        if self._loss is not None:
            self._loss -= 1
        return await anext(self._stream)

    def cancel(self):
        self.cancelled = True
        self._stream.cancel()
        if self._loss == 0:  # as Serve's does where no replica was reached
            raise self._error()


class Observed:
    def __init__(self):
        self.seen = []

    def attempted(self, service, outcome):
        self.seen.append((service, outcome))


class Waits(list):
    async def __call__(self, seconds):
        self.append(seconds)


@pytest.fixture
def pool(service):
    """The service's trainers, on a clock that stands still and without waiting between attempts."""
    service.pool = service._trainer = Pool(service._trainer._target)
    service.clock, service.waits, service.attempts = Clock(), Waits(), Observed()
    service._training = Caller(
        "trainer",
        POLICIES[Integration.TRAINER],
        observer=service.attempts,
        clock=service.clock,
        sleep=service.waits,
        draw=lambda: 0.0,
    )
    service._breakers = Breakers(service._training.breaker)
    return service.pool


async def payload(client):
    return QUICK | {"dataset_id": await upload(client)}


LOSSES = [unavailable, ActorDiedError]


def too_many():
    return BackPressureError(num_queued_requests=16, max_queued_requests=16)


async def test_queue_of_serve_that_is_full_is_told_as_ours_and_speaks_against_no_trainer(
    client, service, pool
):
    pool.losses, pool.error = [0] * 30, too_many
    asked = await payload(client)
    for _ in range(10):
        failed(await client.post(TRAIN, json=asked), 503, "QUEUE_FULL")
    assert service.breakers["trainer"].state == "closed"
    assert service.queue()["free"] == service.queue()["capacity"]


@pytest.mark.parametrize("error", LOSSES, ids=["unavailable", "died"])
@pytest.mark.parametrize("lost", [1, 2])
async def test_request_of_a_trainer_that_was_lost_before_it_took_it_succeeds_on_the_next(
    client, service, pool, lost, error
):
    pool.losses, pool.error = [0] * lost, error
    response = await client.post(TRAIN, json=await payload(client))
    assert response.status_code == 200
    assert set(pool.run_ids) == {response.json()["run_id"]}
    assert len(pool.run_ids) == lost + 1
    assert service.waits == [4, 4][:lost]
    assert service.attempts.seen == [("trainer", "retried")] * lost + [("trainer", "ok")]
    assert len((await client.get(RUNS)).json()["data"]) == 1


async def test_lost_trainer_is_told_to_stop_before_the_next_is_asked(client, service, pool):
    pool.losses = [0]
    lost_at_the_wait = []

    async def wait(seconds):
        lost_at_the_wait.extend(stream.cancelled for stream in pool.streams)

    service._training._sleep = wait
    assert (await client.post(TRAIN, json=await payload(client))).status_code == 200
    assert lost_at_the_wait == [True]


async def test_three_losses_are_the_last_word(client, service, pool):
    pool.losses = [0, 0, 0]
    message = failed(await client.post(TRAIN, json=await payload(client)), 503, "TRAINER_UNREACHABLE")
    assert "again" in message
    assert len(pool.run_ids) == 3
    assert all(stream.cancelled for stream in pool.streams)
    assert service.queue()["free"] == service.queue()["capacity"]


@pytest.mark.parametrize("reports", [1, 2])
async def test_training_that_had_begun_is_not_run_again(client, service, pool, reports):
    pool.losses = [reports]
    message = failed(await client.post(TRAIN, json=await payload(client)), 503, "TRAINER_UNREACHABLE")
    assert len(pool.run_ids) == 1
    assert "lost" in message
    assert len(message) < 100
    assert service.waits == []


async def test_loss_in_a_stream_of_events_is_its_last_event(client, pool):
    pool.losses = [2]
    response = await client.post(TRAIN, json=await payload(client), headers={"accept": "text/event-stream"})
    last = strict_json(response.text.strip().rpartition("data: ")[2])
    assert (last["event"], last["status_code"]) == ("error", 503)
    assert last["body"].keys() == {"status", "error"}


async def test_error_of_the_request_is_neither_retried_nor_counted(client, service, pool):
    wrong = await payload(client) | {"target_column": "nowhere"}
    for _ in range(10):
        assert (await client.post(TRAIN, json=wrong)).status_code == 400
    assert len(pool.run_ids) == 10
    assert service.breakers["trainer"].state == "closed"


async def test_five_losses_open_the_breaker_and_an_operator_closes_it(client, service, pool):
    pool.losses = [0] * 5
    asked = await payload(client)
    for _ in range(2):
        failed(await client.post(TRAIN, json=asked), 503, "TRAINER_UNREACHABLE")
    assert len(pool.run_ids) == 5
    service.clock.now += 12.5
    response = await client.post(TRAIN, json=asked)
    assert "trainer" in failed(response, 503, "CIRCUIT_OPEN")
    assert response.headers["retry-after"] == "48"
    assert len(pool.run_ids) == 5
    [shown] = (await client.get(BREAKERS)).json()["data"]
    assert (shown["service"], shown["state"], shown["retry_after"]) == (
        "trainer",
        "open",
        pytest.approx(47.5),
    )

    reset = await client.post(f"{BREAKERS}/trainer/reset")
    assert (reset.status_code, reset.content) == (204, b"")
    [shown] = (await client.get(BREAKERS)).json()["data"]
    assert shown == {"service": "trainer", "state": "closed", "retry_after": 0}
    assert (await client.post(TRAIN, json=asked)).status_code == 200


async def test_breaker_closes_by_itself_when_a_trainer_is_back(client, service, pool):
    pool.losses = [0] * 5
    asked = await payload(client)
    for _ in range(2):
        await client.post(TRAIN, json=asked)
    service.clock.now += 60
    assert (await client.get(BREAKERS)).json()["data"][0]["state"] == "half_open"
    assert (await client.post(TRAIN, json=asked)).status_code == 200
    assert (await client.get(BREAKERS)).json()["data"][0]["state"] == "closed"


@pytest.mark.parametrize("name", ["nothing", "x" * 40, "%0d%0aSet-Cookie:%20a", "ü☃", "<b>"])
async def test_breaker_that_is_not_there_is_404(client, name):
    failed(await client.post(f"{BREAKERS}/{name}/reset"), 404, "RESOURCE_NOT_FOUND")


async def test_name_that_no_breaker_can_have_is_422(client):
    failed(await client.post(f"{BREAKERS}/{'x' * 41}/reset"), 422, "SCHEMA_VIOLATION")


# ── Busy trainers ───────────────────────────────────────────────────────────────────────────────────────────


class BusyTrainer(Trainer):
    """Never takes a job."""

    async def run(self, run_id, request, origin):
        await asyncio.Event().wait()
        yield


async def test_request_that_no_trainer_takes_in_time_is_503_and_speaks_against_none(tmp_path, connect):
    settings = settings_in(tmp_path, trainer=TrainerSettings(queue_timeout_s=0.02))
    service = local_service(settings, trainer=BusyTrainer)
    service._trainer = pool = Pool(service._trainer._target)
    async with connect(service) as client:
        asked = await payload(client)
        for _ in range(6):
            message = failed(await client.post(TRAIN, json=asked), 503, "TRAINER_UNREACHABLE")
            assert "0.02 s" in message
    assert len(pool.run_ids) == 6
    assert all(stream.cancelled for stream in pool.streams)
    assert service.breakers["trainer"].state == "closed"
    assert service.queue()["free"] == service.queue()["capacity"]


class RunningTrainer(Trainer):
    """Takes jobs and never ends them."""

    async def run(self, run_id, request, origin):
        yield {"event": "started", "run_id": run_id}
        await asyncio.Event().wait()


async def test_full_queue_says_at_once_when_the_running_work_should_end(tmp_path, connect):
    settings = settings_in(tmp_path, trainer=TrainerSettings(queue_capacity=2))
    service = local_service(settings, trainer=RunningTrainer)
    clock = service._admission._clock = Clock()
    service._admission._durations_s.extend([40.0, 50.0, 60.0])
    async with connect(service) as client, asyncio.timeout(60):
        asked = await payload(client)
        running = [asyncio.create_task(client.post(TRAIN, json=asked)) for _ in range(2)]
        while service._admission.running < 2:  # noqa: ASYNC110  # the service tells nobody
            await asyncio.sleep(0)
        clock.now += 20
        response = await client.post(TRAIN, json=asked)
        failed(response, 503, "QUEUE_FULL")
        assert response.headers["retry-after"] == "30"
        assert (await client.get("/api/v1/limits")).json()["queue"] == {"capacity": 2, "free": 0}
        for request in running:
            request.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    assert service.queue() == {"capacity": 2, "free": 2}


async def test_cancelled_at_any_turn_a_training_leaves_neither_place_nor_task(settings, pool, service):
    """Cancels one request after the other, each some turns of the loop later than the one before."""
    app = build_web_app(service)
    csv = {"content-type": "text/csv"}
    body = b"a,kind\n" + b"1,x\n2,y\n" * 20
    dataset = await ask(app, http_scope(path="/api/v1/datasets", headers=csv), [_part(body)])
    wanted = f'{{"dataset_id": "{dataset.json["dataset_id"]}", "target_column": "kind", "epochs": 1}}'
    before = asyncio.all_tasks()
    for turns in range(0, 60, 3):
        request = asyncio.create_task(ask(app, http_scope(path=TRAIN), [_part(wanted.encode())]))
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        assert service.queue()["free"] == service.queue()["capacity"]
    async with service.pool.trainer._device:  # the last training has stopped
        pass
    for _ in range(20):
        await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() - before if "_ask" not in repr(task)]
    assert left == []
    final = await ask(app, http_scope(path=TRAIN), [_part(wanted.encode())])
    assert final.status == 200


def _part(body):
    return {"type": "http.request", "body": body, "more_body": False}


# ── Pages of the errors ─────────────────────────────────────────────────────────────────────────────────────


async def test_doc_url_of_every_code_leads_to_its_page(client):
    entries = (await client.get("/api/v1/errors")).json()["data"]
    assert {entry["code"] for entry in entries} == CATALOGUE.keys()
    for entry in entries:
        page = await client.get(entry["doc_url"])
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        _check_html(page.text)
        assert f"<h1>{entry['code']}</h1>" in page.text
        assert str(entry["status"]) in page.text


async def test_index_links_every_page(client):
    page = await client.get("/docs/errors")
    _check_html(page.text)
    assert set(re.findall(r'href="([^"]+)"', page.text)) == {f"/docs/errors/{code}" for code in CATALOGUE}


@pytest.mark.parametrize("code", ["NOWHERE", "<script>alert(1)</script>", "x" * 5000, "cuda_oom", "%00"])
async def test_page_of_a_code_that_is_none_is_404_in_json(client, code):
    response = await client.get(f"/docs/errors/{code}")
    assert "<script>" not in response.text
    failed(response, 404, response.headers["x-error-code"])


class Strict(HTMLParser):
    def __init__(self):
        super().__init__()
        self.opened = []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.opened.append(tag)

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag


def _check_html(text):
    """Every element that opens closes, and nothing in a text opens one."""
    assert text.startswith("<!doctype html><html lang=")
    parser = Strict()
    parser.feed(text)
    parser.close()
    assert parser.opened == []


def test_texts_of_a_page_are_escaped():
    entry = replace(CATALOGUE["CUDA_OOM"], message="<script>&", suggested_action="<b>\"'")
    page = page_of_code(entry)
    assert "<script>" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;&amp;" in page
