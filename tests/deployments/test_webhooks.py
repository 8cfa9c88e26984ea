"""What clients are told at their callback_url, over real connections."""

import asyncio
import hashlib
import hmac
import itertools

import httpx
import pytest
from sqlalchemy import select

from core.errors import CudaOutOfMemoryError
from core.jobs import tables as t
from core.jobs.database import Database
from core.jobs.inquiries import Inquiries
from core.jobs.ledger import Ledger
from core.jobs.moves import Rules
from core.jobs.outbox import MOST_TRIES, Outbox, wait_s
from core.jobs.records import NewJob
from core.resilience import POLICIES, Caller, Integration
from deployments.addresses import AddressRefusedError, CheckedTransport, checked_transport, is_public
from deployments.settings import CALLBACK_VARIABLE, JobSettings
from deployments.webhooks import PER_HOST, Courier, Webhooks
from tests.deployments.local import QUICK, Clock, local_service, settings_in, upload
from tests.deployments.receiver import Receiver

pytestmark = pytest.mark.anyio
SECRET = "the receiver has it too"  # noqa: S105  # of these tests
JOBS = "/api/v1/training-jobs"


class Sender:
    """A ledger and what empties its outbox, on a clock that passes only when told to."""

    def __init__(self, folder, within_s: float = 10.0) -> None:
        self.clock, self._within_s = Clock(), within_s
        caller = Caller("database", POLICIES[Integration.DATABASE])
        self.database = Database(f"sqlite:///{folder}/jobs.db", caller)
        self.ledger = Ledger(self.database, Rules(running_per_owner=1000), self.clock)
        self.ask = Inquiries(self.database, Rules(), self.clock)
        self.outbox = Outbox(self.database, self.clock)
        self._ids = itertools.count(1)

    def file(self, url: str | None) -> str:
        job_id, options = f"job-{next(self._ids)}", {} if url is None else {"callback_url": url}
        payload = {"dataset_id": "d", "target_column": "kind"}
        return self.ledger.create(NewJob(job_id, "ada", "train", payload, options, "0" * 32)).job_id

    async def __aenter__(self) -> "Sender":
        courier = Courier(SECRET, checked_transport(private=True), self.clock, self._within_s)
        self._task = asyncio.create_task(Webhooks(self.outbox, courier, asyncio.to_thread, lambda: 0.0).run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def until_waiting(self, tries: int) -> None:
        """Until the one delivery that there is has failed so often, and lies back."""
        async with asyncio.timeout(30):
            while True:
                if await asyncio.to_thread(self._tries) == tries:
                    return
                await asyncio.sleep(0.01)

    def _tries(self) -> int:
        query = select(t.deliveries.c.tries).order_by(t.deliveries.c.seq).limit(1)
        return self.database.run("tries", lambda connection: connection.scalar(query))


@pytest.fixture
def sender(tmp_path):
    return Sender(tmp_path)


def is_signed(received, secret: str = SECRET) -> bool:
    """As a receiver checks it."""
    parts = dict(part.split("=", 1) for part in received.headers["x-stillhouse-signature"].split(","))
    signed = f"{parts['t']}.".encode() + received.body
    return hmac.compare_digest(hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest(), parts["v1"])


async def test_every_change_of_state_arrives_in_order_signed_and_with_its_id(sender):
    async with Receiver() as receiver, sender:
        job_id = sender.file(receiver.url)
        sender.ledger.claim("w1")
        sender.ledger.complete(job_id, 1, {"run_id": "r"})
        got = await receiver.until(3)
    assert [(r.json["old"], r.json["new"]) for r in got] == [
        (None, "pending"),
        ("pending", "running"),
        ("running", "completed"),
    ]
    assert [r.json["id"] for r in got] == ["job-1:1", "job-1:2", "job-1:3"]
    assert [r.headers["x-stillhouse-event-id"] for r in got] == [r.json["id"] for r in got]
    assert {(r.json["type"], r.json["job_id"], r.json["attempt"]) for r in got} == {
        ("status_change", "job-1", 1)
    }
    assert all(r.headers["content-type"] == "application/json" and is_signed(r) for r in got)
    assert not is_signed(got[0], "another secret")
    assert not is_signed(type(got[0])("/", got[0].headers, got[0].body + b" "))


async def test_error_comes_in_the_form_of_the_platform_without_what_is_inside(sender):
    async with Receiver() as receiver, sender:
        job_id = sender.file(receiver.url)
        sender.ledger.claim("w1")
        error = CudaOutOfMemoryError("out of memory in /srv/app/train.py, token=abcdef", batch_size=64)
        sender.ledger.fail(job_id, 1, error)
        got = await receiver.until(3)
    assert got[2].json["new"] == "failed"
    shown = got[2].json["error"]
    assert (shown["code"], shown["type"], shown["retryable"]) == ("CUDA_OOM", "system_error", True)
    assert "64" in shown["suggested_action"]
    assert shown["trace_id"] == "0" * 32
    assert b"/srv/app" not in got[2].body
    assert b"abcdef" not in got[2].body


async def test_failed_delivery_comes_again_later_with_the_same_id_and_before_the_next(sender):
    async with Receiver(status=500) as receiver, sender:
        sender.file(receiver.url)
        sender.ledger.claim("w1")
        for tries in (1, 2, 3):
            await sender.until_waiting(tries)
            assert len(receiver.got) == tries
            sender.clock.now += wait_s(tries, 0.0)
        receiver.status = 204
        await receiver.until(5)
    ids = [r.headers["x-stillhouse-event-id"] for r in receiver.got]
    assert ids[0] == ids[-2] == "job-1:1"
    assert ids[-1] == "job-1:2"
    assert receiver.counts()["job-1:2"] == 1


def test_tries_spread_over_about_a_day():
    total = sum(wait_s(tries, 0.0) for tries in range(1, MOST_TRIES))
    assert 22 * 3600 < total < 26 * 3600
    assert wait_s(3, 1.0) == 16.0  # less up to a fifth


def test_delivery_that_fails_too_often_is_given_up_with_an_event_and_the_next_one_has_its_turn(sender):
    job_id = sender.file("http://example.com/")
    sender.ledger.claim("w1")
    for _ in range(MOST_TRIES):
        [delivery] = sender.outbox.due(4, 10)
        assert delivery.key == f"{job_id}:1"
        sender.outbox.failed(delivery, "it answered 500", 0.0)
        sender.clock.now += 3600
    assert [delivery.key for delivery in sender.outbox.due(4, 10)] == [f"{job_id}:2"]
    told = [event.data for event in sender.ask.events(job_id, None, 0) if event.type == "event"]
    assert told == [
        {
            "code": "CALLBACK_UNDELIVERED",
            "event": f"{job_id}:1",
            "tries": MOST_TRIES,
            "message": "it answered 500",
        }
    ]


async def test_what_is_left_when_the_sender_ends_is_told_by_the_next(sender, tmp_path):
    async with Receiver(status=None) as receiver:
        async with sender:
            sender.file(receiver.url)
            await receiver.until(1)
        receiver.status = 200
        async with Sender(tmp_path):
            got = await receiver.until(2)
    assert [r.json["id"] for r in got] == ["job-1:1", "job-1:1"]


async def test_address_that_hangs_delays_no_other_and_gets_few_connections(sender):
    async with Receiver(status=None) as hanging, Receiver() as well, sender:
        for _ in range(3 * PER_HOST):
            sender.file(hanging.url)
        await hanging.until(PER_HOST)
        for _ in range(20):
            sender.file(well.url)
        await well.until(20)
        assert hanging.most_connected == PER_HOST
        assert len(hanging.got) == PER_HOST


async def test_address_that_hangs_is_left_and_tried_again(tmp_path):
    sender = Sender(tmp_path, within_s=0.2)
    async with Receiver(status=None) as receiver, sender:
        sender.file(receiver.url)
        await sender.until_waiting(1)
        receiver.status = 200
        sender.clock.now += 5
        await receiver.until(2)


async def test_redirect_is_a_failure_and_never_followed(sender):
    async with Receiver() as inner, Receiver(status=307, location=inner.url) as receiver, sender:
        sender.file(receiver.url)
        await sender.until_waiting(1)
        assert inner.got == []


async def test_jobs_without_a_callback_tell_nobody(sender):
    sender.file(None)
    assert sender.outbox.due(4, 10) == []


# ── Where callbacks may not go ──────────────────────────────────────────────────────────────────────────────


class Names:
    """A resolver that answers what it is told, in turn."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers, self.asked = iter(answers), []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        return next(self._answers)


class Wire(httpx.AsyncBaseTransport):
    """Remembers where it was to connect to."""

    def __init__(self, *failing: str) -> None:
        self.requests, self._failing = [], failing

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.url.host in self._failing:
            raise httpx.ConnectError("no route")
        return httpx.Response(200)


async def post(names: Names, wire: Wire, url: str = "https://hooks.example/in", *, private: bool = False):
    transport = CheckedTransport(private=private, resolve=names, inner=wire)
    async with httpx.AsyncClient(transport=transport) as client:
        return await client.post(url, content=b"{}")


INNER = (
    *("127.0.0.1", "127.9.9.9", "0.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1"),
    *("169.254.169.254", "100.100.100.200", "168.63.129.16", "224.0.0.1", "255.255.255.255"),
    *("::1", "::", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1"),
    *("64:ff9b::7f00:1", "2002:7f00:1::", "::7f00:1"),
)


@pytest.mark.parametrize("address", INNER)
async def test_address_of_an_inner_network_is_refused_before_anything_is_sent(address):
    wire = Wire()
    with pytest.raises(AddressRefusedError):
        await post(Names([address]), wire)
    with pytest.raises(AddressRefusedError):
        await post(Names(["93.184.216.34", address]), wire)  # all of a name's addresses must be public
    assert wire.requests == []
    assert (await post(Names([address.partition("%")[0]]), wire, private=True)).status_code == 200


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:4700:4700::1111"])
def test_address_of_the_internet_is_public(address):
    assert is_public(address)


async def test_connection_is_made_to_the_address_that_was_checked():
    wire, names = Wire(), Names(["93.184.216.34"], ["127.0.0.1"])  # it would be another one the second time
    await post(names, wire, "https://hooks.example:8443/in?x=1")
    [request] = wire.requests
    assert names.asked == [("hooks.example", 8443)]
    assert str(request.url) == "https://93.184.216.34:8443/in?x=1"
    assert request.headers["host"] == "hooks.example:8443"
    assert request.extensions["sni_hostname"] == "hooks.example"


async def test_next_address_is_tried_where_one_cannot_be_reached():
    wire = Wire("2606:4700:4700::1111")
    await post(Names(["2606:4700:4700::1111", "93.184.216.34"]), wire)
    assert [request.url.host for request in wire.requests] == ["2606:4700:4700::1111", "93.184.216.34"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "127.1"])
async def test_loopback_is_refused_however_it_is_spelt(host):
    async with httpx.AsyncClient(transport=checked_transport(private=False)) as client:
        with pytest.raises((AddressRefusedError, httpx.ConnectError)) as caught:
            await client.post(f"http://{host}:9/")
    assert isinstance(caught.value, AddressRefusedError) or "not known" in str(caught.value)


@pytest.mark.parametrize("host", ["no-such-host.invalid", f"{'a' * 64}.example", "xn--\u00fc.example", "*"])
async def test_host_that_nobody_knows_is_a_failure_and_tried_again(sender, host):
    async with sender:
        sender.file(f"http://{host}/told")
        await sender.until_waiting(1)


# ── Of the whole service ────────────────────────────────────────────────────────────────────────────────────


def jobs_in(folder, **changes: object) -> JobSettings:
    return JobSettings(database_url=f"sqlite:///{folder}/jobs.db", **changes)


async def until_completed(client, job_id: str) -> None:
    async with asyncio.timeout(60):
        while True:
            if (await client.get(f"{JOBS}/{job_id}")).json()["status"] == "completed":
                return
            await asyncio.sleep(0.02)


async def test_job_tells_its_client_how_it_goes(tmp_path, connect):
    jobs = jobs_in(tmp_path, callback_secret=SECRET, callback_private=True)
    service = local_service(settings_in(tmp_path, jobs=jobs))
    async with Receiver() as receiver, connect(service) as client:
        body = QUICK | {"dataset_id": await upload(client), "callback_url": receiver.url}
        job = (await client.post(JOBS, json=body)).json()
        got = await receiver.until(3)
        await service.desk.jobs.close()
    assert [r.json["new"] for r in got] == ["pending", "running", "completed"]
    assert {r.json["job_id"] for r in got} == {job["job_id"]}
    assert all(is_signed(r) for r in got)


async def test_failed_job_tells_its_error(tmp_path, connect):
    jobs = jobs_in(tmp_path, callback_secret=SECRET, callback_private=True)
    service = local_service(settings_in(tmp_path, jobs=jobs))
    async with Receiver() as receiver, connect(service) as client:
        await client.post(JOBS, json=QUICK | {"dataset_id": "gone", "callback_url": receiver.url})
        got = await receiver.until(3)
        await service.desk.jobs.close()
    assert got[-1].json["new"] == "failed"
    assert got[-1].json["error"]["code"] == "DATASET_NOT_FOUND"
    assert got[-1].json["error"]["suggested_action"]


async def test_private_callback_does_not_keep_a_job_from_its_end(tmp_path, connect):
    service = local_service(settings_in(tmp_path, jobs=jobs_in(tmp_path, callback_secret=SECRET)))
    async with Receiver() as receiver, connect(service) as client:
        body = QUICK | {"dataset_id": await upload(client), "callback_url": receiver.url}
        job = (await client.post(JOBS, json=body)).json()
        await until_completed(client, job["job_id"])
        await service.desk.jobs.close()
        assert receiver.got == []


@pytest.mark.parametrize("path", [JOBS, f"{JOBS}/validate"])
async def test_callback_that_could_not_be_signed_is_refused(client, path):
    answer = await client.post(path, json=QUICK | {"dataset_id": "d", "callback_url": "https://a.example/"})
    error = answer.json()["errors"][0] if path.endswith("validate") else answer.json()["error"]
    assert answer.status_code == (200 if path.endswith("validate") else 422)
    assert (error["code"], error["param"]) == ("INVALID_CONFIG", "callback_url")


def test_secret_comes_from_the_settings_or_the_environment_and_is_not_shown(monkeypatch):
    monkeypatch.delenv(CALLBACK_VARIABLE, raising=False)
    assert JobSettings().secret() is None
    monkeypatch.setenv(CALLBACK_VARIABLE, "from outside")
    assert JobSettings().secret() == "from outside"
    own = JobSettings(callback_secret=SECRET)
    assert own.secret() == SECRET
    assert SECRET not in repr(own)
