"""The two ways from columns to features: one for a few rows as lists, one for tables of any length."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import pyarrow as pa

from core.encoding import calendar, reading
from core.encoding.columns import Layout, Place
from core.encoding.reading import MISSING, UNSEEN, Column
from core.encoding.scaling import Scaling
from core.encoding.values import moment_reader, read_flag, read_number

# 16 float32 values fill one cache line of the matrix, which is then written once and not sixteen times: a
# million rows of 20 numbers and 3 texts take 0.23 s so, and 0.35 s a column at a time.
_GROUP: Final = 16
_BLOCK_ROWS: Final = 8_192
_SLAB_ROWS: Final = 32 * _BLOCK_ROWS


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows as the network sees them.

    Attributes:
        features: float32 (rows, width), C-contiguous.
        unseen_counts: Per column, values other than null that fell in the bucket; only where there are any.
        null_counts: Per column, values that are null, infinite or, where let pass, not a date; likewise.
    """

    features: np.ndarray
    unseen_counts: dict[str, int] = field(default_factory=dict)
    null_counts: dict[str, int] = field(default_factory=dict)


class ListWriter:
    """Encodes plain lists with as few NumPy calls as possible and no Arrow: each call costs a microsecond."""

    def __init__(self, layout: Layout, scaling: Scaling) -> None:
        self._layout, self._scaling = layout, scaling
        self._numeric = [place.spec.name for place in layout.numeric]
        self._moments = {
            strict: [moment_reader(_format(place), strict=strict) for place in layout.date]
            for strict in (True, False)
        }
        self._finders = [reading.find_categories(place.spec.categories) for place in layout.categorical]
        self._targets = [_targets(place) for place in layout.categorical]

    def write(self, columns: Mapping[str, Sequence[object]], encoded: Encoded, *, strict_dates: bool) -> None:
        """Fills ``encoded``, whose features are zero, from lists of equal length."""
        if self._layout.value_count:
            self._write_values(columns, encoded, self._moments[strict_dates])
        if self._finders:
            self._write_categories(columns, encoded)

    def _write_values(
        self,
        columns: Mapping[str, Sequence[object]],
        encoded: Encoded,
        moments: Sequence[Callable[[object], int]],
    ) -> None:
        features = encoded.features
        values_VN = np.empty((self._layout.value_count, len(features)))
        if self._numeric:
            values_VN[: len(self._numeric)] = self._numbers(columns)
        for place in self._layout.boolean:
            name = place.spec.name
            values_VN[place.start] = reading.read_each(columns[name], name, read_flag, values_VN.dtype)
        for place, read in zip(self._layout.date, moments, strict=True):
            name = place.spec.name
            seconds = reading.read_each(columns[name], name, read, _INT64)
            values_VN[place.start : place.stop] = calendar.calendar_parts(seconds)[place.part_rows]
        nulls = self._scaling.apply(values_VN, 0, features[:, : len(values_VN)])
        if nulls is not None:
            for place in self._layout.valued:
                _note_nulls(place, nulls[place.start], encoded, 0)

    def _numbers(self, columns: Mapping[str, Sequence[object]]) -> np.ndarray:
        """All numeric columns, if possible in one call."""
        lists = [columns[name] for name in self._numeric]
        array = reading.array_of_numbers(lists)
        if array is not None:
            return array
        pairs = zip(self._numeric, lists, strict=True)
        return np.stack([reading.read_each(values, name, read_number, _FLOAT64) for name, values in pairs])

    def _write_categories(self, columns: Mapping[str, Sequence[object]], encoded: Encoded) -> None:
        width, ones = encoded.features.shape[1], []
        for place, find, targets in zip(self._layout.categorical, self._finders, self._targets, strict=True):
            name, unseen, nulls = place.spec.name, 0, 0
            for row, value in enumerate(columns[name]):
                try:
                    code = find(value)
                except ValueError as error:
                    raise reading.bad_value(name, row, value, error) from None
                unseen += code == UNSEEN
                nulls += code == MISSING
                ones.append(row * width + targets[code])
            _count(encoded.unseen_counts, name, unseen)
            _count(encoded.null_counts, name, nulls)
        encoded.features.reshape(-1)[ones] = 1.0


