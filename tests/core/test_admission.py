"""A bounded queue, and when it is worth coming back (contract, section 8)."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.admission import Admission
from core.errors import QueueFullError


class Clock:
    def __init__(self):
        self.now = 50.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def admission(clock):
    return Admission(2, clock)


def work(admission, clock, seconds):
    """One request from door to door."""
    with admission.enter() as ticket:
        ticket.start()
        clock.now += seconds


def refusal(admission):
    with pytest.raises(QueueFullError) as raised, admission.enter():
        pass
    return raised.value


@given(st.integers(1, 20))
def test_as_many_enter_as_there_are_places_and_no_more(capacity):
    admission = Admission(capacity, Clock())
    with contextlib.ExitStack() as stack:
        for taken in range(capacity):
            assert admission.free == capacity - taken
            stack.enter_context(admission.enter())
        assert admission.free == 0
        assert str(capacity) in refusal(admission).message
    assert admission.free == capacity


@pytest.mark.parametrize("error", [ValueError, GeneratorExit, KeyboardInterrupt])
def test_place_is_freed_however_the_work_ends(admission, error):
    with pytest.raises(error), admission.enter():
        raise error
    assert (admission.free, admission.running, admission.waiting) == (2, 0, 0)


def test_refused_request_takes_no_place(admission):
    with admission.enter(), admission.enter():
        refusal(admission)
    assert admission.free == 2


def test_running_and_waiting_are_told_apart(admission):
    with admission.enter() as first, admission.enter():
        assert (admission.running, admission.waiting) == (0, 2)
        first.start()
        assert (admission.running, admission.waiting) == (1, 1)


def test_before_any_work_ended_half_a_minute_is_guessed(admission):
    assert admission.retry_after_s() == 30


def test_work_that_is_late_before_any_ended_is_waited_for_ten_seconds(admission, clock):
    with admission.enter() as ticket, admission.enter():
        ticket.start()
        clock.now += 12
        assert refusal(admission).details["retry_after"] == 18
        clock.now += 1000
        assert refusal(admission).details["retry_after"] == 10


def test_next_place_is_expected_a_usual_duration_after_the_oldest_work_began(admission, clock):
    for seconds in (10, 1000, 20):
        work(admission, clock, seconds)
    with admission.enter() as first, admission.enter() as second:
        first.start()
        clock.now += 5
        second.start()
        clock.now += 3
        assert refusal(admission).details["retry_after"] == 20 - 8


def test_work_that_waits_has_no_age(admission, clock):
    work(admission, clock, 20)
    with admission.enter(), admission.enter():
        clock.now += 15
        assert refusal(admission).details["retry_after"] == 20


def test_overdue_work_is_expected_within_a_second(admission, clock):
    work(admission, clock, 20)
    with admission.enter() as ticket, admission.enter():
        ticket.start()
        clock.now += 500
        assert refusal(admission).details["retry_after"] == 1


def test_time_in_the_queue_is_no_duration(admission, clock):
    with admission.enter() as ticket:
        clock.now += 100
        ticket.start()
        clock.now += 7
    assert admission.retry_after_s() == 7


def test_work_that_never_began_teaches_nothing(admission, clock):
    work(admission, clock, 20)
    with admission.enter():
        clock.now += 1
    assert admission.retry_after_s() == 20


def test_starting_twice_starts_once(admission, clock):
    with admission.enter() as ticket:
        ticket.start()
        clock.now += 5
        ticket.start()
    assert admission.retry_after_s() == 5


def test_old_durations_are_forgotten(admission, clock):
    for _ in range(40):
        work(admission, clock, 1000)
    for _ in range(32):
        work(admission, clock, 3)
    assert admission.retry_after_s() == 3


@given(st.lists(st.floats(0, 1e6), max_size=50), st.floats(0, 1e6))
def test_time_to_come_back_is_never_less_than_a_second_nor_more_than_the_longest_work(durations, age):
    clock = Clock()
    admission = Admission(1, clock)
    for seconds in durations:
        work(admission, clock, seconds)
    with admission.enter() as ticket:
        ticket.start()
        clock.now += age
        assert 1 <= admission.retry_after_s() <= max(1.0, *durations[-32:], 30 if not durations else 0) + 1e-6
