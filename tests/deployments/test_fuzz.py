"""Whatever is asked, every answer is documented and in the dialect of its route (contract, section 2)."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest

from tests.deployments.fuzz.exchange import CANARY, Sent, authorized, posted
from tests.deployments.fuzz.judge import Judge
from tests.deployments.fuzz.requests import documented_requests, drawn, hostile_requests
from tests.deployments.fuzz.service import open_target
from tests.deployments.local import DATASETS, DISTILL, PREDICT, PROBLEM, RUNS, TRAIN


@pytest.fixture(scope="module")
def fuzzed():
    with open_target() as opened:
        yield opened


def faulty(judged):
    return [f"{sent}: {fault}" for sent, _, faults in judged for fault in faults]


def test_requests_made_from_the_documentation_get_documented_answers(fuzzed):
    target, runner = fuzzed
    judged = runner.run(target.send_all(documented_requests(target, examples=3, seeded=1)))
    assert len(judged) > 100
    assert faulty(judged) == []


def test_mutated_requests_get_documented_answers(fuzzed):
    target, runner = fuzzed
    judged = runner.run(target.send_all(drawn(hostile_requests(target), 400, seeded=1)))
    assert faulty(judged) == []
    answered = Counter((sent.path, answer.status) for sent, answer, _ in judged)
    for path in (TRAIN, PREDICT, DATASETS):  # the mutations reach behind the validation
        assert answered[path, 200] > 0, path
    for path in (TRAIN, DISTILL, PREDICT, DATASETS):
        assert answered[path, 400] > 0, path


def test_only_storage_that_fails_makes_a_500(fuzzed):
    target, runner = fuzzed
    requests = [
        *documented_requests(target, examples=1, seeded=2),
        *drawn(hostile_requests(target), 150, seeded=2),
    ]
    storage = Path(target.settings.expanded_storage_url().removeprefix("file://"))
    away = storage.rename(storage.with_name("away"))
    storage.write_text("no folder")
    try:
        judged = runner.run(target.send_all(requests, restoring=False))
    finally:
        storage.unlink()
        away.rename(storage)
        runner.run(target.restore())  # the registry let go of what was deleted meanwhile
    failed = [answer for _, answer, _ in judged if answer.status >= 500]
    assert failed
    assert {answer.headers["x-error-code"] for answer in failed} == {"STORAGE_ERROR"}
    assert [fault for fault in faulty(judged) if ": is 500: " not in fault] == []


# ── The judge ───────────────────────────────────────────────────────────────────────────────────────────────

DAMAGE = {
    "an undocumented status": {"status": 418},
    "a status of another code": {"status": 404},
    "no code": {"x-error-code": None},
    "an unknown code": {"x-error-code": "OOPS"},
    "the type of another code": {"x-error-type": "transient"},
    "no request id": {"x-request-id": None},
    "no trace id": {"x-trace-id": "0"},
    "a wait where none helps": {"retry-after": "5"},
    "another media type": {"content-type": PROBLEM},
    "no JSON": {"body": b"Internal Server Error"},
    "NaN": {"body": b'{"detail": NaN}'},
    "another dialect": {"body": b'{"status": "error", "error": "x"}'},
    "more than the dialect": {"body": b'{"detail": "x", "code": "y"}'},
    "another kind of value": {"body": b'{"detail": 5}'},
    "a traceback": {"body": b'{"detail": "Traceback (most recent call last)"}'},
    "a row": {"body": b'{"detail": "%s"}' % CANARY.encode()},
}


@pytest.fixture(scope="module")
def refused(fuzzed):
    """A request and its proper answer, 400 in the detail dialect."""
    target, runner = fuzzed
    sent = posted(PREDICT, b"{")
    answer = runner.run(target.send(sent))
    judge = Judge(target.document, ["/srv/storage"])
    assert list(judge.faults(sent, answer)) == []
    return judge, sent, answer


@pytest.mark.parametrize("damage", DAMAGE)
def test_judge_finds(refused, damage):
    judge, sent, answer = refused
    changes = dict(DAMAGE[damage])
    answer = dataclasses.replace(
        answer, status=changes.pop("status", answer.status), body=changes.pop("body", answer.body)
    )
    headers = {name: value for name, value in {**answer.headers, **changes}.items() if value is not None}
    assert list(judge.faults(sent, dataclasses.replace(answer, headers=headers)))


def test_judge_finds_a_success_of_an_undocumented_kind(fuzzed):
    target, runner = fuzzed
    judge, sent = Judge(target.document, ["/srv/storage"]), Sent("GET", RUNS, headers=authorized())
    answer = runner.run(target.send(sent))
    assert list(judge.faults(sent, answer)) == []
    for damaged in (
        dataclasses.replace(answer, status=206),
        dataclasses.replace(answer, body=b'{"data": [NaN]}'),
        dataclasses.replace(answer, body=b'{"data": "/srv/storage/x"}'),
        dataclasses.replace(answer, headers={**answer.headers, "content-type": "text/html"}),
        dataclasses.replace(answer, headers={**answer.headers, "x-error-code": "SYSTEM_ERROR"}),
    ):
        assert list(judge.faults(sent, damaged)), damaged