class TableWriter:
    """Encodes columns of any length, Arrow or lists, a group of columns and a block of rows at a time."""

    def __init__(self, layout: Layout, scaling: Scaling) -> None:
        self._layout, self._scaling = layout, scaling

    def write(
        self, columns: Mapping[str, Column], encoded: Encoded, *, consume: bool, strict_dates: bool
    ) -> None:
        """Fills ``encoded``, whose features are zero; ``consume`` takes each column out of ``columns``."""
        singles = (*self._layout.numeric, *self._layout.boolean)
        if consume and isinstance(columns, MutableMapping):
            self._write_consuming([p for p in singles if _is_native(p, columns)], columns, encoded)
            singles = tuple(p for p in singles if p.spec.name in columns)
        for group in _groups(singles):
            self._write_group(group, columns, encoded)
            _discard(columns, group, consume)
        for place in self._layout.date:
            self._write_date(place, columns[place.spec.name], encoded, strict_dates)
            _discard(columns, (place,), consume)
        for place in self._layout.categorical:
            _write_categories(place, columns[place.spec.name], encoded)
            _discard(columns, (place,), consume)

    def _write_consuming(
        self, places: Sequence[Place], columns: MutableMapping[str, Column], encoded: Encoded
    ) -> None:
        """Slab by slab, so that the table shrinks while the matrix grows; numbers are most of a table."""
        names = [place.spec.name for place in places]
        for first in range(0, len(encoded.features), _SLAB_ROWS):
            slab = replace(encoded, features=encoded.features[first : first + _SLAB_ROWS])
            head = {name: columns[name].slice(0, _SLAB_ROWS) for name in names}  # type: ignore[union-attr]
            for name in names:
                columns[name] = columns[name].slice(_SLAB_ROWS)  # type: ignore[union-attr]
            for group in _groups(places):
                self._write_group(group, head, slab)
            del head
            pa.default_memory_pool().release_unused()
        _discard(columns, places, consume=True)

    def _write_group(self, group: Sequence[Place], columns: Mapping[str, Column], encoded: Encoded) -> None:
        parts = [_parts(place, columns[place.spec.name]) for place in group]
        features, start = encoded.features, group[0].start
        buffer = np.empty((len(group), min(_BLOCK_ROWS, len(features))))
        for first in range(0, len(features), _BLOCK_ROWS):
            block = features[first : first + _BLOCK_ROWS, start : start + len(group)]
            values = buffer[:, : len(block)]
            for row, part in zip(values, parts, strict=True):
                row[:] = part(first)
            nulls = self._scaling.apply(values, start, block)
            if nulls is not None:
                for place in group:
                    _note_nulls(place, nulls[place.start - start], encoded, first)

    def _write_date(self, place: Place, column: Column, encoded: Encoded, strict: bool) -> None:
        seconds = reading.moments(column, place.spec.name, _format(place), strict=strict)
        for first in range(0, len(seconds), _BLOCK_ROWS):
            parts = calendar.calendar_parts(seconds[first : first + _BLOCK_ROWS])[place.part_rows]
            block = encoded.features[first : first + _BLOCK_ROWS, place.start : place.stop]
            nulls = self._scaling.apply(parts, place.start, block)
            if nulls is not None:
                _note_nulls(place, nulls[0], encoded, first)


_FLOAT64, _INT64 = np.dtype(np.float64), np.dtype(np.int64)


def _groups(places: Sequence[Place]) -> Iterator[Sequence[Place]]:
    """Neighbours in the matrix, at most ``_GROUP`` at a time."""
    start = 0
    for end in range(1, len(places) + 1):
        apart = end == len(places) or places[end].start != places[end - 1].start + 1
        if apart or end - start == _GROUP:
            yield places[start:end]
            start = end


def _is_native(place: Place, columns: Mapping[str, Column]) -> bool:
    column = columns[place.spec.name]
    numeric = place.spec.kind == "numeric"
    return isinstance(column, pa.ChunkedArray | pa.Array) and reading.is_native(column.type, numeric=numeric)


def _parts(place: Place, column: Column) -> Callable[[int], np.ndarray]:
    """Reads the block of rows from ``first``; Arrow numbers are never copied as a whole."""
    name = place.spec.name
    read = reading.numbers if place.spec.kind == "numeric" else reading.flags
    if _is_native(place, {name: column}):
        return lambda first: read(column.slice(first, _BLOCK_ROWS), name)  # type: ignore[union-attr]
    values = read(column, name)
    return lambda first: values[first : first + _BLOCK_ROWS]


def _write_categories(place: Place, column: Column, encoded: Encoded) -> None:
    codes = reading.category_codes(column, place.spec.name, place.spec.categories)
    _count(encoded.unseen_counts, place.spec.name, int(np.count_nonzero(codes == UNSEEN)))
    _count(encoded.null_counts, place.spec.name, int(np.count_nonzero(codes == MISSING)))
    width, targets = encoded.features.shape[1], np.array(_targets(place))
    flat = encoded.features.reshape(-1)
    for first in range(0, len(codes), _BLOCK_ROWS):
        block = targets[codes[first : first + _BLOCK_ROWS]]
        block += np.arange(first * width, (first + len(block)) * width, width)
        flat[block] = 1.0


def _targets(place: Place) -> list[int]:
    """Features by code; ``UNSEEN`` and ``MISSING`` count from the end, as negative indices do."""
    bucket = place.start + len(place.spec.categories)
    return [*range(place.start, bucket), bucket if place.null is None else place.null, bucket]


def _format(place: Place) -> str:
    return place.spec.date_format or calendar.ISO


def _note_nulls(place: Place, nulls_N: np.ndarray, encoded: Encoded, first: int) -> None:
    count = int(np.count_nonzero(nulls_N))
    _count(encoded.null_counts, place.spec.name, count)
    if count and place.null is not None:
        encoded.features[first : first + len(nulls_N), place.null] = nulls_N


def _count(counts: dict[str, int], name: str, more: int) -> None:
    if more:
        counts[name] = counts.get(name, 0) + more


def _discard(columns: Mapping[str, Column], places: Sequence[Place], consume: bool) -> None:
    if consume and isinstance(columns, MutableMapping):
        for place in places:
            del columns[place.spec.name]
