"""``Idempotency-Key`` on every request that creates something (contract, section 8)."""

import asyncio
import contextlib
import json
import threading

import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from core.errors import IdempotencyInProgressError, RunNotFoundError, ServiceUnavailableError
from core.idempotency import LIFETIME_S, IdempotencyKeys
from core.storage import Storage
from deployments.edge import idempotency
from deployments.edge.border import Border
from deployments.edge.idempotency import Idempotency
from deployments.origin import Origin
from deployments.settings import Limits
from deployments.trainer import Trainer
from deployments.web import build_web_app
from tests.deployments.asgi import LEFT, ask, http_scope, part, parts
from tests.deployments.local import (
    DATASETS,
    DISTILL,
    EXAMPLE_CSV,
    MODELS,
    PREDICT,
    QUICK,
    QUICK_STUDENT,
    RUNS,
    TRAIN,
    Clock,
    Witness,
    failed,
    local_service,
    settings_in,
    stored_files,
    strict_json,
    trained,
    upload,
)

pytestmark = pytest.mark.anyio
KEY = {"idempotency-key": "key-1"}
CSV = {"content-type": "text/csv"}
STREAM = {"accept": "text/event-stream"}


def is_replay(response):
    return response.headers.get("idempotent-replayed") == "true"


class GatedTrainer(Trainer):
    """Trains when the gate is opened, unless it is told to stop before."""

    def __init__(self, *parts):
        super().__init__(*parts)
        self.gate, self.begun, self.jobs = threading.Event(), threading.Event(), []

    def _train(self, work, request):
        self.jobs.append(work)
        self.begun.set()
        while not self.gate.wait(0.01) and not work.stopped.is_set():
            pass
        return super()._train(work, request)


class BrokenTrainer(Trainer):
    """Fails at first."""

    broken = True

    def _train(self, work, request):
        if self.broken:
            self.broken = False
            raise ZeroDivisionError("it broke")
        return super()._train(work, request)


# ── Replays ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_second_request_gets_the_first_answer_and_trains_nothing(client):
    payload = QUICK | {"dataset_id": await upload(client)}
    first = await client.post(TRAIN, json=payload, headers=KEY)
    again = await client.post(TRAIN, json=payload, headers=KEY)
    assert (first.status_code, is_replay(first)) == (200, False)
    assert (again.status_code, is_replay(again)) == (200, True)
    assert again.content == first.content
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert len((await client.get(RUNS)).json()["data"]) == 1


async def test_every_creating_route_replays_its_answer(client):
    dataset_id = await upload(client)
    teacher = await trained(client, dataset_id)
    requests = [
        (
            DISTILL,
            {"json": QUICK_STUDENT | {"dataset_id": dataset_id, "teacher_run_id": teacher["run_id"]}},
            200,
        ),
        (f"{RUNS}/{teacher['run_id']}/save", {"json": {"model_id": "m"}}, 201),
        (f"{RUNS}/{teacher['run_id']}/save", {}, 201),
        (DATASETS, {"content": "a,b\n1,2\n3,4\n"}, 201),
    ]
    for number, (path, request, status) in enumerate(requests):
        headers = {"idempotency-key": f"k{number}"} | (CSV if path == DATASETS else {})
        first = await client.post(path, headers=headers, **request)
        again = await client.post(path, headers=headers, **request)
        assert (first.status_code, again.status_code) == (status, status), first.text
        assert (is_replay(first), is_replay(again)) == (False, True)
        assert first.content == again.content
    assert len((await client.get(MODELS)).json()["data"]) == 2


async def test_without_a_key_everything_is_done_again(client):
    payload = QUICK | {"dataset_id": await upload(client)}
    ids = {(await client.post(TRAIN, json=payload)).json()["run_id"] for _ in range(2)}
    assert len(ids) == 2


@pytest.mark.parametrize("change", ["key", "query", "route", "token"])
async def test_other_key_query_route_or_token_is_another_request(tmp_path, connect, change):
    file = tmp_path / "tokens"
    file.write_text("one\ntwo\n")
    settings = settings_in(tmp_path, allow_no_auth=False, tokens_file=str(file))
    async with connect(local_service(settings), headers={"authorization": "Bearer one"}) as client:
        content = EXAMPLE_CSV.encode()
        await client.post(DATASETS, content=content, headers=KEY | CSV, params={"name": "a.csv"})
        other = {
            "key": {"headers": CSV | {"idempotency-key": "key-2"}, "params": {"name": "a.csv"}},
            "query": {"headers": CSV | KEY, "params": {"name": "b.csv"}},
            "token": {"headers": CSV | KEY | {"authorization": "Bearer two"}, "params": {"name": "a.csv"}},
            "route": {"headers": CSV | KEY},
        }[change]
        path = f"{RUNS}/x/save" if change == "route" else DATASETS
        assert not is_replay(await client.post(path, content=content, **other))


