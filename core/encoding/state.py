"""An encoder as JSON and arrays, and back; nothing that is read is trusted."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Final, get_args

import numpy as np

from core.encoding import calendar
from core.encoding.columns import ColumnKind, ColumnSpec, Layout
from core.encoding.scaling import Scaling
from core.errors import BundleError

_FIELDS: Final = {field.name for field in fields(ColumnSpec)}
_ARRAYS: Final = ("medians", "means", "stds")
_KINDS: Final[tuple[ColumnKind, ...]] = get_args(ColumnKind)


def dump(
    columns: tuple[ColumnSpec, ...], scaling: Scaling, warnings: tuple[str, ...]
) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """The inverse of ``load``; categories are JSON strings, statistics float64 arrays."""
    header: dict[str, object] = {
        "columns": [asdict(spec, dict_factory=_json_values) for spec in columns],
        "warnings": list(warnings),
    }
    return header, {"medians": scaling.medians, "means": scaling.means, "stds": scaling.stds}


def _json_values(pairs: list[tuple[str, object]]) -> dict[str, object]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in pairs}


def load(
    header: Mapping[str, object], arrays: Mapping[str, np.ndarray]
) -> tuple[tuple[ColumnSpec, ...], Scaling, tuple[str, ...]]:
    """Raises BundleError, saying what does not fit, for anything that ``dump`` cannot have made."""
    columns = header.get("columns")
    if not isinstance(columns, list) or not columns:
        raise _misfit("its columns are not a list of at least one")
    specs = tuple(_load_column(entry) for entry in columns)
    _require(len({spec.name for spec in specs}) == len(specs), "a column's name occurs twice")
    return specs, _load_scaling(arrays, Layout(specs).value_count), _texts(header.get("warnings"), "warnings")


def _load_column(entry: object) -> ColumnSpec:
    if not isinstance(entry, Mapping) or entry.keys() != _FIELDS:
        raise _misfit("a column has other fields")
    name, date_format = entry.get("name"), entry.get("date_format")
    has_nulls, idle = entry.get("has_nulls"), entry.get("idle")
    kind = next((known for known in _KINDS if known == entry.get("kind")), None)
    if not isinstance(name, str) or kind is None:
        raise _misfit("a column has no name or no known kind")
    if not isinstance(has_nulls, bool) or not isinstance(idle, bool):
        raise _misfit("has_nulls and idle are not booleans")
    if date_format is not None and not (isinstance(date_format, str) and date_format in calendar.FORMATS):
        raise _misfit("a date format is unknown")
    categories, parts = _texts(entry.get("categories"), "categories"), _texts(entry.get("parts"), "parts")
    dated = kind == "date"
    _require(kind == "categorical" or not categories, "a column that is not categorical has categories")
    _require(len(set(categories)) == len(categories), "a category occurs twice")
    _require(
        dated == bool(parts) == (date_format is not None), "dates, and only they, have a format and parts"
    )
    _require(set(parts) <= set(calendar.PARTS), "a calendar part is unknown")
    _require(len(set(parts)) == len(parts), "a calendar part occurs twice")
    return ColumnSpec(name, kind, categories, date_format, parts, has_nulls, idle)


def _load_scaling(arrays: Mapping[str, np.ndarray], count: int) -> Scaling:
    _require(all(name in arrays for name in _ARRAYS), f"it lacks some of the arrays {', '.join(_ARRAYS)}")
    medians, means, stds = (arrays[name] for name in _ARRAYS)
    for array in (medians, means, stds):
        fits = array.dtype == np.float64 and array.shape == (count,) and bool(np.isfinite(array).all())
        _require(fits, f"its statistics are not {count} finite float64 values")
    _require(bool((stds > 0).all()), "a standard deviation is not positive")
    return Scaling(medians, means, stds)


def _texts(value: object, field: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise _misfit(f"its {field} are not a list of texts")
    return tuple(value)


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise _misfit(problem)


def _misfit(problem: str) -> BundleError:
    return BundleError(f"The bundle's encoder cannot be used: {problem}. Train the model again.")
