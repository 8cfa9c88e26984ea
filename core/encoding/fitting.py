"""What an encoder learns from the training rows: which columns are of use, and the statistics of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.encoding import calendar, reading
from core.encoding.columns import ColumnKind, ColumnSpec, Layout
from core.encoding.scaling import Scaling, Summary, summarise
from core.errors import DatasetError

# A text column with more distinct values per row than this names rows; it does not describe them.
_NAMING_SHARE: Final = 0.95
# So many distinct texts, evenly spaced through the column, decide on the format of its dates.
_FORMAT_SAMPLE: Final = 10_000
# Unix seconds of 1973 to 2286 and back to 1653: neither years, nor days such as 20240131, nor milliseconds.
_UNIX_RANGE: Final = (1e8, 1e10)


@dataclass(frozen=True, slots=True)
class _Fitted:
    spec: ColumnSpec
    summaries: tuple[Summary, ...] = ()
    warning: str | None = None


class _Useless(Exception):  # noqa: N818  # no failure: the column is left out and the reason becomes a warning
    """The column tells the model nothing."""


def fit_columns(
    columns: Mapping[str, pa.ChunkedArray],
    rows: np.ndarray,
    date_columns: frozenset[str],
    max_categories: int,
) -> tuple[tuple[ColumnSpec, ...], Scaling, tuple[str, ...]]:
    """Specifications in the order of the table, statistics in the order of the features, and warnings."""
    _check_date_columns(columns, date_columns)
    fitted, warnings = [], []
    for name, column in columns.items():
        try:
            found = _fit_column(name, column, rows, name in date_columns, max_categories)
        except _Useless as reason:
            warnings.append(f"Column {name!r} is ignored: {reason}.")
        else:
            fitted.append(found)
            warnings += [found.warning] if found.warning else []
    if not fitted:
        raise DatasetError(
            f"None of the {len(columns)} feature columns is of use; add columns or exclude fewer.",
            reasons=warnings,
        )
    return tuple(f.spec for f in fitted), _scaling_of(fitted), tuple(warnings)


def _check_date_columns(columns: Mapping[str, pa.ChunkedArray], date_columns: frozenset[str]) -> None:
    absent = sorted(date_columns - columns.keys())
    if absent:
        named = ", ".join(repr(name) for name in absent)
        known = ", ".join(columns)
        raise DatasetError(
            f"date_columns must name feature columns, however {named} is none. The columns are: {known}.",
            missing=absent,
            columns=list(columns),
        )


def _scaling_of(fitted: list[_Fitted]) -> Scaling:
    by_name = {f.spec.name: f.summaries for f in fitted}
    places = Layout(tuple(f.spec for f in fitted)).valued
    ordered = [summary for place in places for summary in by_name[place.spec.name]]
    return Scaling(
        np.array([s.median for s in ordered], np.float64),
        np.array([s.mean for s in ordered], np.float64),
        np.array([s.std for s in ordered], np.float64),
    )


def _fit_column(
    name: str, column: pa.ChunkedArray, rows: np.ndarray, dated: bool, max_categories: int
) -> _Fitted:
    match kind_of(name, column.type):
        case "date":
            return _fit_date(name, reading.moments(column, name, calendar.ISO)[rows], calendar.ISO)
        case "numeric":
            return _fit_unix(name, column, rows) if dated else _fit_numeric(name, column, rows)
        case "categorical":
            return (
                _fit_date_text(name, column, rows) if dated else _fit_text(name, column, rows, max_categories)
            )
        case "boolean" if not dated:
            return _fit_boolean(name, column, rows)
        case None:
            raise _Useless("it has no values in the training rows")
    raise DatasetError(
        f"Column {name!r} must hold dates, however it holds booleans; take it out of date_columns."
    )


def kind_of(name: str, kind: pa.DataType) -> ColumnKind | None:
    """What a column of this type is to the encoder; None for one without values.

    Raises:
        DatasetError: Columns of this type cannot be features.
    """
    types = pa.types
    if types.is_dictionary(kind):
        return kind_of(name, kind.value_type)
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "numeric"
    if types.is_boolean(kind):
        return "boolean"
    if reading.is_text(kind):
        return "categorical"
    if types.is_date(kind) or types.is_timestamp(kind):
        return "date"
    if types.is_null(kind):
        return None
    raise DatasetError(
        f"Column {name!r} has type {kind}, which cannot be a feature; exclude it.", column=name
    )


def _fit_numeric(name: str, column: pa.ChunkedArray, rows: np.ndarray) -> _Fitted:
    values = reading.numbers(column, name)[rows].astype(np.float64, copy=False)
    summary, nulls = _summarise_finite(values)
    return _Fitted(ColumnSpec(name, "numeric", has_nulls=nulls, idle=summary.constant), (summary,))


def _summarise_finite(values: np.ndarray) -> tuple[Summary, bool]:
    """The summary, and whether there are nulls; raises _Useless where nothing varies, not even nulls."""
    finite = np.isfinite(values)
    null_count = len(values) - int(np.count_nonzero(finite))
    if null_count == len(values):
        raise _Useless("it has no values in the training rows")
    summary = summarise(values[finite] if null_count else values, null_count)
    if summary.constant and not null_count:
        raise _Useless("it has one value")
    return summary, null_count > 0


def _fit_boolean(name: str, column: pa.ChunkedArray, rows: np.ndarray) -> _Fitted:
    values = reading.flags(column, name)[rows].astype(np.float64, copy=False)
    _, nulls = _summarise_finite(values)
    known = values[~np.isnan(values)]
    frequent = float(2 * known.sum() > len(known))
    idle = not known.any()
    return _Fitted(
        ColumnSpec(name, "boolean", has_nulls=nulls, idle=idle), (Summary(frequent, 0.0, 1.0, idle),)
    )


def _fit_date(name: str, seconds: np.ndarray, date_format: str, warning: str | None = None) -> _Fitted:
    parts = calendar.calendar_parts(seconds)
    known = ~np.isnan(parts[0])
    null_count = len(seconds) - int(np.count_nonzero(known))
    if null_count == len(seconds):
        raise _Useless("it has no values in the training rows")
    summaries = {p: summarise(part[known], null_count) for p, part in zip(calendar.PARTS, parts, strict=True)}
    kept = tuple(part for part, summary in summaries.items() if not summary.constant)
    idle = not kept
    if idle and not null_count:
        raise _Useless("it has one value")
    kept = kept or calendar.PARTS[:1]
    spec = ColumnSpec(name, "date", (), date_format, kept, has_nulls=null_count > 0, idle=idle)
    return _Fitted(spec, tuple(summaries[part] for part in kept), warning)


def _fit_unix(name: str, column: pa.ChunkedArray, rows: np.ndarray) -> _Fitted:
    values = reading.numbers(column, name)[rows].astype(np.float64)
    known = np.abs(values[np.isfinite(values)])
    low, high = _UNIX_RANGE
    if 2 * np.count_nonzero((known >= low) & (known < high)) < len(known):
        raise DatasetError(
            f"Date column {name!r} must be text or Unix seconds, however it holds other numbers; convert it.",
            column=name,
        )
    return _fit_date(name, reading.unix_moments(values), calendar.UNIX)


def _fit_date_text(name: str, column: pa.ChunkedArray, rows: np.ndarray) -> _Fitted:
    counts, distinct = _count_values(column, rows)
    seen = np.flatnonzero(counts)
    if not seen.size:
        raise _Useless("it has no values in the training rows")
    sample = seen[:: -(-len(seen) // _FORMAT_SAMPLE)]
    date_format = calendar.choose_format(distinct.take(pa.array(sample)).to_pylist(), counts[sample])
    seconds = reading.moments(column, name, date_format)[rows]
    total, read = int(counts.sum()), int(np.count_nonzero(seconds != calendar.NULL))
    if 2 * read < total:
        raise DatasetError(
            f"Column {name!r} must hold dates, however {read:,} of {total:,} are; drop it from date_columns.",
            column=name,
        )
    odd = f"{total - read:,} of {total:,} values are not dates ({date_format})"
    return _fit_date(
        name, seconds, date_format, None if read == total else f"Column {name!r}: {odd} and count as null."
    )


def _count_values(column: pa.ChunkedArray, rows: np.ndarray) -> tuple[np.ndarray, pa.Array]:
    """How often each of the distinct values occurs in the training rows; nulls are left out."""
    codes, distinct = reading.dictionary_codes(column)
    given = pa.types.is_dictionary(column.type)
    if given and (distinct.null_count or len(pc.unique(distinct)) < len(distinct)):
        codes, distinct = reading.dictionary_codes(column.cast(column.type.value_type))
    return np.bincount(codes[rows], minlength=len(distinct) + 1)[: len(distinct)], distinct


def _fit_text(name: str, column: pa.ChunkedArray, rows: np.ndarray, max_categories: int) -> _Fitted:
    counts, distinct = _count_values(column, rows)
    total, value_count = int(counts.sum()), int(np.count_nonzero(counts))
    has_nulls = total < len(rows)
    if total == 0:
        raise _Useless("it has no values in the training rows")
    if value_count == 1 and not has_nulls:
        raise _Useless("it has one value")
    repeated = np.flatnonzero(counts >= 2)
    if not repeated.size or value_count > _NAMING_SHARE * total:
        raise _Useless("nearly every row has a value of its own (if they are dates, name it in date_columns)")
    kept = _most_frequent(counts, repeated, distinct, max_categories)
    spec = ColumnSpec(
        name,
        "categorical",
        categories=tuple(sorted(distinct.take(pa.array(kept)).to_pylist())),
        has_nulls=has_nulls,
        idle=int(counts[kept].sum()) == total,
    )
    if len(kept) == len(repeated):
        return _Fitted(spec)
    kept_of = f"the {len(kept)} most frequent of its {value_count:,} values"
    return _Fitted(spec, warning=f"Column {name!r} keeps {kept_of}; the others share a feature.")


def _most_frequent(counts: np.ndarray, codes: np.ndarray, distinct: pa.Array, most: int) -> np.ndarray:
    """The codes with the highest counts; of equals at the border those that sort first."""
    if len(codes) <= most:
        return codes
    border = np.partition(counts[codes], -most)[-most]
    above, tied = codes[counts[codes] > border], codes[counts[codes] == border]
    order = pc.sort_indices(distinct.take(pa.array(tied))).to_numpy()
    return np.concatenate([above, tied[order[: most - len(above)]]])