async def test_token_is_the_same_however_it_is_spelt(tmp_path, connect):
    file = tmp_path / "tokens"
    file.write_text("one\n")
    settings = settings_in(tmp_path, allow_no_auth=False, tokens_file=str(file))
    async with connect(local_service(settings)) as client:
        spelt = [KEY | CSV | {"authorization": text} for text in ("Bearer one", "bearer  one")]
        answers = [await client.post(DATASETS, content="a\n1\n", headers=headers) for headers in spelt]
    assert is_replay(answers[1])


@pytest.mark.parametrize(("method", "path"), [("POST", PREDICT), ("GET", DATASETS), ("DELETE", f"{RUNS}/x")])
@pytest.mark.parametrize("key", ["key-1", "", "x" * 300])
async def test_key_means_nothing_where_nothing_is_created(client, method, path, key):
    answers = [await client.request(method, path, headers={"idempotency-key": key}) for _ in range(2)]
    assert len({(answer.status_code, answer.text) for answer in answers}) == 1
    assert not any(is_replay(answer) for answer in answers)


@pytest.mark.parametrize("key", [b"", b" ", b"a b", b"\xc3\xbc", b"x" * 256, b"a\tb", b"\x7f"])
@pytest.mark.parametrize(("path", "status"), [(DATASETS, 400), (TRAIN, 400)])
async def test_malformed_key_is_400_in_the_dialect_of_the_route(client, key, path, status):
    response = await client.post(path, content="{}", headers={b"idempotency-key": key})
    assert "Idempotency-Key" in failed(response, status, "MALFORMED_BODY")


@pytest.mark.parametrize("key", ["x", "x" * 255, '!"#$%&/()=?~', "../../etc/passwd"])
async def test_visible_characters_make_a_key(client, key, settings):
    headers = CSV | {"idempotency-key": key}
    assert [is_replay(await client.post(DATASETS, content="a\n1\n", headers=headers)) for _ in "12"] == [
        False,
        True,
    ]


async def test_keys_and_tokens_are_not_written_down(client, settings):
    await client.post(DATASETS, content="a\n1\n", headers=CSV | {"idempotency-key": "very-private-key"})
    kept = [name for name in stored_files(settings) if name.startswith("idempotency/")]
    assert len(kept) == 1
    storage = Storage(settings.expanded_storage_url())
    assert b"very-private" not in storage.read(kept[0])
    assert "very-private" not in kept[0]


# ── Other bodies, and twins ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("path", "status"), [(DATASETS, 422), (TRAIN, 400)])
async def test_other_body_is_refused_and_the_first_answer_stays(client, path, status):
    payload = json.dumps(QUICK | {"dataset_id": await upload(client)}).encode()
    content = payload if path == TRAIN else EXAMPLE_CSV.encode()
    first = await client.post(path, content=content, headers=KEY | CSV)
    for other in (content + b"\n", b"", b"x" * 100_000):
        response = await client.post(path, content=other, headers=KEY | CSV)
        assert "another request" in failed(response, status, "IDEMPOTENCY_KEY_REUSED")
    again = await client.post(path, content=content, headers=KEY | CSV)
    assert (is_replay(again), again.content) == (True, first.content)


async def test_twin_in_flight_is_refused_until_the_first_is_answered(settings, connect):
    service = local_service(settings, trainer=GatedTrainer)
    trainer = service._trainer._target
    async with connect(service) as client, asyncio.timeout(60):
        payload = QUICK | {"dataset_id": await upload(client)}
        first = asyncio.create_task(client.post(TRAIN, json=payload, headers=KEY))
        await asyncio.to_thread(trainer.begun.wait, 30)
        for accept in (None, "text/event-stream"):
            headers = KEY | ({"accept": accept} if accept else {})
            failed(await client.post(TRAIN, json=payload, headers=headers), 400, "IDEMPOTENCY_IN_PROGRESS")
        trainer.gate.set()
        assert (await first).status_code == 200
        again = await client.post(TRAIN, json=payload, headers=KEY)
    assert (is_replay(again), again.content) == (True, first.result().content)
    assert len(trainer.jobs) == 1


