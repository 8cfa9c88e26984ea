"""From a table to what a training reads: rows, parts, features on the device. Axes as in ``pipeline``."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from core.contract import DataSource, DistillRequest, TrainRequest
from core.encoding import Encoder
from core.errors import DatasetError
from core.schema import describe
from core.splits import Split, split_rows
from core.table import ColumnInfo, Opener, read_table
from core.target import Target
from core.training import (
    Rows,
)

VALIDATION_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Prepared:
    """Encoded data on the device, target as the loss wants it.

    Attributes:
        features: (N, F) float32.
        truth: Class indices int64, or values in the target's units float64; NumPy.
        target: ``truth`` on the device: int64, or standardised float32.
    """

    split: Split
    features: Tensor
    truth: np.ndarray
    target: Tensor

    def rows(self) -> Rows:
        device = self.features.device
        return Rows(
            self.features,
            torch.as_tensor(self.split.train, device=device),
            torch.as_tensor(self.split.validation, device=device),
        )


def schema_of(
    request: TrainRequest | DistillRequest,
    infos: Sequence[ColumnInfo],
    encoder: Encoder,
    classes: Sequence[object] | None,
) -> dict[str, object]:
    return describe(
        infos,
        encoder,
        target_column=request.target_column,
        classes=classes,
        excluded=request.exclude_columns,
    )


def load_rows(request: TrainRequest | DistillRequest, open_file: Opener) -> pa.Table:
    """The table with every column that the request names.

    Raises:
        DatasetTooLargeError: if it has more rows or columns than the request allows.
        DatasetError: if it cannot be read or lacks one of them.
    """
    source: DataSource = request.data
    table = read_table(
        open_file,
        source.format,  # type: ignore[arg-type]
        sheet_name=source.sheet_name,
        max_rows=source.max_rows,
        max_columns=source.max_columns,
    )
    pa.default_memory_pool().release_unused()  # what reading took beside the table
    named = (request.target_column, *request.exclude_columns, *request.date_columns)
    absent = [name for name in named if name not in table.column_names]
    if absent:
        raise DatasetError(
            f"The data has no column {listed(absent)}; it has {listed(table.column_names, 5)}.",
            missing=absent,
        )
    return table


def feature_columns(table: pa.Table, request: TrainRequest | DistillRequest) -> dict[str, pa.ChunkedArray]:
    left_out = {request.target_column, *request.exclude_columns}
    return {name: table[name] for name in table.column_names if name not in left_out}


def encode(columns: dict[str, pa.ChunkedArray], encoder: Encoder) -> np.ndarray:
    """The features, float32 (N, F); the columns are freed, and Arrow gives their memory back."""
    features = encoder.transform(columns, consume=True, strict_dates=False).features
    pa.default_memory_pool().release_unused()
    return features


def split_of(request: TrainRequest | DistillRequest, target: Target) -> Split:
    watched = (
        request.early_stopping_patience > 0
        or request.training_mode == "calibrated_classifier"
        or request.interval is not None
        or (isinstance(request, TrainRequest) and request.sweep is not None)
    )
    return split_rows(
        len(target.values),
        test_size=request.test_size,
        validation_size=VALIDATION_SHARE if watched else 0.0,
        seed=request.random_seed,
        strata=target.values if target.classes else None,
    )


def target_scale(target: Target, split: Split) -> tuple[float, float]:
    """Mean and standard deviation of the training targets; (0, 1) in classification."""
    if target.classes:
        return 0.0, 1.0
    values = target.values[split.train]
    with np.errstate(over="ignore", invalid="ignore"):
        return float(values.mean()), float(values.std()) or 1.0


def place(
    features: np.ndarray, target: Target, split: Split, scale: tuple[float, float], device: torch.device
) -> Prepared:
    """Puts the data on the device once; on the CPU the features are not copied.

    Raises:
        DatasetError: if targets leave the range of float32 once standardised.
    """
    mean, std = scale
    with np.errstate(over="ignore", invalid="ignore"):
        values = target.values if target.classes else ((target.values - mean) / std).astype(np.float32)
    if not np.isfinite([mean, std]).all() or not np.isfinite(values).all():
        raise DatasetError("The target has values too extreme to learn from: rescale or remove them.")
    return Prepared(
        split, torch.as_tensor(features).to(device), target.values, torch.as_tensor(values).to(device)
    )


def count_rows(split: Split) -> dict[str, int]:
    return {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)}


def dropped_warning(target: Target) -> tuple[str, ...]:
    return (f"{target.dropped} rows without a target were left out",) if target.dropped else ()


def listed(names: Sequence[str], most: int = 10) -> str:
    """Names as a message may repeat them: the first few, each cut short."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"{name!r:.40}" for name in names[:most]) + rest
