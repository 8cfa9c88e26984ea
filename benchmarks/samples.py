"""Generated tables: numbers of 3 to 7 digits, texts of few values, and a target that depends on both."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv

NUMBERS: Final = 20
TEXTS: Final = (5, 12, 37)  # distinct values a column; with 20 numbers and their buckets 77 features
TARGET: Final = "kind"
_CHUNK_ROWS: Final = 100_000


def mixed_table(rows: int, *, texts: Sequence[int] = TEXTS, seed: int = 0) -> pa.Table:
    """``n0`` … ``n19``, ``t0`` …, and ``kind`` of three classes, which noise blurs."""
    generator = np.random.Generator(np.random.PCG64(seed))
    raw = generator.standard_normal((NUMBERS, rows))
    codes = [generator.integers(0, count, rows) for count in texts]
    columns: dict[str, pa.Array] = {}
    for index, values in enumerate(raw):
        scale, decimals = 10.0 ** (index % 4), 1 + (index % 4 < 3) + (index % 4 < 2)
        columns[f"n{index}"] = pa.array(np.round(values * scale, decimals))
    for index, (count, code) in enumerate(zip(texts, codes, strict=True)):
        names = pa.array([f"{'abcdefgh'[value % 8]}-value-{value}" for value in range(count)])
        columns[f"t{index}"] = names.take(pa.array(code))
    columns[TARGET] = _classes(raw, codes, generator)
    return pa.table(columns)


def _classes(raw: np.ndarray, codes: Sequence[np.ndarray], generator: np.random.Generator) -> pa.Array:
    # the same rule whatever the seed of the rows, so that chunks make one table
    rule = np.random.Generator(np.random.PCG64(7))
    score = rule.standard_normal(NUMBERS) @ raw + 2 * np.abs(raw[0]) * raw[1]
    for code in codes:
        score += 2 * rule.standard_normal(64)[code]
    score += generator.standard_normal(len(score))
    kinds = np.digitize(score, [-2.0, 2.0])
    return pa.array(["low", "middle", "high"]).take(pa.array(kinds))


def write_csv(table: pa.Table, path: Path) -> None:
    csv.write_csv(table, path, csv.WriteOptions(quoting_style="none"))


def write_large_csv(path: Path, size_bytes: int) -> int:
    """Writes a table of one text column until the file is as large; returns its rows."""
    first = mixed_table(_CHUNK_ROWS, texts=(8,))
    rows = 0
    with (
        path.open("wb") as file,
        csv.CSVWriter(file, first.schema, write_options=csv.WriteOptions(quoting_style="none")) as writer,
    ):
        while file.tell() < size_bytes:
            writer.write_table(mixed_table(_CHUNK_ROWS, texts=(8,), seed=rows))
            rows += _CHUNK_ROWS
    return rows
