"""``ensemble_size`` and ``sweep``: what they may say, and in which step of the chain they fail."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.contract import Sweep, validate_train
from core.contract.sweeps import MAX_MEMBERS
from core.contract.violations import violations
from core.errors import HiddenConfigError, ParameterError, StillhouseError, TrainingModeError
from tests.core.test_validation import RecordingLookups

DATA = {"dataset_id": "wine", "target_column": "quality"}


def request_of(**fields):
    return validate_train(DATA | fields, RecordingLookups())


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (None, None),
        ({"learning_rate": [0.01]}, Sweep((0.01,), ())),
        ({"learning_rate": ["0.01", 1], "dropout": [0, "0.9"]}, Sweep((0.01, 1.0), (0.0, 0.9))),
        ({"dropout": [0.5], "learning_rate": None}, Sweep((), (0.5,))),
    ],
)
def test_a_sweep_is_a_grid_of_numbers(given_, expected):
    assert request_of(sweep=given_).sweep == expected


WRONG = {
    "text": ("0.1", "must be an object with lists of learning_rate and dropout, got '0.1'"),
    "list": ([0.1], "must be an object with lists of learning_rate and dropout, got a list"),
    "empty": ({}, "must be an object with lists of learning_rate and dropout, got an object"),
    "nulls": ({"dropout": None}, "must be an object with lists of learning_rate and dropout, got an object"),
    "unknown": ({"lr": [0.1]}, "may have learning_rate and dropout, got 'lr'"),
    "one number": ({"dropout": 0.1}, "must have a list of numbers as dropout, got 0.1"),
    "empty list": ({"dropout": []}, "must have a list of numbers as dropout, got an empty one"),
    "null in it": ({"dropout": [None]}, "must have a list of numbers as dropout, got null in it"),
    "repeated": ({"learning_rate": [0.1, "0.10"]}, "must have each value of learning_rate once"),
    "no number": ({"learning_rate": [True]}, "sweep.learning_rate must be a number, got true"),
    "not finite": ({"dropout": [float("nan")]}, "sweep.dropout must be a number, got nan"),
    "too high": ({"dropout": [0.95]}, "sweep.dropout must be at least 0 and at most 0.9, got 0.95"),
    "zero": ({"learning_rate": [0]}, "sweep.learning_rate must be greater than 0 and at most 1, got 0.0"),
    "too many": (
        {"learning_rate": [k / 100 for k in range(1, 14)], "dropout": [0, 0.1, 0.2, 0.3, 0.4]},
        "must be of at most 64 models, got 65",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_sweep_that_is_none_says_what_it_must_be(case):
    sweep, message = WRONG[case]
    with pytest.raises(ParameterError, match=r"^sweep") as raised:
        request_of(sweep=sweep)
    assert message in raised.value.message
    assert len(raised.value.message) < 100
    assert raised.value.details["field"].startswith("sweep")


CONTRADICTIONS = [
    ({"sweep": {"learning_rate": [0.1]}, "learning_rate": 0.1}, "leave the field learning_rate out"),
    ({"sweep": {"dropout": [0.1]}, "dropout": 0.1}, "leave the field dropout out"),
    ({"sweep": {"dropout": [0.1]}, "ensemble_size": 2}, "leave out ensemble_size, which is 2"),
]


@pytest.mark.parametrize(("fields", "message"), CONTRADICTIONS)
def test_fields_that_contradict_a_sweep_are_named(fields, message):
    with pytest.raises(ParameterError, match=message):
        request_of(**fields)


def test_a_sweep_keeps_the_other_field_and_an_ensemble_of_one():
    request = request_of(sweep={"dropout": [0.1]}, learning_rate=0.5, ensemble_size=1)
    assert (request.learning_rate, request.sweep) == (0.5, Sweep(dropout=(0.1,)))


def test_dropout_cannot_be_swept_without_hidden_layers():
    fields = {"sweep": {"dropout": [0.1]}, "training_mode": "linear_glm_baseline"}
    with pytest.raises(HiddenConfigError, match="sweep must have no dropout with linear_glm_baseline"):
        request_of(**fields)
    assert request_of(**fields | {"sweep": {"learning_rate": [0.1]}}).sweep == Sweep((0.1,))


@pytest.mark.parametrize("size", [0, 65, 1.5, True, "many"])
def test_an_ensemble_has_one_to_64_members(size):
    with pytest.raises(ParameterError, match=r"^ensemble_size must be"):
        request_of(ensemble_size=size)
    assert (request_of().ensemble_size, request_of(ensemble_size="64").ensemble_size) == (1, 64)


LATER = {"epochs": 0, "sweep": {"dropout": [0.95]}, "training_mode": "none", "hidden_dim": 1}
SPOILED = {
    "parsing": {"sweep": {"dropout": ["x"]}},
    "numbers before bounds": {"sweep": {"dropout": ["x"]}, "epochs": 0},
    "bounds": {"sweep": {"dropout": [0.95]}},
    "contradictions": {"sweep": {"dropout": [0.1]}, "dropout": 0.1},
}


@pytest.mark.parametrize("case", SPOILED)
def test_sweeps_fail_with_the_numbers_and_bounds_before_the_mode(case):
    """Contract, section 3: steps 5 and 6, before mode (8) and hidden configuration (9)."""
    with pytest.raises(ParameterError, match="sweep"):
        request_of(**{"training_mode": "none", "hidden_dim": 1} | SPOILED[case])
    with pytest.raises(ParameterError, match="exclude_columns"):
        request_of(**{"exclude_columns": [1]} | SPOILED[case])
    with pytest.raises(TrainingModeError):
        request_of(training_mode="none", hidden_dim=1, sweep={"dropout": [0.1]})


@pytest.mark.parametrize("case", WRONG)
def test_jobs_report_a_wrong_sweep_with_everything_else(case):
    found = violations("train", DATA | {"sweep": WRONG[case][0], "epochs": 0})
    assert {error.details["field"].partition(".")[0] for error in found} == {"epochs", "sweep"}


@pytest.mark.parametrize(("fields", "message"), CONTRADICTIONS)
def test_jobs_call_contradictions_a_configuration_that_cannot_be(fields, message):
    [error] = violations("train", DATA | fields)
    assert isinstance(error, HiddenConfigError)
    assert message in error.message


NUMBERS = st.floats(0, 1) | st.integers(0, 2) | st.text(max_size=4) | st.none()
SWEEPS = st.dictionaries(
    st.sampled_from(["learning_rate", "dropout", "x"]), st.lists(NUMBERS, max_size=9) | NUMBERS, max_size=3
)


@given(SWEEPS, st.integers(1, 3))
def test_any_sweep_is_a_grid_within_its_bounds_or_an_error(sweep, size):
    try:
        request = request_of(sweep=sweep, ensemble_size=size)
    except StillhouseError:
        return
    found = request.sweep
    assert size == 1
    assert 1 <= max(1, len(found.learning_rate)) * max(1, len(found.dropout)) <= MAX_MEMBERS
    assert all(0 < rate <= 1 for rate in found.learning_rate)
    assert all(0 <= dropout <= 0.9 for dropout in found.dropout)
    assert found.learning_rate or found.dropout
