import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from core.errors import RequestError, StorageError
from core.registry_index import RegistryIndex, RunEntry

TTL_S = 900.0


class FakeClock:
    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def entry(run_id: str, **changes) -> RunEntry:
    plain = RunEntry(
        run_id=run_id,
        kind="train",
        task="classification",
        training_mode="mlp_dense",
        metric_name="accuracy",
        metric_value=0.9,
        size_bytes=10,
        created_at=1_700_000_000.0,
        expires_at=0.0,
        last_used_at=None,
        schema={"target": "y", "classes": ["a", "b"]},
        lineage={"teacher": None},
    )
    return replace(plain, **changes)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def index(clock):
    return RegistryIndex(ttl_s=TTL_S, max_items=3, max_bytes=100, clock=clock)


def ids(index: RegistryIndex) -> set[str]:
    return {run.run_id for run in index.page().data}


def test_added_entry_expires_one_ttl_from_now_and_not_before(index, clock):
    index.add(entry("a"))
    assert index.peek("a").expires_at == clock.now + TTL_S
    clock.now += TTL_S - 0.001
    assert index.peek("a") is not None
    clock.now += 0.001
    assert index.peek("a") is None
    assert index.use("a") is None
    assert not index.remove("a")
    assert len(index) == index.total_bytes == 0
    assert index.page().data == []


def test_use_restarts_the_lifetime_and_peek_does_not(index, clock):
    index.add(entry("used"))
    index.add(entry("seen"))
    clock.now += TTL_S - 1
    assert index.use("used").last_used_at == clock.now
    index.peek("seen")
    clock.now += 1
    assert ids(index) == {"used"}
    assert index.peek("used").expires_at == clock.now - 1 + TTL_S


def test_expired_id_is_reported_once(index, clock):
    index.add(entry("a"))
    assert index.expire() == []
    clock.now += TTL_S
    index.peek("a")
    assert index.expire() == ["a"]
    assert index.expire() == []


def test_next_to_expire_is_evicted_first(index, clock):
    for run_id in "abc":
        index.add(entry(run_id, created_at=clock.now))
        clock.now += 1
    index.use("a")
    assert index.add(entry("d")) == ["b"]
    assert ids(index) == {"a", "c", "d"}


def test_oldest_is_evicted_first_when_all_expire_together(index, clock):
    for run_id, created_at in [("young", 30.0), ("old", 10.0), ("middle", 20.0)]:
        index.add(entry(run_id, created_at=created_at))
    assert index.add(entry("new", created_at=0.0)) == ["old"]


def test_as_many_are_evicted_as_the_bytes_need(index, clock):
    for run_id, size_bytes in [("a", 40), ("b", 30), ("c", 30)]:
        index.add(entry(run_id, size_bytes=size_bytes))
        clock.now += 1
    assert index.add(entry("d", size_bytes=50)) == ["a", "b"]
    assert index.total_bytes == 80


def test_entry_over_the_budget_is_stored_alone_until_the_next_one(index, clock):
    index.add(entry("a"))
    clock.now += 1
    assert index.add(entry("huge", size_bytes=1000)) == ["a"]
    assert ids(index) == {"huge"}
    clock.now += 1
    assert index.add(entry("b")) == ["huge"]


def test_expired_entries_take_no_room(index, clock):
    for run_id in "abc":
        index.add(entry(run_id))
    clock.now += TTL_S
    assert index.add(entry("d", size_bytes=100)) == []
    assert sorted(index.expire()) == ["a", "b", "c"]


def test_entry_added_again_replaces_and_is_not_reported(index):
    index.add(entry("a", size_bytes=60))
    assert index.add(entry("a", size_bytes=70)) == []
    assert index.total_bytes == 70


def test_removed_entry_is_gone_and_never_reported(index, clock):
    index.add(entry("a"))
    assert index.remove("a")
    assert not index.remove("a")
    clock.now += TTL_S
    assert index.expire() == []


