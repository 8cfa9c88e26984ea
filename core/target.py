"""The target column: which task it poses, its classes, and the rows that have one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pyarrow as pa

from core.encoding.reading import dictionary_codes, is_text
from core.encoding.values import category_text
from core.errors import DatasetError

Task = Literal["classification", "regression"]
Value = str | int | float | bool

MAX_CLASSES: Final = 1_000
# Whole numbers are labels when there are few of them and each comes often enough to be learned.
_FEW_VALUES: Final = 20
_ROWS_PER_VALUE: Final = 5


@dataclass(frozen=True, slots=True)
class Target:
    """A target ready for training.

    Attributes:
        classes: Sorted labels, of the column's own type; None in regression.
        values: Class indices, int64, or numbers, float64; one per entry of ``rows``.
        rows: Indices of the table's rows that have a target, int64, sorted.
        dropped: How many rows have none.
    """

    task: Task
    classes: tuple[Value, ...] | None
    values: np.ndarray
    rows: np.ndarray
    dropped: int


@dataclass(frozen=True, slots=True)
class _Values:
    """The values that are there: as numbers, or as codes into ``labels`` where they are text or booleans."""

    name: str
    kind: Literal["text", "boolean", "integer", "float"]
    numbers: np.ndarray
    labels: tuple[Value, ...]
    rows: np.ndarray
    dropped: int


def infer_target(
    column: pa.ChunkedArray, name: str, task: Literal["auto", "classification", "regression"]
) -> Target:
    """Decides on the task where it is ``auto`` and prepares the target.

    Text and booleans pose a classification. So do whole numbers with two values, or with at most 20 values
    and five rows for each; all else is regression.

    Raises:
        DatasetError: The column cannot be a target of this task.
    """
    values = _read(column, name)
    if task == "regression" or (task == "auto" and not _is_labels(values)):
        return _regression(values)
    _require_finite(values)
    distinct = _distinct(values)
    if len(distinct) > MAX_CLASSES:
        raise _error(
            name, f"may have {MAX_CLASSES:,} classes, however it has {len(distinct):,}; use regression"
        )
    indices = np.searchsorted(distinct, values.numbers)
    return Target("classification", _labels_of(values, distinct), indices, values.rows, values.dropped)


def encode_target(column: pa.ChunkedArray, name: str, task: Task, classes: Sequence[Value] | None) -> Target:
    """Prepares the target of a student by its teacher's task and classes.

    Labels match by value or by their text, so that 1 finds the class 1.0 or ``"1"``, and true ``"true"``.

    Raises:
        DatasetError: As for ``infer_target``, or values are none of the classes.
    """
    values = _read(column, name)
    if task == "regression":
        return _regression(values)
    distinct, expected = _distinct(values), tuple(classes or ())
    positions = _match(_labels_of(values, distinct), expected)
    indices = np.searchsorted(distinct, values.numbers)
    if unknown := int(np.count_nonzero(positions[indices] < 0)):
        shown = ", ".join(repr(label) for label in expected[:10]) + (" …" if len(expected) > 10 else "")
        problem = (
            f"must hold the teacher's classes {shown}, however {unknown:,} values are others; remove those"
        )
        raise _error(name, problem, unknown=unknown, classes=list(expected))
    return Target(task, expected, positions[indices], values.rows, values.dropped)


def _distinct(values: _Values) -> np.ndarray:
    """The sorted distinct numbers or codes; text was ranked when it was read."""
    return np.arange(len(values.labels)) if values.kind == "text" else np.unique(values.numbers)


def _labels_of(values: _Values, distinct: np.ndarray) -> tuple[Value, ...]:
    return tuple(values.labels[int(code)] for code in distinct) if values.labels else tuple(distinct.tolist())


def _match(labels: Sequence[Value], classes: Sequence[Value]) -> np.ndarray:
    by_value = {label: position for position, label in enumerate(classes)}
    by_text = {category_text(label): position for position, label in enumerate(classes)}
    found = [by_value.get(label, by_text.get(category_text(label), -1)) for label in labels]
    return np.array(found, np.int64)


def _read(column: pa.ChunkedArray, name: str) -> _Values:
    values = _read_values(column, name)
    count, numbers = len(values.rows), values.numbers
    if count == 0:
        raise _error(name, "has no values; choose another target_column")
    if count < 2:
        raise _error(name, "needs values in at least 2 rows, however 1 row has one; add rows")
    if numbers.min() == numbers.max():
        raise _error(name, f"must vary, however all {count:,} values are equal; add other rows")
    return values


def _read_values(column: pa.ChunkedArray, name: str) -> _Values:
    kind = column.type
    if pa.types.is_dictionary(kind) and not is_text(kind.value_type):
        return _read_values(column.cast(kind.value_type), name)
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        raise _error(
            name, "cannot be a target, for it holds dates; make it a number, such as days until then"
        )
    if pa.types.is_null(kind):
        raise _error(name, "has no values; choose another target_column")
    if pa.types.is_dictionary(kind) or is_text(kind):
        return _read_text(column, name)
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(column.type):
        return _read_numbers(column, name)
    raise _error(name, f"has type {kind}, which cannot be a target; choose another target_column")


def _read_text(column: pa.ChunkedArray, name: str) -> _Values:
    """Codes follow the order of the labels by code point, so that sorting codes sorts classes."""
    codes, distinct = dictionary_codes(column)
    used = np.zeros(len(distinct) + 1, bool)
    used[codes] = True
    texts = distinct.filter(pa.array(used[:-1])).to_pylist()
    labels = sorted({text for text in texts if text is not None})
    order = {text: position for position, text in enumerate(labels)}
    table = np.full(len(distinct) + 1, -1, np.int64)
    table[np.flatnonzero(used[:-1])] = [-1 if text is None else order[text] for text in texts]
    ranks = table[codes]
    rows = np.flatnonzero(ranks >= 0)
    return _Values(name, "text", ranks[rows], tuple(labels), rows, len(codes) - len(rows))


def _read_numbers(column: pa.ChunkedArray, name: str) -> _Values:
    present = column.drop_null()
    rows = (
        np.arange(len(column)) if len(present) == len(column) else np.flatnonzero(~_native(column.is_null()))
    )
    if pa.types.is_boolean(column.type):
        numbers = _native(present.cast(pa.uint8()))
        return _Values(name, "boolean", numbers, (False, True), rows, len(column) - len(rows))
    numbers = _native(present)
    if pa.types.is_integer(column.type):
        return _Values(name, "integer", numbers, (), rows, len(column) - len(rows))
    known = ~np.isnan(numbers)
    numbers, rows = numbers[known].astype(np.float64), rows[known]
    return _Values(name, "float", numbers, (), rows, len(column) - len(rows))


def _native(array: pa.ChunkedArray) -> np.ndarray:
    native: np.ndarray = array.to_numpy()
    return native


def _require_finite(values: _Values) -> None:
    if values.kind == "float" and not np.isfinite(values.numbers).all():
        infinite = int(np.count_nonzero(np.isinf(values.numbers)))
        raise _error(
            values.name, f"must be finite, however {infinite:,} values are infinite; remove those rows"
        )


def _is_labels(values: _Values) -> bool:
    if values.kind in ("text", "boolean"):
        return True
    numbers = values.numbers
    if values.kind == "float" and not (np.isfinite(numbers) & (numbers == np.floor(numbers))).all():
        return False
    if len(np.unique(numbers[:1_000])) > _FEW_VALUES:
        return False
    count = len(np.unique(numbers))
    return count == 2 or (count <= _FEW_VALUES and len(numbers) >= _ROWS_PER_VALUE * count)


def _regression(values: _Values) -> Target:
    if values.kind == "text":
        raise _error(
            values.name, "must hold numbers for regression, however it holds text; use classification"
        )
    _require_finite(values)
    return Target("regression", None, values.numbers.astype(np.float64), values.rows, values.dropped)


def _error(name: str, problem: str, **details: object) -> DatasetError:
    return DatasetError(f"Target column {name!r} {problem}.", column=name, **details)
