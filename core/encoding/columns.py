"""What an encoder knows of its columns, and where each of their features lies."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from core.encoding.calendar import PARTS

ColumnKind = Literal["numeric", "boolean", "categorical", "date"]


@dataclass(frozen=True, slots=True)
class ColumnSpec:
    """One column that the input must have.

    Attributes:
        categories: The values with a feature of their own, sorted; categorical columns only.
        date_format: A member of ``calendar.FORMATS``; date columns only.
        parts: The calendar parts that varied in training; date columns only.
        has_nulls: Nulls occurred in training, so that they have a feature.
        idle: The value (or, of a categorical column, the bucket) was 0 in every training row.
    """

    name: str
    kind: ColumnKind
    categories: tuple[str, ...] = ()
    date_format: str | None = None
    parts: tuple[str, ...] = ()
    has_nulls: bool = False
    idle: bool = False

    @property
    def value_count(self) -> int:
        """How many of its features are standardised."""
        return {"numeric": 1, "boolean": 1, "categorical": 0, "date": len(self.parts)}[self.kind]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the features of one column lie.

    Attributes:
        start: Of its standardised values, or of its categories.
        null: Of its null indicator; None where there is none.
    """

    spec: ColumnSpec
    start: int
    null: int | None

    @property
    def stop(self) -> int:
        """The feature after its last standardised value."""
        return self.start + self.spec.value_count

    @property
    def part_rows(self) -> list[int]:
        """Which rows of ``calendar.calendar_parts`` are its values."""
        return [PARTS.index(part) for part in self.spec.parts]


class Layout:
    """The features in order: values (numeric, boolean, date parts), null indicators, categories.

    Values come first and in one block, so that one vectorised operation standardises all of them. A
    categorical column has its categories, then the bucket, then its nulls.
    """

    def __init__(self, columns: tuple[ColumnSpec, ...]) -> None:
        by_kind = {
            kind: [c for c in columns if c.kind == kind]
            for kind in ("numeric", "boolean", "date", "categorical")
        }
        valued = [*by_kind["numeric"], *by_kind["boolean"], *by_kind["date"]]
        self.value_count = sum(spec.value_count for spec in valued)
        indicators = [spec.name for spec in valued if spec.has_nulls]
        start, null, places = 0, self.value_count, []
        for spec in valued:
            places.append(Place(spec, start, null if spec.has_nulls else None))
            start, null = start + spec.value_count, null + spec.has_nulls
        self.valued = tuple(places)
        self.numeric = tuple(p for p in places if p.spec.kind == "numeric")
        self.boolean = tuple(p for p in places if p.spec.kind == "boolean")
        self.date = tuple(p for p in places if p.spec.kind == "date")
        self.categorical = self._place_categories(by_kind["categorical"], null)
        self.feature_names = (
            *(name for spec in valued for name in _value_names(spec)),
            *(f"{name} is null" for name in indicators),
            *(name for spec in by_kind["categorical"] for name in _category_names(spec)),
        )
        self.width = len(self.feature_names)

    @staticmethod
    def _place_categories(specs: list[ColumnSpec], start: int) -> tuple[Place, ...]:
        places = []
        for spec in specs:
            bucket = start + len(spec.categories)
            places.append(Place(spec, start, bucket + 1 if spec.has_nulls else None))
            start = bucket + 1 + spec.has_nulls
        return tuple(places)

    def features_of_columns(self) -> dict[str, np.ndarray]:
        """Where the features of each column are, int64."""
        groups = {p.spec.name: list(range(p.start, p.stop)) for p in self.valued}
        for p in self.categorical:  # its categories and the bucket
            groups[p.spec.name] = list(range(p.start, p.start + len(p.spec.categories) + 1))
        for p in (*self.valued, *self.categorical):
            groups[p.spec.name] += [] if p.null is None else [p.null]
        return {name: np.array(features, np.int64) for name, features in groups.items()}

    def idle_features(self) -> np.ndarray:
        """Indices of the features that were 0 in every training row, int64, sorted."""
        idle = [p.start for p in self.valued if p.spec.idle]
        idle += [p.start + len(p.spec.categories) for p in self.categorical if p.spec.idle]
        return np.array(idle, np.int64)


def _value_names(spec: ColumnSpec) -> list[str]:
    return [f"{spec.name}.{part}" for part in spec.parts] if spec.kind == "date" else [spec.name]


def _category_names(spec: ColumnSpec) -> list[str]:
    names = [f"{spec.name}={category}" for category in spec.categories]
    return [*names, f"{spec.name}=<other>", *([f"{spec.name} is null"] if spec.has_nulls else [])]