def test_restored_entries_keep_their_remaining_lifetimes(index, clock):
    assert index.restore([entry("a", expires_at=clock.now + 5), entry("b", expires_at=clock.now)]) == ["b"]
    clock.now += 4
    assert index.peek("a") is not None
    clock.now += 1
    assert index.peek("a") is None
    assert index.expire() == ["a"]


def test_restore_deletes_what_is_over_smaller_limits(clock):
    index = RegistryIndex(ttl_s=TTL_S, max_items=2, max_bytes=100, clock=clock)
    entries = [entry(run_id, expires_at=clock.now + rest) for run_id, rest in [("c", 3), ("a", 1), ("b", 2)]]
    assert index.restore(entries) == ["a"]
    assert ids(index) == {"b", "c"}


def test_page_is_newest_first_and_stable_while_runs_come_and_go(clock):
    index = RegistryIndex(ttl_s=TTL_S, max_items=10, max_bytes=1000, clock=clock)
    for number in range(5):
        index.add(entry(f"r{number}", created_at=clock.now + number))
    first = index.page(limit=2)
    assert [run.run_id for run in first.data] == ["r4", "r3"]
    index.add(entry("newer", created_at=clock.now + 9))
    index.remove("r3")
    index.remove("r2")
    rest = index.page(limit=2, cursor=first.next_cursor)
    assert [run.run_id for run in rest.data] == ["r1", "r0"]
    assert not rest.has_more


def test_page_refuses_a_foreign_cursor(index):
    index.add(entry("a"))
    with pytest.raises(RequestError):
        index.page(cursor="WyJhIl0")


@pytest.mark.parametrize(
    "limits", [{"ttl_s": 0.0}, {"ttl_s": float("nan")}, {"max_items": 0}, {"max_bytes": 0}]
)
def test_index_without_room_or_time_is_refused(limits, clock):
    with pytest.raises(ValueError, match="must be positive"):
        RegistryIndex(**{"ttl_s": 1.0, "max_items": 1, "max_bytes": 1, "clock": clock} | limits)


json_objects = st.dictionaries(
    st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=3)
)
times = st.floats(allow_nan=False, allow_infinity=False)
entries = st.builds(
    RunEntry,
    run_id=st.text(),
    kind=st.sampled_from(["train", "distill"]),
    task=st.text(),
    training_mode=st.text(),
    metric_name=st.text(),
    metric_value=st.floats(allow_nan=False),
    size_bytes=st.integers(min_value=0),
    created_at=times,
    expires_at=times,
    last_used_at=st.none() | times,
    schema=json_objects,
    lineage=json_objects,
)


@given(entries)
def test_entry_survives_its_json(run):
    assert RunEntry.from_json(run.to_json()) == run


def test_entry_of_a_later_version_is_readable():
    values = json.loads(entry("a").to_json())
    assert RunEntry.from_json(json.dumps(values | {"colour": "green"})) == entry("a")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_damaged_entry_is_named_as_such(text):
    with pytest.raises(StorageError, match="must be"):
        RunEntry.from_json(text)


@pytest.mark.parametrize("field", [field.name for field in fields(RunEntry)])
def test_field_of_another_type_is_named(field):
    values = json.loads(entry("a").to_json())
    with pytest.raises(StorageError, match=f"{field} of a stored run entry must be"):
        RunEntry.from_json(json.dumps(values | {field: [1]}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "other"),
        ("size_bytes", -1),
        ("size_bytes", True),
        ("size_bytes", 1.5),
        ("expires_at", float("nan")),
    ],
)
def test_value_that_no_run_has_is_refused(field, value):
    values = json.loads(entry("a").to_json())
    with pytest.raises(StorageError, match=field):
        RunEntry.from_json(json.dumps(values | {field: value}))


