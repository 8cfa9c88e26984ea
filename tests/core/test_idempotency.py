"""Idempotency keys (contract, section 8): answers in storage for a day, claims in memory."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import IdempotencyInProgressError, StorageError
from core.idempotency import FOLDER, LEASE_S, LIFETIME_S, IdempotencyKeys, StoredAnswer, key_name
from core.storage import Storage

NOON = 20_000 * 86_400 + 43_200.0
NAME = key_name("a client", "POST", "/api/v1/train?", "key-1")
ANSWER = StoredAnswer("ab" * 32, 201, {"content-type": "application/json", "location": "/x"}, '{"ü": "☃"}')


class Clock:
    def __init__(self, now=NOON):
        self.now = now

    def __call__(self):
        return self.now


class Memory:
    """A store of objects in memory, which fails when told to."""

    def __init__(self):
        self.objects = {}
        self.fails = False

    def _checked(self):
        if self.fails:
            raise StorageError("storage is down")

    def read(self, name):
        self._checked()
        try:
            return self.objects[name]
        except KeyError:
            raise FileNotFoundError(name) from None

    def write(self, name, data):
        self._checked()
        self.objects[name] = data

    def names(self, folder):
        return sorted(name for name in self.objects if name.startswith(f"{folder}/"))

    def delete_folder(self, folder):
        self.objects = {n: o for n, o in self.objects.items() if not n.startswith(f"{folder}/")}


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def storage(tmp_path):
    return Storage(f"file://{tmp_path}")


@pytest.fixture
def keys(storage, clock):
    return IdempotencyKeys(storage, clock)


def in_flight(keys, name=NAME):
    try:
        answer = keys.claim(name)
    except IdempotencyInProgressError:
        return True
    if answer is None:
        keys.release(name)
    return False


def done(keys, name=NAME, answer=ANSWER):
    assert keys.claim(name) is None
    keys.complete(name, answer)


def test_first_claim_may_do_the_work_and_a_twin_may_not(keys):
    assert keys.claim(NAME) is None
    with pytest.raises(IdempotencyInProgressError):
        keys.claim(NAME)
    assert not in_flight(keys, key_name("another client", "POST", "/api/v1/train?", "key-1"))


def test_kept_answer_comes_back_as_often_as_it_is_asked_for(keys, clock):
    done(keys)
    for _ in range(3):
        clock.now += 60
        answer = keys.claim(NAME)
        assert answer.answered_at == NOON
        assert (answer.request_sha256, answer.status) == (ANSWER.request_sha256, 201)
        assert (answer.headers, answer.body) == (ANSWER.headers, ANSWER.body)


def test_answer_survives_the_process(keys, storage, clock):
    done(keys)
    assert IdempotencyKeys(storage, clock).claim(NAME).body == ANSWER.body


def test_released_key_is_as_good_as_new(keys):
    keys.claim(NAME)
    keys.release(NAME)
    assert keys.claim(NAME) is None


@given(st.floats(NOON - 86_400, NOON + 86_400), st.floats(0, LIFETIME_S, exclude_max=True))
def test_answer_lives_for_its_lifetime_whatever_the_time_of_day(answered_at, age):
    clock = Clock(answered_at)
    keys = IdempotencyKeys(Memory(), clock)
    done(keys)
    clock.now = answered_at + age
    if clock.now - LIFETIME_S < answered_at:
        keys.sweep()
        assert keys.claim(NAME).answered_at == answered_at


@given(st.floats(NOON - 86_400, NOON + 86_400), st.floats(LIFETIME_S, 5 * LIFETIME_S))
def test_answer_is_forgotten_after_its_lifetime(answered_at, age):
    clock = Clock(answered_at)
    keys = IdempotencyKeys(Memory(), clock)
    done(keys)
    clock.now = answered_at + age
    assert keys.claim(NAME) is None


@pytest.mark.parametrize("midnight", [NOON + 43_200])
@pytest.mark.parametrize("before_s", [0, 1e-3, 1, 43_200])
def test_lifetime_ends_to_the_second_across_days(storage, clock, midnight, before_s):
    keys = IdempotencyKeys(storage, clock)
    clock.now = midnight - before_s
    done(keys)
    clock.now += LIFETIME_S - 1
    assert keys.claim(NAME) is not None
    clock.now += 1
    assert keys.claim(NAME) is None


def test_key_may_be_used_anew_after_its_lifetime_and_the_new_answer_counts(keys, clock):
    done(keys)
    clock.now += LIFETIME_S
    newer = StoredAnswer("cd" * 32, 200, {}, "newer")
    done(keys, answer=newer)
    assert keys.claim(NAME).body == "newer"
    clock.now += LIFETIME_S - 1
    assert keys.claim(NAME).body == "newer"


def test_of_many_threads_at_once_one_is_first():
    keys = IdempotencyKeys(Memory(), Clock())
    together = threading.Barrier(8)

    def claim(_):
        together.wait()
        try:
            return keys.claim(NAME) is None
        except IdempotencyInProgressError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(claim, range(8))) == 1


def test_claim_lasts_as_long_as_it_is_renewed(keys, clock):
    keys.claim(NAME)
    for _ in range(20):
        clock.now += LEASE_S - 1
        assert in_flight(keys)
        keys.renew(NAME)


def test_claim_whose_holder_crashed_lapses_after_the_lease_and_not_before(keys, clock):
    keys.claim(NAME)
    clock.now += LEASE_S - 0.001
    assert in_flight(keys)
    clock.now += 0.001
    assert keys.claim(NAME) is None


def test_renewal_takes_up_a_claim_that_a_restart_forgot(storage, clock):
    keys = IdempotencyKeys(storage, clock)
    keys.renew(NAME)
    assert in_flight(keys)


def test_claim_that_cannot_look_for_an_answer_is_given_back():
    storage = Memory()
    keys = IdempotencyKeys(storage, Clock())
    storage.fails = True
    with pytest.raises(StorageError):
        keys.claim(NAME)
    storage.fails = False
    assert not in_flight(keys)


def test_answer_that_cannot_be_kept_leaves_the_key_free():
    storage = Memory()
    keys = IdempotencyKeys(storage, Clock())
    keys.claim(NAME)
    storage.fails = True
    with pytest.raises(StorageError):
        keys.complete(NAME, ANSWER)
    storage.fails = False
    assert not in_flight(keys)


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"{}", b'"x"', b'{"status": 200}', b"\xff", b'{"new": 1}']
)
def test_damaged_answer_is_no_answer(damage):
    storage = Memory()
    keys = IdempotencyKeys(storage, Clock())
    done(keys)
    [name] = storage.objects
    storage.objects[name] = damage
    done(keys)
    assert keys.claim(NAME).body == ANSWER.body


def test_time_of_the_answer_is_that_of_the_clock_that_judges_it(keys, clock):
    done(keys, answer=StoredAnswer("ab", 200, {}, "", answered_at=NOON + 10**6))
    assert keys.claim(NAME).answered_at == NOON


def test_answers_of_days_gone_by_are_deleted_by_the_first_answer_of_a_day(clock):
    storage = Memory()
    keys = IdempotencyKeys(storage, clock)
    for day in range(5):
        clock.now = NOON + day * 86_400
        done(keys, f"{day:064}")
        done(keys, f"{day + 100:064}")
    days = {name.split("/")[1] for name in storage.names(FOLDER)}
    assert days == {"20003", "20004"}


def test_sweep_keeps_what_still_lives_and_nothing_of_others(storage, clock):
    keys = IdempotencyKeys(storage, clock)
    storage.write("models/kept.safetensors", b"x")
    done(keys)
    clock.now += LIFETIME_S - 1
    keys.sweep()
    assert keys.claim(NAME) is not None
    clock.now += LIFETIME_S
    keys.sweep()
    assert storage.names("") == ["models/kept.safetensors"]


def test_sweep_forgets_claims_that_lapsed_and_no_others(keys, clock):
    keys.claim("old")
    clock.now += LEASE_S
    keys.claim("new")
    keys.sweep()
    assert in_flight(keys, "new")
    assert keys._claims.keys() == {"new"}


parts = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=8)


@given(st.tuples(parts, parts, parts, parts), st.tuples(parts, parts, parts, parts))
def test_names_differ_exactly_where_client_method_path_or_key_do(one, other):
    assert (key_name(*one) == key_name(*other)) == (one == other)


@given(st.tuples(parts, parts, parts, parts))
def test_names_tell_nothing_of_token_and_key(request):
    assert len(key_name(*request)) == 64
    assert set(key_name(*request)) <= set("0123456789abcdef")


def test_holder_that_did_not_hear_the_answer_may_claim_again_and_nobody_else(keys):
    assert keys.claim(NAME, "one") is None
    assert keys.claim(NAME, "one") is None
    with pytest.raises(IdempotencyInProgressError):
        keys.claim(NAME, "two")


def test_late_holder_neither_renews_nor_releases_what_its_successor_holds(keys, clock):
    keys.claim(NAME, "one")
    clock.now += LEASE_S
    assert keys.claim(NAME, "two") is None
    clock.now += LEASE_S / 2
    keys.renew(NAME, "one")
    keys.release(NAME, "one")
    with pytest.raises(IdempotencyInProgressError):
        keys.claim(NAME, "three")
    keys.release(NAME, "two")
    assert keys.claim(NAME, "three") is None