async def test_twin_upload_in_flight_is_409_with_a_hint(service):
    app = build_web_app(service)
    scope = http_scope(path=DATASETS, headers=KEY | CSV)
    going_on = asyncio.Event()

    def body():
        yield part(b"a\n", more=True)
        going_on.set()

    first = asyncio.create_task(ask(app, scope, body()))
    await going_on.wait()
    twin = await ask(app, scope, parts(b"a\n1\n"))
    assert twin.outcome == (409, "IDEMPOTENCY_IN_PROGRESS")
    assert int(twin.headers["retry-after"]) >= 1
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    assert (await ask(app, scope, parts(b"a\n1\n"))).status == 201


# ── What does not use a key up ──────────────────────────────────────────────────────────────────────────────


async def test_refused_request_leaves_its_key_free_for_a_better_one(client):
    failed(await client.post(TRAIN, json={}, headers=KEY), 400, "INVALID_DATA_TARGET")
    payload = QUICK | {"dataset_id": await upload(client)}
    assert (await client.post(TRAIN, json=payload, headers=KEY)).status_code == 200


async def test_failed_work_leaves_its_key_free(settings, connect):
    async with connect(local_service(settings, trainer=BrokenTrainer)) as client:
        payload = QUICK | {"dataset_id": await upload(client)}
        failed(await client.post(TRAIN, json=payload, headers=KEY), 400, "TRAINING_FAILED")
        response = await client.post(TRAIN, json=payload, headers=KEY)
        assert (response.status_code, is_replay(response)) == (200, False)


async def test_stream_that_ends_in_an_error_leaves_its_key_free(settings, connect):
    async with connect(local_service(settings, trainer=BrokenTrainer)) as client:
        payload = QUICK | {"dataset_id": await upload(client)}
        first = await client.post(TRAIN, json=payload, headers=KEY | STREAM)
        assert "event: error" in first.text
        second = await client.post(TRAIN, json=payload, headers=KEY | STREAM)
        assert "event: result" in second.text
        third = await client.post(TRAIN, json=payload, headers=KEY | STREAM)
    assert (is_replay(second), is_replay(third)) == (False, True)
    assert third.content == second.content
    assert third.headers["content-type"].startswith("text/event-stream")


async def test_refused_upload_is_not_read_to_its_end(service):
    endless = (part(b"x" * 1000, more=True) for _ in range(10**6))
    scope = http_scope(path=f"{RUNS}/x/save", headers=KEY | {"content-length": "99999999999"})
    exchange = await ask(build_web_app(service), scope, endless)
    assert (exchange.outcome, exchange.taken) == ((413, "PAYLOAD_TOO_LARGE"), 0)


# ── Restarts and time ───────────────────────────────────────────────────────────────────────────────────────


async def test_answer_survives_a_restart_of_ingress_and_registry(settings, connect):
    async with connect(local_service(settings)) as client:
        payload = QUICK | {"dataset_id": await upload(client)}
        first = await client.post(TRAIN, json=payload, headers=KEY)
    async with connect(local_service(settings)) as client:
        again = await client.post(TRAIN, json=payload, headers=KEY)
    assert (is_replay(again), again.content) == (True, first.content)


async def test_key_lives_for_a_day(settings, connect):
    clock = Clock()
    async with connect(local_service(settings, clock=clock)) as client:
        await client.post(DATASETS, content="a\n1\n", headers=KEY | CSV)
        clock.now += LIFETIME_S - 1
        assert is_replay(await client.post(DATASETS, content="a\n1\n", headers=KEY | CSV))
        clock.now += 1
        assert not is_replay(await client.post(DATASETS, content="b\n1\n", headers=KEY | CSV))


class Ids:
    """Runs jobs by remembering their ids."""

    def __init__(self):
        self.seen = []

    async def __call__(self, run_id, request, origin, ticket):
        self.seen.append(run_id)
        yield {"event": "result", "body": {"run_id": run_id}}


async def run_ids(service, payload, *origins):
    ids = service._dispatched = Ids()
    for origin in origins:
        async with contextlib.aclosing(service.run_job("train", payload, origin)) as reports:
            async for _ in reports:
                pass
    return ids.seen


