"""The encoder: what was learned from the training rows, applied to any rows."""

from collections.abc import Collection, Mapping, MutableMapping
from typing import cast

import numpy as np
import pyarrow as pa

from core.encoding import state
from core.encoding.columns import ColumnSpec, Layout
from core.encoding.fitting import fit_columns
from core.encoding.reading import Column
from core.encoding.scaling import Scaling
from core.encoding.writing import Encoded, ListWriter, TableWriter
from core.errors import PredictionInputError


class Encoder:
    """A fitted encoding of a table's feature columns; immutable.

    Numeric columns are median-imputed and standardised, booleans are 0 and 1, dates become standardised
    calendar parts, categories are one-hot with a bucket for rare and unseen values.

    Attributes:
        columns: What the input must have, in the order of the training table.
        warnings: What ``fit`` had to say, of ignored columns for instance.
        feature_names: One per output column: ``age``, ``age is null``, ``city=Oslo``, ``joined.month``.
    """

    def __init__(
        self, columns: tuple[ColumnSpec, ...], scaling: Scaling, warnings: tuple[str, ...] = ()
    ) -> None:
        self.columns = columns
        self.warnings = warnings
        self._scaling = scaling
        self._layout = Layout(columns)
        self._names = tuple(spec.name for spec in columns)
        self._lists = ListWriter(self._layout, scaling)
        self._tables = TableWriter(self._layout, scaling)
        self.feature_names: tuple[str, ...] = self._layout.feature_names

    @property
    def width(self) -> int:
        return self._layout.width

    @classmethod
    def fit(
        cls,
        columns: Mapping[str, pa.ChunkedArray],
        rows: np.ndarray,
        *,
        date_columns: Collection[str] = (),
        max_categories: int = 64,
    ) -> "Encoder":
        """Learns the encoding of feature columns from the training rows alone.

        Args:
            columns: Features only, without the target and what is excluded.
            rows: int64 indices of the training rows.
            date_columns: Names of further columns to read as dates, besides those that are typed so.
            max_categories: The most values of one column that have features of their own.

        Raises:
            DatasetError: A date column is absent or holds no dates, or no column is of any use.
        """
        return cls(*fit_columns(columns, rows, frozenset(date_columns), max_categories))

    def features_of_columns(self) -> dict[str, np.ndarray]:
        """Positions of the features of each column that has some, int64."""
        return self._layout.features_of_columns()

    def never_active(self) -> np.ndarray:
        """Indices of the features that were 0 in every training row, int64: their weights mean nothing."""
        return self._layout.idle_features()

    def transform(
        self, columns: Mapping[str, Column], *, consume: bool = False, strict_dates: bool = True
    ) -> Encoded:
        """Encodes rows; equal values give equal bits, whether they come as lists or as Arrow arrays.

        Args:
            columns: Arrow arrays or lists of JSON values; columns unknown to the encoder are ignored.
            consume: Take each column out of ``columns``, a dict, once it is encoded, and so free its memory.
            strict_dates: Refuse what is not a date in a date column; else it is null, as ``fit`` took it.

        Raises:
            PredictionInputError: Columns are missing (``missing`` in the details), their lengths differ, or a
                value cannot stand in its column (``column`` and ``row``).
        """
        encoded = Encoded(np.zeros((self._row_count(columns), self.width), np.float32))
        if all(type(columns[name]) is list for name in self._names):
            self._lists.write(cast("Mapping[str, list[object]]", columns), encoded, strict_dates=strict_dates)
            if consume:
                _remove(columns, self._names)
        else:
            self._tables.write(columns, encoded, consume=consume, strict_dates=strict_dates)
        return encoded

    def _row_count(self, columns: Mapping[str, Column]) -> int:
        missing = [name for name in self._names if name not in columns]
        if missing:
            raise PredictionInputError(_missing_message(missing), missing=missing)
        first, count = self._names[0], len(columns[self._names[0]])
        for name in self._names:
            if len(columns[name]) != count:
                raise PredictionInputError(
                    f"Columns must be equally long, however {first!r} has {count:,} values "
                    f"and {name!r} {len(columns[name]):,}.",
                    column=name,
                )
        return count

    def to_state(self) -> tuple[dict[str, object], dict[str, np.ndarray]]:
        """A JSON-able header and arrays from which ``from_state`` makes an equal encoder."""
        return state.dump(self.columns, self._scaling, self.warnings)

    @classmethod
    def from_state(cls, header: Mapping[str, object], arrays: Mapping[str, np.ndarray]) -> "Encoder":
        """The inverse of ``to_state``; raises BundleError for what ``to_state`` cannot have made."""
        return cls(*state.load(header, arrays))


def _missing_message(missing: list[str]) -> str:
    named = ", ".join(f"{name!r:.60}" for name in missing[:20]) + (" …" if len(missing) > 20 else "")
    return (
        f"The input lacks {len(missing)} of the model's columns: {named}. Send them, with null where unknown."
    )


def _remove(columns: Mapping[str, Column], names: Collection[str]) -> None:
    if isinstance(columns, MutableMapping):
        for name in names:
            del columns[name]
