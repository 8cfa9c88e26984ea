"""A CSV file to features on the device: by columns, and row by row."""

import csv
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction import DictVectorizer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from benchmarks.report import Section, Table, Target, load_average
from benchmarks.samples import NUMBERS, TARGET, TEXTS, mixed_table, write_csv
from benchmarks.timing import Times, interleaved, ratio, time_rows
from core.encoding import Encoder
from core.table import read_table
from core.training import choose_device

ROWS: Final = 20_000
REPEATS: Final = 15
LIMIT: Final = 0.1
NUMERIC: Final = [f"n{index}" for index in range(NUMBERS)]
TEXTUAL: Final = [f"t{index}" for index in range(len(TEXTS))]
OURS, PANDAS, BY_ROW = "Stillhouse", "pandas + ColumnTransformer", "DictReader + DictVectorizer"


def measure() -> Section:
    """Compares our way with the row-by-row way, which is spared the scaling and the split."""
    load = load_average()
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as folder:
        path = Path(folder) / "table.csv"
        write_csv(mixed_table(ROWS), path)
        size_mb = path.stat().st_size / 1e6
        train = np.sort(np.random.Generator(np.random.PCG64(0)).permutation(ROWS)[: ROWS * 8 // 10])
        times = interleaved(
            {
                OURS: lambda: by_columns(path, train),
                PANDAS: lambda: by_pandas(path, train),
                BY_ROW: lambda: by_row(path),
            },
            REPEATS,
        )
        parts = _parts(path, train)
    share = ratio(times, OURS, BY_ROW)
    return Section(
        name="table",
        title="CSV to features on the device",
        about=(
            f"A CSV of {ROWS:,} rows, {NUMBERS} numeric and {len(TEXTS)} text columns ({size_mb:.1f} MB) is "
            "parsed, encoded and made a float32 tensor on the training device. Stillhouse and pandas learn "
            "the encoding from the training rows and standardise numbers; the row-by-row way does neither."
        ),
        targets=[
            Target(
                "time of the row-by-row way, median", f"below {LIMIT:.2f} ×", f"{share:.3f} ×", share < LIMIT
            )
        ],
        tables=[
            Table(
                ("way", "median ms", "minimum ms", "of row by row"),
                time_rows(times, BY_ROW),
                f"{REPEATS} repetitions in turns.",
            ),
            Table(
                ("part of Stillhouse's", "median ms", "minimum ms", "of parsing"), time_rows(parts, "parse")
            ),
        ],
        packages=("numpy", "pyarrow", "pandas", "scikit-learn", "torch"),
        started_load=load,
    )


def by_columns(path: Path, train: np.ndarray) -> torch.Tensor:
    columns = _parsed(path)
    return _placed(Encoder.fit(columns, train).transform(columns).features)


def by_pandas(path: Path, train: np.ndarray) -> torch.Tensor:
    frame = pd.read_csv(path)
    encoder = make_column_transformer(
        (StandardScaler(), NUMERIC),
        (OneHotEncoder(sparse_output=False, handle_unknown="ignore"), TEXTUAL),
    )
    encoder.fit(frame.iloc[train])
    return _placed(encoder.transform(frame).astype(np.float32))


def by_row(path: Path) -> torch.Tensor:
    with path.open(newline="") as file:
        rows = [
            {
                name: value if name in TEXTUAL else float(value)
                for name, value in row.items()
                if name != TARGET
            }
            for row in csv.DictReader(file)
        ]
    return _placed(DictVectorizer(sparse=False, dtype=np.float32).fit_transform(rows))


def _parts(path: Path, train: np.ndarray) -> Times:
    columns = _parsed(path)
    encoder = Encoder.fit(columns, train)
    return interleaved(
        {
            "parse": lambda: _parsed(path),
            "fit": lambda: Encoder.fit(columns, train),
            "transform": lambda: encoder.transform(columns),
        },
        REPEATS,
    )


def _parsed(path: Path) -> dict[str, pa.ChunkedArray]:
    table = read_table(lambda: pa.OSFile(str(path)), "csv")
    return {name: table[name] for name in table.column_names if name != TARGET}


def _placed(features: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(features).to(choose_device(None))
