"""Single fields: how each is parsed and what it may hold (contract, sections 4 and 5)."""

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from core.errors import ParameterError, RequestError

NUMERIC_TEXT: Final = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?\s*")
MODEL_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
DEVICE: Final = re.compile(r"cpu|cuda(:\d{1,3})?")


@dataclass(frozen=True, slots=True)
class NumberField:
    """A number and its range.

    Attributes:
        default: None where the value depends on the data or the teacher.
        open_low, open_high: Whether the bound itself is outside the range.
    """

    name: str
    kind: Literal["integer", "number"]
    low: float
    high: float
    default: float | None
    open_low: bool = False
    open_high: bool = False

    def parse(self, payload: Mapping[str, object]) -> float | None:
        """The number given, or the default.

        Raises:
            ParameterError: if a value is given that is not a finite number, or not integral where it must be.
        """
        given = payload.get(self.name)
        if given is None:
            return self.default
        number = _finite_number(given)
        if number is None or (self.kind == "integer" and number != int(number)):
            wanted = "an integer" if self.kind == "integer" else "a number"
            raise ParameterError(f"{self.name} must be {wanted}, got {shown(given)}", field=self.name)
        return int(number) if self.kind == "integer" else float(number)

    def check(self, number: float | None) -> None:
        """Raises ParameterError if a number lies outside the range."""
        if number is None:
            return
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        if not (above and below):
            raise ParameterError(
                f"{self.name} must be {self.range_text()}, got {shown(number)}", field=self.name
            )

    def range_text(self) -> str:
        low = f"greater than {self.low:g}" if self.open_low else f"at least {self.low:.15g}"
        high = f"less than {self.high:g}" if self.open_high else f"at most {self.high:.15g}"
        return f"{low} and {high}"

    def limits(self) -> dict[str, object]:
        limits: dict[str, object] = {"min": self.low, "max": self.high, "default": self.default}
        if self.open_low:
            limits["exclusive_min"] = True
        if self.open_high:
            limits["exclusive_max"] = True
        return limits


def _number_fields(*fields: NumberField) -> Mapping[str, NumberField]:
    return {field.name: field for field in fields}


_SHARED: Final = (
    NumberField("batch_size", "integer", 2, 65_536, None),
    NumberField("learning_rate", "number", 0, 1, 0.001, open_low=True),
    NumberField("early_stopping_patience", "integer", 0, 10_000, None),
    NumberField("random_seed", "integer", 0, 2**32 - 1, 42),
    NumberField("max_seconds", "number", 0, 86_400, None, open_low=True),
    NumberField("interval", "number", 0, 1, None, open_low=True, open_high=True),
)
_TEST_SIZE: Final = NumberField("test_size", "number", 0, 1, 0.2, open_low=True, open_high=True)

TRAIN_NUMBERS: Final = _number_fields(
    _TEST_SIZE,
    NumberField("epochs", "integer", 1, 10_000, 100),
    *_SHARED,
    NumberField("ensemble_size", "integer", 1, 64, 1),
)
HIDDEN_NUMBERS: Final = _number_fields(
    NumberField("hidden_dim", "integer", 8, 4_096, 128),
    NumberField("num_hidden_layers", "integer", 1, 32, 2),
    NumberField("dropout", "number", 0, 0.9, 0.1),
)
DISTILL_NUMBERS: Final = _number_fields(
    _TEST_SIZE,
    NumberField("epochs", "integer", 1, 10_000, 60),
    *_SHARED,
    NumberField("temperature", "number", 0, 20, 2.5, open_low=True),
    NumberField("alpha", "number", 0, 1, 0.5),
    NumberField("student_hidden_dim", "integer", 8, 4_096, None),
    NumberField("student_num_hidden_layers", "integer", 1, 32, None),
    NumberField("student_dropout", "number", 0, 0.9, None),
)


def parse_flag(payload: Mapping[str, object], name: str) -> bool:
    """A JSON boolean or the text of one; absent is False.

    Raises:
        ParameterError: for anything else.
    """
    given = payload.get(name)
    if given is None:
        return False
    if isinstance(given, str) and given.strip().lower() in ("true", "false"):
        return given.strip().lower() == "true"
    if isinstance(given, bool):
        return given
    raise ParameterError(f"{name} must be true or false, got {shown(given)}", field=name)


def parse_text(
    payload: Mapping[str, object], name: str, error: type[RequestError] = ParameterError
) -> str | None:
    """A text that is not blank, or None when absent; raises ``error`` for anything else."""
    given = payload.get(name)
    if given is None:
        return None
    if not isinstance(given, str) or not given.strip() or "\0" in given:
        raise error(f"{name} must be a text that is not blank, got {shown(given)}", field=name)
    return given


def parse_columns(payload: Mapping[str, object], name: str) -> tuple[str, ...]:
    """Column names: a list of texts, or one text separated by commas (contract, section 4).

    Raises:
        ParameterError: for anything else, and for blank names.
    """
    given = payload.get(name)
    if given is None:
        return ()
    if isinstance(given, str):
        return tuple(dict.fromkeys(part.strip() for part in given.split(",") if part.strip()))
    if isinstance(given, list) and all(isinstance(item, str) and item.strip() for item in given):
        return tuple(dict.fromkeys(given))
    raise ParameterError(
        f"{name} must be a list of column names or one comma-separated text, got {shown(given)}", field=name
    )


def parse_model_id(given: object, name: str = "model_id") -> str:
    """Raises ParameterError for a model id that storage does not take."""
    if isinstance(given, str) and MODEL_ID.fullmatch(given):
        return given
    raise ParameterError(
        f"{name} must be 1 to 128 of A-Z a-z 0-9 . _ - and start with a letter or digit, got {shown(given)}",
        field=name,
    )


def shown(given: object, limit: int = 40) -> str:
    """A value as a message may repeat it: short, on one line; of containers only their kind."""
    if isinstance(given, list | dict):
        return "a list" if isinstance(given, list) else "an object"
    if isinstance(given, int) and not isinstance(given, bool) and abs(given) >= 10**limit:
        return "a number of more than 40 digits"
    text = {True: "true", False: "false"}[given] if isinstance(given, bool) else repr(given)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _finite_number(given: object) -> int | float | None:
    if isinstance(given, bool):
        return None
    if isinstance(given, str) and len(given) <= 64 and NUMERIC_TEXT.fullmatch(given):
        given = float(given) if not given.strip().lstrip("+-").isdigit() else int(given)
    if isinstance(given, int) and abs(given) <= sys.float_info.max:  # a larger one has no float
        return given
    return given if isinstance(given, float) and math.isfinite(given) else None