async def test_same_key_and_request_have_one_run_id_even_after_a_crash(settings, connect):
    async with connect(local_service(settings)) as client:
        payload = QUICK | {"dataset_id": await upload(client)}
    reordered = dict(reversed(payload.items()))
    keyed, other, none = Origin(idempotency="a" * 64), Origin(idempotency="b" * 64), Origin()
    before = await run_ids(local_service(settings), payload, keyed, other, none, none)
    after = await run_ids(local_service(settings), reordered, keyed)
    changed = await run_ids(local_service(settings), payload | {"epochs": 4}, keyed)
    assert after[0] == before[0]
    assert len({*before, *changed}) == 5


class ForgetfulLedger:
    """A service whose answers to keys are lost on their way to where they are kept."""

    def __init__(self, service):
        self._keys = service.keys

    def __getattr__(self, name):
        return getattr(self._keys, name)

    async def complete_key(self, name, answer, holder):
        await self._keys.release_key(name, holder)


@pytest.mark.parametrize("path", [TRAIN, DISTILL])
async def test_repeat_whose_first_answer_was_lost_is_not_in_its_own_way(settings, connect, monkeypatch, path):
    service = local_service(settings)
    monkeypatch.setattr(type(service), "keys", ForgetfulLedger(service))
    async with connect(service) as client:
        dataset_id = await upload(client)
        teacher = await trained(client, dataset_id)
        more = {"teacher_run_id": teacher["run_id"]} if path == DISTILL else {"hidden_dim": 8}
        saved = QUICK_STUDENT | more | {"dataset_id": dataset_id, "save_model": True, "model_id": "mine"}
        first = await client.post(path, json=saved, headers=KEY)
        again = await client.post(path, json=saved, headers=KEY)
        assert (first.status_code, again.status_code, is_replay(again)) == (200, 200, False), again.text
        assert first.json()["run_id"] == again.json()["run_id"]
        for headers in ({}, {"idempotency-key": "another"}):
            failed(await client.post(path, json=saved, headers=headers), 400, "MODEL_EXISTS")
        overwriting = saved | {"overwrite": True, "epochs": 2}
        assert (await client.post(path, json=overwriting)).status_code == 200
        failed(await client.post(path, json=saved, headers=KEY), 400, "MODEL_EXISTS")


# ── Clients that leave ──────────────────────────────────────────────────────────────────────────────────────


async def free(ledger, name):
    with contextlib.suppress(IdempotencyInProgressError):
        answer = await ledger.claim_key(name, "test")
        if answer is None:
            await ledger.release_key(name, "test")
        return answer is None
    return False


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_client_that_leaves_stops_its_training_and_frees_its_key_and_its_place(settings, accept):
    service = local_service(settings, trainer=GatedTrainer)
    trainer, app = service._trainer._target, build_web_app(service)
    dataset = await ask(app, http_scope(path=DATASETS, headers=CSV), parts(EXAMPLE_CSV.encode()))
    body = json.dumps(QUICK | {"dataset_id": dataset.json["dataset_id"]}).encode()
    scope = http_scope(path=TRAIN, headers=KEY | {"accept": accept})
    request = asyncio.create_task(ask(app, scope, parts(body)))
    async with asyncio.timeout(60):
        await asyncio.to_thread(trainer.begun.wait, 30)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await asyncio.to_thread(trainer.jobs[0].stopped.wait, 30)
        trainer.gate.set()
        assert service.queue()["free"] == service.queue()["capacity"]
        again = await ask(app, scope, parts(body))
    assert again.status == 200
    assert "idempotent-replayed" not in again.headers
    assert trainer.jobs[0].run_id == trainer.jobs[1].run_id


async def test_listener_of_events_that_hangs_up_stops_its_training_and_frees_its_key(settings):
    service = local_service(settings, trainer=GatedTrainer)
    trainer, app = service._trainer._target, build_web_app(service)
    dataset = await ask(app, http_scope(path=DATASETS, headers=CSV), parts(EXAMPLE_CSV.encode()))
    body = json.dumps(QUICK | {"dataset_id": dataset.json["dataset_id"]}).encode()
    scope = http_scope(path=TRAIN, headers=KEY | STREAM)
    async with asyncio.timeout(60):
        await ask(app, scope, [*parts(body), LEFT])
        await asyncio.to_thread(trainer.jobs[0].stopped.wait, 30)
        trainer.gate.set()
        again = await ask(app, scope, parts(body))
    assert b"event: result" in again.body
    assert service.queue()["free"] == service.queue()["capacity"]


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
@pytest.mark.parametrize("at", [0, 1, 2])
async def test_answer_that_cannot_be_sent_stops_the_training_and_frees_its_key(settings, spec_version, at):
    service = local_service(settings, trainer=GatedTrainer)
    trainer, app = service._trainer._target, build_web_app(service)
    trainer.gate.set()
    dataset = await ask(app, http_scope(path=DATASETS, headers=CSV), parts(EXAMPLE_CSV.encode()))
    body = json.dumps(QUICK | {"dataset_id": dataset.json["dataset_id"]}).encode()
    scope = http_scope(
        path=TRAIN, headers=KEY | STREAM, asgi={"version": "3.0", "spec_version": spec_version}
    )
    sends = 0

    async def send(message):
        nonlocal sends
        sends += 1
        if sends > at:
            raise OSError("the client is gone")

    with pytest.raises(ConnectionError):
        await ask(app, scope, parts(body), send=send)
    assert service.queue()["free"] == service.queue()["capacity"]
    assert b"event: result" in (await ask(app, scope, parts(body))).body
    assert len(trainer.jobs) == 1 + (at == 2)
    assert trainer.jobs[0].stopped.is_set()


