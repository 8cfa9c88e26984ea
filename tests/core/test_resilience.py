"""Retries and breakers: seed 001, Retry Policies; contract, section 2."""

import asyncio
import logging
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import (
    CircuitOpenError,
    CudaOutOfMemoryError,
    ModelNotFoundError,
    NetworkError,
    RequestError,
    ServiceUnavailableError,
    StorageError,
    TrainerUnreachableError,
    UnexpectedError,
)
from core.errors import TimeoutError as OperationTimeoutError
from core.resilience import POLICIES, Breaker, BreakerPolicy, Caller, Integration, RetryPolicy

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


class Clock:
    """Monotonic seconds that pass only when told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Attempts:
    """Raises or returns one outcome after the other."""

    def __init__(self, *outcomes, clock=None, lasting_s=0.0):
        self._outcomes = list(outcomes)
        self._clock, self._lasting_s = clock, lasting_s
        self.made = 0

    async def __call__(self):
        self.made += 1
        if self._clock is not None:
            self._clock.now += self._lasting_s
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class Counted:
    def __init__(self):
        self.seen = []

    def attempted(self, service, outcome):
        self.seen.append((service, outcome))


class Bench:
    """A caller whose clock is moved by its own waits."""

    def __init__(self, policy, draws=()):
        self.clock, self.counted = Clock(), Counted()
        self.waits = []
        remaining = list(draws)
        self.caller = Caller(
            "the service",
            policy,
            observer=self.counted,
            clock=self.clock,
            sleep=self.sleep,
            draw=lambda: remaining.pop(0) if remaining else 0.0,
        )

    async def sleep(self, seconds):
        self.waits.append(seconds)
        self.clock.now += seconds


TRAINER = POLICIES[Integration.TRAINER]


# ── The table of seed 001 ───────────────────────────────────────────────────────────────────────────────────

TABLE = {
    # integration: attempts, initial wait, max wait, breaker, and whether it is critical
    "trainer": (3, 4, 30, (5, 60), True),
    "mlflow": (5, 1, 5, None, False),
    "s3": (3, 2, 10, (5, 120), True),  # without a breaker there, with this one in jobs.md, 8.1
    "temporal": (5, 5, 60, (5, 120), False),
    "database": (2, 1, 5, (3, 30), True),
    "llm": (3, 5, 30, (5, 300), False),
    "generic": (3, 2, 10, None, True),
    # ours
    "predictor": (3, 2, 10, (5, 30), True),
    "registry": (40, 0.2, 1, (5, 15), True),
}
BY_ATTEMPTS = [i for i in Integration if i is not Integration.REGISTRY]  # whose time is its limit


def test_every_integration_has_a_policy_and_no_other():
    assert {integration.value for integration in POLICIES} == TABLE.keys()
    assert set(POLICIES) == set(Integration)


@pytest.mark.parametrize("integration", Integration)
def test_policy_is_the_row_of_the_table(integration):
    policy = POLICIES[integration]
    breaker = None if policy.breaker is None else (policy.breaker.failures, policy.breaker.cool_down_s)
    row = (policy.attempts, policy.first_wait_s, policy.max_wait_s, breaker, policy.critical)
    assert row == TABLE[integration.value]


async def test_breaker_of_calls_outlasts_the_attempts_of_one_and_opens_when_many_are_given_up():
    bench = Bench(POLICIES[Integration.REGISTRY])
    breaker, gone = bench.caller.breaker, Attempts(*(NetworkError(service="x") for _ in range(1000)))
    for call in range(5):
        assert (breaker.state, gone.made >= 40 * call) == ("closed", True)
        with pytest.raises(NetworkError):
            await bench.caller.call(gone)
    assert breaker.state == "open"
    with pytest.raises(CircuitOpenError):
        await bench.caller.call(gone)
    bench.clock.now += 15
    assert await bench.caller.call(Attempts(*[NetworkError(service="x")] * 8, "back")) == "back"
    assert breaker.state == "closed"


def test_breaker_guards_calls_of_threads_too():
    now, waits = Clock(), []
    caller = Caller("s", RetryPolicy(3, 1, 1, BreakerPolicy(5, 60)), clock=now, draw=lambda: 0.0)

    def failing():
        raise NetworkError(service="s")

    for _ in range(2):
        with pytest.raises(NetworkError):
            caller.call_blocking(failing, sleep=waits.append)
    assert len(waits) == 3
    with pytest.raises(CircuitOpenError):
        caller.call_blocking(lambda: "works", sleep=waits.append)
    now.now += 60
    assert caller.call_blocking(lambda: "works", sleep=waits.append) == "works"
    assert caller.breaker.state == "closed"


async def test_breaker_counts_what_it_is_told_to():
    caller = Caller(
        "s", RetryPolicy(1, 1, 1, BreakerPolicy(1, 60)), counts=lambda error: isinstance(error, OSError)
    )
    for error, state in ((ValueError(), "closed"), (FileNotFoundError(), "open")):
        with pytest.raises(type(error)):
            await caller.call(Attempts(error))
        assert caller.breaker.state == state


@given(st.sampled_from(list(Integration)), st.integers(1, 100), st.floats(0, 1))
def test_every_wait_lies_between_first_and_maximum(integration, failed, drawn):
    policy = POLICIES[integration]
    wait = policy.wait_s(failed, drawn)
    assert policy.first_wait_s <= wait <= policy.max_wait_s
    assert wait <= policy.first_wait_s * 2.0**failed


@given(st.sampled_from(list(Integration)), st.integers(1, 99))
def test_the_whole_range_is_drawn_from_and_grows(integration, failed):
    policy = POLICIES[integration]
    assert policy.wait_s(failed, 0) == policy.first_wait_s
    assert policy.wait_s(failed + 1, 1) >= policy.wait_s(failed, 1)
    assert policy.wait_s(100, 1) == policy.max_wait_s


@pytest.mark.parametrize("integration", BY_ATTEMPTS)
@pytest.mark.parametrize("drawn", [0.0, 0.5, 1.0])
async def test_calls_are_tried_as_often_and_as_slowly_as_the_table_says(integration, drawn):
    policy = POLICIES[integration]
    bench = Bench(policy, [drawn] * 10)
    attempts = Attempts(*(NetworkError(service="x") for _ in range(10)))
    if policy.critical:
        with pytest.raises(NetworkError):
            await bench.caller.call(attempts)
    else:
        assert await bench.caller.call(attempts) is None
    assert attempts.made == min(policy.attempts, policy.breaker.failures if policy.breaker else 100)
    assert bench.waits == [policy.wait_s(n, drawn) for n in range(1, attempts.made)]


# ── Retries ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_success_ends_the_attempts():
    bench = Bench(TRAINER)
    attempts = Attempts(NetworkError(service="x"), "done", "never asked for")
    assert await bench.caller.call(attempts) == "done"
    assert attempts.made == 2
    assert bench.counted.seen == [("the service", "retried"), ("the service", "ok")]


REPEATED = [
    NetworkError(),
    ServiceUnavailableError(),
    OperationTimeoutError(),
    TrainerUnreachableError(),
]
NOT_REPEATED = [
    OperationTimeoutError(is_retryable=False),
    CudaOutOfMemoryError(),  # retryable, but after a change
    StorageError(),  # of the system, though a client may come back
    UnexpectedError(),
    RequestError(),
    ModelNotFoundError(),
    RuntimeError("a bug"),
    OSError("a socket"),
]


@pytest.mark.parametrize("error", REPEATED, ids=lambda e: type(e).__name__)
async def test_error_that_may_repeat_is_tried_again(error):
    attempts = Attempts(error, "done")
    assert await Bench(TRAINER).caller.call(attempts) == "done"


@pytest.mark.parametrize("error", NOT_REPEATED, ids=repr)
async def test_error_that_may_not_repeat_is_raised_at_once_whatever_its_class(error):
    bench = Bench(TRAINER)
    attempts = Attempts(error, "never asked for")
    with pytest.raises(type(error)) as raised:
        await bench.caller.call(attempts)
    assert raised.value is error
    assert (attempts.made, bench.waits) == (1, [])


async def test_cancelled_attempt_is_not_tried_again():
    attempts = Attempts(asyncio.CancelledError(), "never asked for")
    with pytest.raises(asyncio.CancelledError):
        await Bench(TRAINER).caller.call(attempts)
    assert attempts.made == 1


@pytest.mark.parametrize(
    ("told", "waited"), [(20, 20), (7.5, 7.5), (1, 4), (0, 4), (-5, 4), (math.nan, 4), ("9", 4), (None, 4)]
)
async def test_retry_after_is_honoured_unless_the_policy_waits_longer(told, waited):
    bench = Bench(TRAINER)
    await bench.caller.call(Attempts(ServiceUnavailableError(retry_after=told), "done"))
    assert bench.waits == [waited]


async def test_what_the_catalogue_says_to_clients_does_not_stretch_the_table():
    bench = Bench(TRAINER)
    await bench.caller.call(Attempts(TrainerUnreachableError(), "done"))  # clients are told 30 s
    assert bench.waits == [4]


@pytest.mark.parametrize("told", [301, math.inf])
async def test_no_attempt_begins_after_the_deadline(told):
    bench = Bench(POLICIES[Integration.GENERIC])
    attempts = Attempts(ServiceUnavailableError(retry_after=told), "never asked for")
    with pytest.raises(ServiceUnavailableError):
        await bench.caller.call(attempts)
    assert (attempts.made, bench.waits) == (1, [])


async def test_time_within_attempts_counts_for_the_deadline():
    policy = RetryPolicy(10, 1, 1, deadline_s=10)
    bench = Bench(policy)
    attempts = Attempts(*[NetworkError()] * 10, clock=bench.clock, lasting_s=4.5)
    with pytest.raises(NetworkError):
        await bench.caller.call(attempts)
    assert attempts.made == 2  # from 0 to 4.5 and from 5.5 to 10; the third would begin at 11
    assert bench.clock.now - 1000 <= 10


async def test_request_that_waited_long_for_a_trainer_is_moved_to_the_next():
    bench = Bench(TRAINER)
    attempts = Attempts(TrainerUnreachableError(), "done", clock=bench.clock, lasting_s=599)
    assert await bench.caller.call(attempts) == "done"


async def test_attempt_may_begin_exactly_at_the_deadline():
    bench = Bench(RetryPolicy(2, 10, 10, deadline_s=10))
    assert await bench.caller.call(Attempts(NetworkError(), "done")) == "done"


async def test_each_failed_attempt_is_logged_with_its_trace_and_counted(caplog):
    bench = Bench(TRAINER)
    errors = [NetworkError(f"lost {n}") for n in range(1, 4)]
    with caplog.at_level(logging.WARNING), pytest.raises(NetworkError, match="lost 3"):
        await bench.caller.call(Attempts(*errors), {"trace_id": "t-1"})
    lines = [record for record in caplog.records if record.name == "core.resilience"]
    assert [line.getMessage() for line in lines] == [
        f"attempt {n} of 3 at the service failed: lost {n}" for n in (1, 2, 3)
    ]
    assert {line.trace_id for line in lines} == {"t-1"}
    assert [outcome for _, outcome in bench.counted.seen] == ["retried", "retried", "failed"]


async def test_error_of_the_caller_is_no_failure_of_the_service_in_log_and_count(caplog):
    bench = Bench(TRAINER)
    with caplog.at_level(logging.DEBUG), pytest.raises(RequestError):
        await bench.caller.call(Attempts(RequestError("wrong")))
    assert bench.counted.seen == [("the service", "ok")]
    assert not [record for record in caplog.records if record.name == "core.resilience"]


# ── Integrations that one can do without ────────────────────────────────────────────────────────────────────


async def test_last_failure_of_a_non_critical_integration_is_swallowed_and_said(caplog):
    bench = Bench(POLICIES[Integration.MLFLOW])
    attempts = Attempts(*[ServiceUnavailableError("down")] * 5)
    with caplog.at_level(logging.WARNING):
        assert await bench.caller.call(attempts, {"trace_id": "t-2"}) is None
    assert attempts.made == 5
    last = caplog.records[-1]
    assert (last.getMessage(), last.trace_id) == ("the service failed and is done without: down", "t-2")
    assert bench.counted.seen[-1] == ("the service", "failed")


async def test_bug_in_a_non_critical_integration_is_swallowed_and_said(caplog):
    bench = Bench(POLICIES[Integration.MLFLOW])
    assert await bench.caller.call(Attempts(RuntimeError("a bug"))) is None
    assert "a bug" in caplog.text


async def test_error_of_the_caller_is_not_swallowed_even_there():
    bench = Bench(POLICIES[Integration.MLFLOW])
    with pytest.raises(RequestError):
        await bench.caller.call(Attempts(RequestError("wrong")))


async def test_open_breaker_of_a_non_critical_integration_is_swallowed_too():
    bench = Bench(POLICIES[Integration.LLM])
    for _ in range(2):
        assert await bench.caller.call(Attempts(*[NetworkError()] * 3)) is None
    assert bench.caller.breaker.state == "open"
    attempts = Attempts("never asked for")
    assert await bench.caller.call(attempts) is None
    assert attempts.made == 0


# ── The breaker around the attempts ─────────────────────────────────────────────────────────────────────────


async def test_breaker_that_opens_ends_the_attempts_without_another_wait():
    bench = Bench(TRAINER)
    attempts = Attempts(*[NetworkError()] * 9)
    with pytest.raises(NetworkError):
        await bench.caller.call(attempts)
    with pytest.raises(NetworkError):
        await bench.caller.call(attempts)
    assert attempts.made == 5
    assert len(bench.waits) == 3
    with pytest.raises(CircuitOpenError):
        await bench.caller.call(attempts)
    assert (attempts.made, len(bench.waits)) == (5, 3)
    assert bench.counted.seen[-1] == ("the service", "failed")


async def test_breaker_that_others_opened_meanwhile_ends_the_attempts():
    bench = Bench(TRAINER)

    async def opened_meanwhile(seconds):
        trip(bench.caller.breaker, 4)

    bench.caller._sleep = opened_meanwhile
    attempts = Attempts(NetworkError(), "never asked for")
    with pytest.raises(CircuitOpenError):
        await bench.caller.call(attempts)
    assert attempts.made == 1


async def test_call_after_the_cool_down_closes_the_breaker():
    bench = Bench(TRAINER)
    trip(bench.caller.breaker, 5)
    bench.clock.now += 60
    assert await bench.caller.call(Attempts("done")) == "done"
    assert bench.caller.breaker.state == "closed"


# ── The breaker itself ──────────────────────────────────────────────────────────────────────────────────────


def fail(breaker, error=None):
    with pytest.raises(Exception), breaker.guard():  # noqa: B017, PT011  # which one is the test's
        raise error or NetworkError()


def succeed(breaker):
    with breaker.guard():
        pass


def trip(breaker, failures):
    for _ in range(failures):
        fail(breaker)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return Breaker("the service", BreakerPolicy(5, 60), clock)


@pytest.fixture
def half_open(breaker, clock):
    trip(breaker, 5)
    clock.now += 60
    return breaker


def refused(breaker):
    try:
        succeed(breaker)
    except CircuitOpenError as error:
        return error
    return None


@given(st.integers(1, 20))
def test_opens_after_exactly_so_many_failures(failures):
    breaker = Breaker("s", BreakerPolicy(failures, 60), Clock())
    for _ in range(failures):
        assert breaker.state == "closed"
        fail(breaker)
    assert breaker.state == "open"


@given(st.lists(st.booleans(), max_size=40))
def test_opens_when_the_last_failures_in_a_row_are_enough_and_never_else(outcomes):
    breaker = Breaker("s", BreakerPolicy(3, 60), Clock())
    in_a_row = 0
    for failed in outcomes:
        if in_a_row == 3:
            assert refused(breaker)
            return
        assert breaker.state == "closed"
        (fail if failed else succeed)(breaker)
        in_a_row = in_a_row + 1 if failed else 0
    assert (breaker.state == "open") == (in_a_row == 3)


@pytest.mark.parametrize(
    "error", [NetworkError(), OperationTimeoutError(), ServiceUnavailableError(), OSError()]
)
def test_every_failure_of_the_service_counts(breaker, error):
    for _ in range(5):
        fail(breaker, error)
    assert breaker.state == "open"


@pytest.mark.parametrize("error", [RequestError(), ModelNotFoundError()])
def test_errors_of_the_caller_do_not_count(breaker, error):
    for _ in range(50):
        fail(breaker, error)
    assert breaker.state == "closed"


def test_error_of_the_caller_ends_a_row_of_failures_because_the_service_answered(breaker):
    trip(breaker, 4)
    fail(breaker, RequestError())
    trip(breaker, 4)
    assert breaker.state == "closed"


def test_error_of_the_caller_in_the_probe_closes_it_because_the_service_answered(half_open):
    fail(half_open, RequestError())
    assert half_open.state == "closed"


def test_open_breaker_refuses_at_once_with_what_remains_of_the_cool_down(breaker, clock):
    trip(breaker, 5)
    for passed, remaining in [(0, 60), (10, 50), (59.5, 1), (59.999, 1)]:
        clock.now = 1000 + passed
        error = refused(breaker)
        assert error.details["retry_after"] == remaining
        assert error.details["service"] == "the service"
        assert breaker.retry_after_s == pytest.approx(60 - passed)
        assert breaker.state == "open"


def test_half_opens_exactly_when_the_cool_down_ends(breaker, clock):
    trip(breaker, 5)
    clock.now = math.nextafter(1060, 0)
    assert breaker.state == "open"
    clock.now = 1060
    assert breaker.state == "half_open"
    assert breaker.retry_after_s == 0


def test_refused_calls_are_not_failures(breaker, clock):
    trip(breaker, 5)
    for _ in range(100):
        clock.now += 0.5
        refused(breaker)
    clock.now = 1060
    assert breaker.state == "half_open"


def test_probe_that_succeeds_closes_and_forgets(half_open):
    succeed(half_open)
    assert half_open.state == "closed"
    trip(half_open, 4)
    assert half_open.state == "closed"


def test_probe_that_fails_opens_for_a_whole_cool_down_at_once(half_open, clock):
    clock.now += 7
    fail(half_open)
    assert (half_open.state, half_open.retry_after_s) == ("open", 60)


def test_one_probe_passes_at_a_time(half_open, clock):
    with half_open.guard():
        assert refused(half_open).details["retry_after"] == 60
        clock.now += 45
        assert refused(half_open).details["retry_after"] == 15
        assert half_open.state == "half_open"
    assert half_open.state == "closed"


@pytest.mark.parametrize("ending", [0, 1])
def test_probe_older_than_the_cool_down_lets_another_pass_and_either_closes(half_open, clock, ending):
    first = Call(half_open)
    clock.now += 60
    probes = [first, Call(half_open)]
    assert refused(half_open).details["retry_after"] == 60
    probes[ending].succeed()
    assert half_open.state == "closed"


@pytest.mark.parametrize("left", [asyncio.CancelledError, KeyboardInterrupt, GeneratorExit])
def test_cancelled_probe_frees_the_place_and_teaches_nothing(half_open, left):
    with pytest.raises(left), half_open.guard():
        raise left
    assert half_open.state == "half_open"
    succeed(half_open)
    assert half_open.state == "closed"


def test_cancelled_call_is_neither_failure_nor_success(breaker):
    trip(breaker, 4)
    with pytest.raises(asyncio.CancelledError), breaker.guard():
        raise asyncio.CancelledError
    assert breaker.state == "closed"
    fail(breaker)
    assert breaker.state == "open"


async def test_of_many_tasks_one_probes(half_open):
    probing = asyncio.Event()
    passed = refusals = 0

    async def call():
        nonlocal passed, refusals
        try:
            with half_open.guard():
                passed += 1
                await probing.wait()
        except CircuitOpenError:
            refusals += 1

    tasks = [asyncio.create_task(call()) for _ in range(50)]
    while passed + refusals < 50:  # noqa: ASYNC110  # until each had its turn
        await asyncio.sleep(0)
    assert (passed, refusals) == (1, 49)
    probing.set()
    await asyncio.gather(*tasks)
    assert half_open.state == "closed"


def test_of_many_threads_one_probes(half_open):
    together, refusals = threading.Barrier(8), threading.Semaphore(0)
    passed = []

    def call(_):
        together.wait()
        try:
            with half_open.guard():
                passed.append(1)
                for _ in range(7):
                    assert refusals.acquire(timeout=10)
        except CircuitOpenError:
            refusals.release()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(8)))
    assert passed == [1]
    assert half_open.state == "closed"


def test_failures_in_many_threads_are_all_counted(clock):
    breaker = Breaker("s", BreakerPolicy(4000, 60), clock)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: trip(breaker, 499), range(8)))
    assert breaker.state == "closed"
    trip(breaker, 8)
    assert breaker.state == "open"


# ── Stragglers, and operators ───────────────────────────────────────────────────────────────────────────────


class Call:
    """A guarded call that ends when told to."""

    def __init__(self, breaker):
        self._guard = breaker.guard()
        self._guard.__enter__()

    def succeed(self):
        self._guard.__exit__(None, None, None)

    def end(self, error):
        assert not self._guard.__exit__(type(error), error, None)


def test_straggler_that_succeeds_does_not_close_an_open_breaker(breaker):
    straggler = Call(breaker)
    trip(breaker, 5)
    straggler.succeed()
    assert breaker.state == "open"


def test_straggler_that_fails_does_not_lengthen_the_cool_down(breaker, clock):
    straggler = Call(breaker)
    trip(breaker, 5)
    clock.now += 30
    straggler.end(NetworkError())
    assert (breaker.state, breaker.retry_after_s) == ("open", 30)


@pytest.mark.parametrize("error", [None, NetworkError(), asyncio.CancelledError()])
def test_straggler_does_not_take_the_place_of_the_probe(breaker, clock, error):
    straggler = Call(breaker)
    trip(breaker, 5)
    clock.now += 60
    probe = Call(breaker)
    straggler.end(error) if error else straggler.succeed()
    assert breaker.state == "half_open"
    assert refused(breaker)
    probe.succeed()
    assert breaker.state == "closed"


def test_operator_closes_an_open_breaker(breaker):
    trip(breaker, 5)
    breaker.reset()
    assert (breaker.state, breaker.retry_after_s) == ("closed", 0)
    trip(breaker, 4)
    assert breaker.state == "closed"


def test_reset_of_a_closed_breaker_forgets_its_failures(breaker):
    trip(breaker, 4)
    breaker.reset()
    trip(breaker, 4)
    assert breaker.state == "closed"


def test_probe_from_before_a_reset_counts_as_any_other_failure(half_open):
    probe = Call(half_open)
    half_open.reset()
    probe.end(NetworkError())
    assert half_open.state == "closed"
    trip(half_open, 4)
    assert half_open.state == "open"


@pytest.mark.parametrize("error", [None, NetworkError(), asyncio.CancelledError()])
def test_probe_from_before_a_reset_has_no_say_in_a_later_opening(half_open, clock, error):
    old = Call(half_open)
    half_open.reset()
    trip(half_open, 5)
    clock.now += 60
    new = Call(half_open)
    old.end(error) if error else old.succeed()
    assert half_open.state == "half_open"
    assert refused(half_open)
    new.end(NetworkError())
    assert half_open.state == "open"
