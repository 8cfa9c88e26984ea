"""What a job reads, recorded before it reads, so that it never silently learns from something else."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Final, cast

from core.contract import DataSource, DistillRequest, TrainRequest
from core.errors import DatasetBrokenError, DatasetError
from core.table import Format, Opener, inspect_table

_PIECE_BYTES: Final = 1 << 20


def take_snapshot(
    request: TrainRequest | DistillRequest, open_file: Opener, taken_at: float
) -> dict[str, object]:
    """Schema, rows and SHA-256 of the file, and how its rows will be split.

    Args:
        taken_at: Unix seconds.

    Raises:
        DatasetError: if the file is gone or cannot be read as a table.
    """
    source: DataSource = request.data
    size, sha256 = _digest(open_file)
    table = inspect_table(
        open_file,
        cast("Format", source.format),
        max_rows=source.max_rows,
        max_columns=source.max_columns,
    )
    return {
        "label": source.label,
        "format": source.format,
        "bytes": size,
        "sha256": sha256,
        "rows": table.rows,
        "columns": [asdict(column) for column in table.columns],
        "split": {"source": "job", "test_size": request.test_size, "seed": request.random_seed},
        "taken_at": taken_at,
    }


def check_snapshot(snapshot: Mapping[str, object], open_file: Opener) -> None:
    """Raises DatasetBrokenError if the file is not the one that the snapshot describes."""
    size, sha256 = _digest(open_file)
    if (size, sha256) != (snapshot["bytes"], snapshot["sha256"]):
        raise DatasetBrokenError(
            "The dataset changed since this job first read it: retry with new_snapshot true.",
            expected_sha256=snapshot["sha256"],
            found_sha256=sha256,
        )


def _digest(open_file: Opener) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    try:
        with open_file() as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
                size += len(piece)
    except FileNotFoundError:
        raise DatasetError("The file of the dataset is gone: upload it again.") from None
    return size, digest.hexdigest()