# ── The middleware alone, with ledgers that misbehave ───────────────────────────────────────────────────────


class Ledger:
    """Keys in this process, which fails in the named calls, and may be held up in claims."""

    def __init__(self, folder, *failing):
        self.keys = IdempotencyKeys(Storage(f"file://{folder}"), Clock())
        self.failing, self.calls = failing, []
        self.let_claims_return = asyncio.Event()
        self.let_claims_return.set()

    async def _called(self, name, method, *args):
        self.calls.append(name)
        if name in self.failing:
            raise ServiceUnavailableError(f"the ledger cannot {name}")
        result = method(*args)
        await self.let_claims_return.wait()
        return result

    async def claim_key(self, name, holder):
        return await self._called("claim", self.keys.claim, name, holder)

    async def renew_key(self, name, holder):
        return await self._called("renew", self.keys.renew, name, holder)

    async def complete_key(self, name, answer, holder):
        return await self._called("complete", self.keys.complete, name, answer, holder)

    async def release_key(self, name, holder):
        return await self._called("release", self.keys.release, name, holder)

    @property
    def claims(self):
        return len(self.keys._claims)


def guarded(app, ledger):
    return Border(Idempotency(app, ledger=ledger), observe=Witness(), clock=Clock(), limits=Limits())


def keyed_scope(**more):
    return http_scope(path=DATASETS, headers=KEY, state={"client": "c"}, **more)


async def created(scope, receive, send):
    await Response(await Request(scope, receive).body(), 201, {"location": "/x", "x-other": "y"})(
        scope, receive, send
    )


async def test_replay_has_status_type_and_place_of_the_first_answer(tmp_path):
    app = guarded(created, Ledger(tmp_path))
    first, again = [await ask(app, keyed_scope(), parts(b"ab", b"c")) for _ in range(2)]
    assert (first.status, again.status, again.body) == (201, 201, b"abc")
    assert again.headers["location"] == "/x"
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["content-length"] == "3"


async def test_ledger_that_cannot_be_asked_is_503_and_nothing_is_done(tmp_path):
    async def app(scope, receive, send):
        raise AssertionError("this must not be reached")

    exchange = await ask(guarded(app, Ledger(tmp_path, "claim")), keyed_scope())
    assert exchange.outcome == (503, "SERVICE_UNAVAILABLE")


@pytest.mark.parametrize("failing", ["complete", "release"])
async def test_ledger_that_fails_behind_the_answer_does_not_spoil_it(tmp_path, failing, caplog):
    exchange = await ask(guarded(created, Ledger(tmp_path, failing)), keyed_scope(), parts(b"x"))
    assert (exchange.status, exchange.body) == (201, b"x")
    assert ("the ledger of idempotency keys failed" in caplog.text) == (failing == "complete")


async def test_ledger_that_fails_does_not_hide_the_error_of_the_request(tmp_path):
    async def app(scope, receive, send):
        raise RunNotFoundError("There is no such run.")

    exchange = await ask(guarded(app, Ledger(tmp_path, "release")), keyed_scope())
    assert exchange.outcome == (404, "RUN_NOT_FOUND")


async def test_claim_is_renewed_while_the_work_lasts_even_by_a_ledger_that_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(idempotency, "LEASE_S", 0.003)
    ledger = Ledger(tmp_path, "renew")

    async def app(scope, receive, send):
        while ledger.calls.count("renew") < 3:  # noqa: ASYNC110  # the ledger tells nobody
            await asyncio.sleep(0.001)
        await created(scope, receive, send)

    assert (await ask(guarded(app, ledger), keyed_scope(), parts(b"x"))).status == 201
    assert ledger.claims == 0
    renewed = ledger.calls.count("renew")
    await asyncio.sleep(0.01)
    assert ledger.calls.count("renew") == renewed


