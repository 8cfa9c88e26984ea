"""Sweeps: several values of a setting in one train request, of which the best model is kept."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from core.contract.fields import HIDDEN_NUMBERS, TRAIN_NUMBERS, NumberField, shown
from core.errors import ParameterError

MAX_MEMBERS: Final = 64
SWEPT: Final[Mapping[str, NumberField]] = {
    "learning_rate": TRAIN_NUMBERS["learning_rate"],
    "dropout": HIDDEN_NUMBERS["dropout"],
}


@dataclass(frozen=True, slots=True)
class Sweep:
    """A grid: each learning rate with each dropout; empty where the request's own value stands."""

    learning_rate: tuple[float, ...] = ()
    dropout: tuple[float, ...] = ()


def parse_sweep(payload: Mapping[str, object]) -> Sweep | None:
    """The grid that is given, of numbers that may still be out of their range.

    Raises:
        ParameterError: unless it is an object that has lists of numbers under the names of ``SWEPT``.
    """
    given = payload.get("sweep")
    if given is None:
        return None
    named = {name: of for name, of in given.items() if of is not None} if isinstance(given, dict) else {}
    if not named:
        raise _error(f"must be an object with lists of {' and '.join(SWEPT)}, got {shown(given)}")
    unknown = [name for name in named if name not in SWEPT]
    if unknown:
        raise _error(f"may have {' and '.join(SWEPT)}, got {shown(unknown[0])}")
    return Sweep(**{name: _numbers(name, values) for name, values in named.items()})


def check_sweep(sweep: Sweep) -> None:
    """Raises ParameterError for values out of range, and for more than ``MAX_MEMBERS`` combinations."""
    for name in SWEPT:
        for value in getattr(sweep, name):
            _field(name).check(value)
    count = len(sweep.learning_rate or (0,)) * len(sweep.dropout or (0,))
    if count > MAX_MEMBERS:
        raise _error(f"must be of at most {MAX_MEMBERS} models, got {count}")


def check_sweep_beside(sweep: Sweep, payload: Mapping[str, object], ensemble_size: int) -> None:
    """Raises ParameterError for other fields that contradict the sweep."""
    for name in SWEPT:
        if getattr(sweep, name) and payload.get(name) is not None:
            raise _error(f"has {name}: leave the field {name} out")
    if ensemble_size > 1:
        raise _error(f"keeps one model: leave out ensemble_size, which is {ensemble_size}")


def _numbers(name: str, values: object) -> tuple[float, ...]:
    if not isinstance(values, list) or not values:
        got = "an empty one" if isinstance(values, list) else shown(values)
        raise _error(f"must have a list of numbers as {name}, got {got}")
    field = _field(name)
    numbers = [None if value is None else field.parse({field.name: value}) for value in values]
    if None in numbers:
        raise _error(f"must have a list of numbers as {name}, got null in it")
    if len(set(numbers)) < len(numbers):
        raise _error(f"must have each value of {name} once")
    return tuple(number for number in numbers if number is not None)


def _field(name: str) -> NumberField:
    return replace(SWEPT[name], name=f"sweep.{name}", default=None)


def _error(what: str) -> ParameterError:
    return ParameterError(f"sweep {what}", field="sweep")