class NaiveRegistry:
    """The contract's sentences one by one, on a list that is scanned for everything."""

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self.runs: list[RunEntry] = []
        self.unreported: list[str] = []
        self.max_items = max_items
        self.max_bytes = max_bytes

    def pass_time(self, now: float) -> None:
        for run in [run for run in self.runs if run.expires_at <= now]:
            self.runs.remove(run)
            self.unreported.append(run.run_id)

    def find(self, run_id: str) -> RunEntry | None:
        return next((run for run in self.runs if run.run_id == run_id), None)

    def forget(self, run_id: str) -> None:
        self.runs = [run for run in self.runs if run.run_id != run_id]
        self.unreported = [other for other in self.unreported if other != run_id]

    def store(self, run: RunEntry) -> list[str]:
        self.forget(run.run_id)
        self.runs.append(run)
        gone = []
        while self.crowded():
            others = [other for other in self.runs if other is not run]
            if not others:
                break
            soonest = min(other.expires_at for other in others)
            oldest = min(other.created_at for other in others if other.expires_at == soonest)
            victim = min(
                (other for other in others if (other.expires_at, other.created_at) == (soonest, oldest)),
                key=lambda other: other.run_id,
            )
            self.runs.remove(victim)
            gone.append(victim.run_id)
        return gone

    def crowded(self) -> bool:
        return len(self.runs) > self.max_items or sum(run.size_bytes for run in self.runs) > self.max_bytes


run_ids = st.sampled_from("abcdefgh")


class RegistryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(1000.0)
        self.index = RegistryIndex(ttl_s=8.0, max_items=4, max_bytes=20, clock=self.clock)
        self.model = NaiveRegistry(max_items=4, max_bytes=20)

    @rule(run_id=run_ids, size_bytes=st.integers(0, 25), age=st.integers(0, 3))
    def add(self, run_id, size_bytes, age):
        run = entry(run_id, size_bytes=size_bytes, created_at=self.clock.now - age)
        expected = self.model.store(replace(run, expires_at=self.clock.now + 8.0))
        assert self.index.add(run) == expected

    @rule(seconds=st.integers(0, 5))
    def wait(self, seconds):
        self.clock.now += seconds
        self.model.pass_time(self.clock.now)

    @rule(run_id=run_ids)
    def use(self, run_id):
        known = self.model.find(run_id)
        if known is None:
            assert self.index.use(run_id) is None
            return
        used = replace(known, expires_at=self.clock.now + 8.0, last_used_at=self.clock.now)
        self.model.runs[self.model.runs.index(known)] = used
        assert self.index.use(run_id) == used

    @rule(run_id=run_ids)
    def remove(self, run_id):
        known = self.model.find(run_id)
        assert self.index.remove(run_id) == (known is not None)
        if known is not None:
            self.model.forget(run_id)

    @rule()
    def expire(self):
        assert sorted(self.index.expire()) == sorted(self.model.unreported)
        self.model.unreported = []

    @rule()
    def restart(self):
        """A new index takes the text of the old one over: nothing live is lost, nothing is revived."""
        stored = [run.to_json() for run in self.model.runs]
        self.index = RegistryIndex(ttl_s=8.0, max_items=4, max_bytes=20, clock=self.clock)
        assert self.index.restore(RunEntry.from_json(text) for text in stored) == []
        self.model.unreported = []

    @invariant()
    def both_hold_the_same(self):
        assert len(self.index) == len(self.model.runs)
        assert self.index.total_bytes == sum(run.size_bytes for run in self.model.runs)
        for run_id in "abcdefgh":
            assert self.index.peek(run_id) == self.model.find(run_id)

    @invariant()
    def pages_show_all_newest_first(self):
        shown, cursor = [], None
        while not shown or cursor is not None:
            page = self.index.page(2, cursor)
            shown, cursor = shown + page.data, page.next_cursor
            if not page.data:
                break
        assert len(shown) == len(self.model.runs)
        assert [run.created_at for run in shown] == sorted((run.created_at for run in shown), reverse=True)


TestRegistryAgainstTheNaiveModel = RegistryMachine.TestCase