async def test_body_that_the_app_did_not_read_belongs_to_the_request_all_the_same(tmp_path):
    async def app(scope, receive, send):
        await Response("done", 201)(scope, receive, send)

    edge = guarded(app, Ledger(tmp_path))
    await ask(edge, keyed_scope(), parts(b"a", b"b"))
    assert (await ask(edge, keyed_scope(), parts(b"ab"))).status == 201
    assert (await ask(edge, keyed_scope(), parts(b"a", b"c"))).outcome == (422, "IDEMPOTENCY_KEY_REUSED")


async def test_answer_to_a_body_that_broke_off_is_not_kept(tmp_path):
    async def app(scope, receive, send):
        await Response("done", 201)(scope, receive, send)

    ledger = Ledger(tmp_path)
    with pytest.raises(ConnectionError):
        await ask(guarded(app, ledger), keyed_scope(), [part(b"a", more=True), LEFT])
    assert ledger.claims == 0
    assert "idempotent-replayed" not in (await ask(guarded(app, ledger), keyed_scope(), parts(b"ab"))).headers


@pytest.mark.parametrize("size", [8 << 20, (8 << 20) + 1])
async def test_answer_that_is_too_large_to_keep_is_given_anew(tmp_path, size):
    async def app(scope, receive, send):
        async def body():
            for start in range(0, size, 1 << 20):
                yield b"x" * min(1 << 20, size - start)

        await StreamingResponse(body(), 201)(scope, receive, send)

    edge = guarded(app, Ledger(tmp_path))
    exchanges = [await ask(edge, keyed_scope()) for _ in range(2)]
    assert [len(exchange.body) for exchange in exchanges] == [size, size]
    assert ("idempotent-replayed" in exchanges[1].headers) == (size <= 8 << 20)


@pytest.mark.parametrize("status", [204, 301, 400, 404, 409, 429, 500, 503])
async def test_successes_alone_are_kept(tmp_path, status):
    async def app(scope, receive, send):
        await Response(None, status)(scope, receive, send)

    ledger = Ledger(tmp_path)
    exchanges = [await ask(guarded(app, ledger), keyed_scope()) for _ in range(2)]
    assert ("idempotent-replayed" in exchanges[1].headers) == (status == 204)
    assert ledger.claims == 0


async def test_cancelled_while_it_claims_leaves_no_claim(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.let_claims_return.clear()
    request = asyncio.create_task(ask(guarded(created, ledger), keyed_scope()))
    while not ledger.calls:  # noqa: ASYNC110  # the ledger tells nobody
        await asyncio.sleep(0)
    request.cancel()
    await asyncio.sleep(0)
    ledger.let_claims_return.set()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert ledger.claims == 0


async def test_twin_that_is_cancelled_while_it_claims_leaves_the_claim_of_the_first(tmp_path):
    ledger = Ledger(tmp_path)
    assert await ledger.claim_key(idempotency.key_name("c", "POST", f"{DATASETS}?", "key-1"), "test") is None
    request = asyncio.create_task(ask(guarded(created, ledger), keyed_scope()))
    await asyncio.sleep(0)
    request.cancel()
    with pytest.raises((asyncio.CancelledError, AssertionError)):
        await request
    assert ledger.claims == 1


async def test_cancelled_anywhere_the_request_leaves_neither_claim_nor_task(tmp_path):
    """Cancels one request after the other, each one turn of the loop later than the one before."""

    async def app(scope, receive, send):
        await asyncio.sleep(0)
        await created(scope, receive, send)

    ledger = Ledger(tmp_path)
    before = asyncio.all_tasks()
    for turns in range(100):
        request = asyncio.create_task(ask(guarded(app, ledger), keyed_scope(), parts(b"a", b"b")))
        for _ in range(turns):
            await asyncio.sleep(0)
        if request.done():
            break
        request.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await request
        assert ledger.claims == 0, turns
    assert 3 < turns < 100
    for _ in range(5):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_replays_are_not_mangled_by_odd_text(client):
    name = "ü☃\u202e<script>.csv"
    answers = [
        await client.post(DATASETS, content="a\n1\n", headers=KEY | CSV, params={"name": name}) for _ in "12"
    ]
    assert strict_json(answers[1].content) == strict_json(answers[0].content)
    assert is_replay(answers[1])
