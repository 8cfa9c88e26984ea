"""Whole columns as NumPy arrays, from Arrow or from plain lists, with equal results from either.

Every function takes the column's name for its messages and raises PredictionInputError, with ``column`` and
``row`` in its details, for the first value that cannot stand in such a column.
"""

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.encoding import calendar
from core.encoding.values import category_text, moment_reader, read_flag, read_number, type_name
from core.errors import PredictionInputError

Column: TypeAlias = pa.ChunkedArray | pa.Array | Sequence[object]
_ARROW: Final = (pa.ChunkedArray, pa.Array)
UNSEEN: Final = -1
MISSING: Final = -2
_UNITS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def numbers(column: Column, name: str) -> np.ndarray:
    """The values in any numeric dtype, not copied where Arrow allows; nulls are NaN, infinities stay."""
    if not isinstance(column, _ARROW):
        return _numbers_of_list(column, name)
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    if _is_number(column.type):
        return _native(column)
    return _by_distinct_value(column, name, read_number, np.dtype(np.float64), math.nan)


def _native(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    array: np.ndarray = column.to_numpy(zero_copy_only=False)
    return array


def _numbers_of_list(column: Sequence[object], name: str) -> np.ndarray:
    array = array_of_numbers([column])
    return read_each(column, name, read_number, np.dtype(np.float64)) if array is None else array[0]


def array_of_numbers(columns: Sequence[Sequence[object]]) -> np.ndarray | None:
    """Equally long columns as float64 matrix, in one call; None where one has to look at each value.

    NumPy reads None as NaN and text as ``float`` does, but would read booleans too.
    """
    if bool in set(map(type, chain.from_iterable(columns))):
        return None
    try:
        array = np.array(columns, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        return None
    return array if array.ndim == 2 else None


def flags(column: Column, name: str) -> np.ndarray:
    """1 and 0 as uint8, or as float64 with NaN for nulls."""
    if not isinstance(column, _ARROW):
        return read_each(column, name, read_flag, np.dtype(np.float64))
    if pa.types.is_boolean(column.type):
        return _native(column.cast(pa.uint8()))
    return _by_distinct_value(column, name, read_flag, np.dtype(np.float64), math.nan)


def moments(column: Column, name: str, date_format: str, *, strict: bool = False) -> np.ndarray:
    """UTC seconds since 1970, int64, ``calendar.NULL`` for nulls and, unless ``strict``, for other text."""
    read, seconds = moment_reader(date_format, strict=strict), np.dtype(np.int64)
    if not isinstance(column, _ARROW):
        return read_each(column, name, read, seconds)
    if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
        return _typed_moments(column)
    if date_format == calendar.UNIX and _is_number(column.type):
        values = numbers(column, name)
        found = unix_moments(values)
        if strict and (wrong := np.isfinite(values) & (found == calendar.NULL)).any():
            raise bad_value(
                name, int(wrong.argmax()), 0, ValueError(f"a date like {calendar.example(date_format)}")
            )
        return found
    return _by_distinct_value(column, name, read, seconds, calendar.NULL)


def is_native(kind: pa.DataType, *, numeric: bool) -> bool:
    """Whether ``numbers`` (or else ``flags``) reads such a column value by value, without looking at text."""
    return _is_number(kind) if numeric else bool(pa.types.is_boolean(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _typed_moments(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    kind = column.type
    if pa.types.is_date32(kind):
        ticks, per_second = column.cast(pa.int32()).cast(pa.int64()), 0
    else:
        ticks, per_second = column.cast(pa.int64()), _UNITS_PER_SECOND[getattr(kind, "unit", "ms")]
    null = None
    if ticks.null_count:
        null = _native(ticks.is_null())
        ticks = ticks.fill_null(0)
    values = _native(ticks)
    seconds = values * 86_400 if per_second == 0 else values // per_second
    if null is not None:
        seconds[null] = calendar.NULL
    return seconds


def unix_moments(values: np.ndarray) -> np.ndarray:
    """Unix seconds, rounded down; ``calendar.NULL`` for NaN and for years past 9999."""
    values = values.astype(np.float64)
    plausible = np.abs(values) <= calendar.LAST_SECOND
    return np.where(plausible, np.floor(np.where(plausible, values, 0)).astype(np.int64), calendar.NULL)


def category_codes(column: Column, name: str, categories: Sequence[str]) -> np.ndarray:
    """Positions in ``categories``; ``UNSEEN`` for any other value, ``MISSING`` for nulls."""
    codes_of = find_categories(categories)
    if not isinstance(column, _ARROW):
        return read_each(column, name, codes_of, np.dtype(np.int64))
    kind = column.type
    if is_text(kind):
        codes = _native(_positions(column, categories))
        if column.null_count:
            codes = np.where(_native(column.is_null()), MISSING, codes)
        return codes
    if pa.types.is_dictionary(kind) and is_text(kind.value_type):
        codes, distinct = dictionary_codes(column)
        positions = _native(_positions(distinct, categories))
        if distinct.null_count:
            positions = np.where(_native(distinct.is_null()), MISSING, positions)
        return np.take(np.append(positions, MISSING), codes)
    return _by_distinct_value(column, name, codes_of, np.dtype(np.int64), MISSING)


def _positions(texts: pa.ChunkedArray | pa.Array, categories: Sequence[str]) -> pa.ChunkedArray | pa.Array:
    wanted = pa.array(categories, texts.type)
    return pc.index_in(texts, value_set=wanted).fill_null(UNSEEN)


def find_categories(categories: Sequence[str]) -> Callable[[object], int]:
    """A reader from one value to its position; JSON true also finds ``True`` and ``TRUE``."""
    positions = {text: position for position, text in enumerate(categories)}
    truths = {}
    for flag in (True, False):
        forms = (str(flag).lower(), str(flag), str(flag).upper())
        truths[flag] = next((positions[form] for form in forms if form in positions), UNSEEN)

    def find(value: object) -> int:
        if isinstance(value, bool):
            return truths[value]
        text = category_text(value)
        return MISSING if text is None else positions.get(text, UNSEEN)

    return find


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def dictionary_codes(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Codes and what they stand for; a null has the code after the last. Distinct values may repeat."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    if isinstance(column, pa.ChunkedArray):
        if any(chunk.dictionary.null_count for chunk in column.chunks):  # Arrow cannot unify those
            column = column.cast(column.type.value_type).dictionary_encode()
        column = column.combine_chunks()
    codes = column.indices.cast(pa.int32())
    if codes.null_count:
        codes = codes.fill_null(len(column.dictionary))
    return _native(codes), column.dictionary


def _by_distinct_value(
    column: pa.ChunkedArray | pa.Array,
    name: str,
    read: Callable[[object], float],
    dtype: np.dtype[np.generic],
    null: float,
) -> np.ndarray:
    """Reads each distinct value once, so that a million rows cost as much Python as they have values."""
    if pa.types.is_null(column.type):
        return np.full(len(column), null, dtype)
    if pa.types.is_nested(column.type):
        return read_each(column.to_pylist(), name, read, dtype)
    codes, distinct = dictionary_codes(column)
    table = np.full(len(distinct) + 1, null, dtype)
    wrong: dict[int, ValueError] = {}
    for code, value in enumerate(distinct.to_pylist()):
        try:
            table[code] = read(value)
        except ValueError as error:
            wrong[code] = error
    if wrong and (rows := np.flatnonzero(np.isin(codes, list(wrong)))).size:
        code = int(codes[rows[0]])
        raise bad_value(name, int(rows[0]), distinct[code].as_py(), wrong[code])
    return np.take(table, codes)


def read_each(
    values: Sequence[object], name: str, read: Callable[[object], float], dtype: np.dtype[np.generic]
) -> np.ndarray:
    """Reads value by value: the way for lists, and the way to find the row that is wrong."""
    array = np.empty(len(values), dtype)
    for row, value in enumerate(values):
        try:
            array[row] = read(value)
        except ValueError as error:
            raise bad_value(name, row, value, error) from None
    return array


def bad_value(name: str, row: int, value: object, wanted: ValueError) -> PredictionInputError:
    given = type_name(value)
    return PredictionInputError(
        f"Row {row}: column {name!r} needs {wanted}, however {given} was given.",
        column=name,
        row=row,
        given=given,
    )
