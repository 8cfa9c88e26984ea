"""Which rows train, which stop the training early and which judge the result."""

from dataclasses import dataclass
from math import floor

import numpy as np

from core.errors import DatasetError

_TRAIN, _VALIDATION, _TEST = np.arange(3, dtype=np.uint8)  # a byte a row: there may be very many


@dataclass(frozen=True, slots=True)
class Split:
    """Three disjoint parts of ``range(n)``, each sorted int64."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_rows(
    n: int, *, test_size: float, validation_size: float, seed: int, strata: np.ndarray | None
) -> Split:
    """Draws a split; equal arguments give an equal one.

    The test part has ``test_size`` of the rows, rounded half up, at least 1. The validation part has
    ``validation_size`` of the others, at least 1 unless that is 0. Two rows stay for training where there are
    so many. With strata each part has each class in proportion, by largest remainder, and every class keeps
    a training row; where classes are too small for that, the other parts shrink.

    Args:
        n: How many rows there are.
        test_size, validation_size: Shares in (0, 1) and [0, 1).
        strata: Class index of each row, (n,) int; None for a plain random split.

    Raises:
        DatasetError: There are too few rows to give each part one.
    """
    counts_C = np.array([n]) if strata is None else np.bincount(strata)
    test, validation = _sizes(n, test_size, validation_size, max(1, int(np.count_nonzero(counts_C))))
    test_C = _apportion(test, counts_C, np.maximum(counts_C - 1, 0))
    left_C = counts_C - test_C
    validation_C = _apportion(validation, left_C, np.maximum(left_C - 1, 0))
    parts = np.full(n, _TRAIN)
    generator = np.random.Generator(np.random.PCG64(seed))
    by_class = np.arange(n) if strata is None else np.argsort(strata, kind="stable")
    for rows, in_test, in_validation in zip(
        np.split(by_class, np.cumsum(counts_C)[:-1]), test_C, validation_C, strict=True
    ):
        generator.shuffle(rows)
        parts[rows[:in_test]] = _TEST
        parts[rows[in_test : in_test + in_validation]] = _VALIDATION
    return Split(*(np.flatnonzero(parts == part) for part in (_TRAIN, _VALIDATION, _TEST)))


def _sizes(n: int, test_size: float, validation_size: float, class_count: int) -> tuple[int, int]:
    """Rows to test and to validate on, such that each class can keep one row, and training two."""
    reserve = 1 if validation_size > 0 else 0
    if n - class_count < 1 + reserve:
        parts = "training, validation and test" if reserve else "training and test"
        classes = f" of {class_count:,} classes" if class_count > 1 else ""
        raise DatasetError(
            f"{n:,} rows{classes} are too few for {parts}; add {1 + reserve - n + class_count:,} or more.",
            rows=n,
            classes=class_count,
        )
    spare = max(1 + reserve, n - max(2, class_count))
    test = min(max(1, floor(test_size * n + 0.5)), spare - reserve)
    validation = min(max(reserve, floor(validation_size * (n - test) + 0.5)), spare - test)
    return test, validation


def _apportion(total: int, counts_C: np.ndarray, caps_C: np.ndarray) -> np.ndarray:
    """Shares ``total`` among classes by largest remainder (Hamilton), none above its cap.

    The caps must leave room for the total. Of equal remainders the earlier class wins.
    """
    quotas_C = total * counts_C / max(1, int(counts_C.sum()))
    shares_C: np.ndarray = np.minimum(np.floor(quotas_C).astype(np.int64), caps_C)
    while (left := total - int(shares_C.sum())) > 0:
        wanting = np.flatnonzero(shares_C < caps_C)
        order = np.argsort(-(quotas_C - shares_C)[wanting], kind="stable")
        shares_C[wanting[order[:left]]] += 1
    return shares_C
