"""What a prediction costs inside the process, next to ONNX Runtime and PyTorch."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import onnxruntime
import pyarrow as pa
import torch

from benchmarks.report import Section, Table, Target, load_average
from benchmarks.samples import TARGET, mixed_table, write_csv
from benchmarks.timing import Times, interleaved, ratio, time_rows
from core.bundles import Bundle
from core.export import to_onnx
from core.local import train_model_from_file
from core.models import load_network
from core.prediction import Predictor
from core.training import outputs_of

CALLS: Final = 200
REPEATS: Final = 25
ROWS: Final = 100_000
ROW_LIMIT_US: Final = 50
CLOSE: Final = 1e-6
OURS, WITH_ENCODING = "Stillhouse", "Stillhouse, with encoding"
ONNX, TORCH = "ONNX Runtime", "PyTorch's modules"


def measure() -> Section:
    load = load_average()
    bundle = _trained()
    table = mixed_table(ROWS, seed=1)
    one = _timed(bundle, table.slice(0, 1), CALLS)
    many = _timed(bundle, table, 1)
    deviation = _deviation(bundle, table)
    row_us, share = median(one[WITH_ENCODING]) * 1e6, ratio(many, OURS, ONNX)
    return Section(
        name="prediction",
        title="Predictions in the process",
        about=(
            "`mlp_dense` at its defaults on 23 columns (77 features, 3 classes), one thread for all. Encoded "
            "rows in, probabilities out; with encoding, JSON values or an Arrow table in."
        ),
        targets=[
            Target(
                "1 row, encoded and predicted, median",
                f"below {ROW_LIMIT_US} µs",
                f"{row_us:.0f} µs",
                row_us < ROW_LIMIT_US,
            ),
            Target(f"{ROWS:,} rows, median", f"below 1 × {ONNX}", f"{share:.2f} ×", share < 1),
            Target(
                "largest difference of a probability from PyTorch's",
                f"at most {CLOSE:.0e}",
                f"{deviation:.1e}",
                deviation <= CLOSE,
            ),
        ],
        tables=[
            Table(
                ("1 row", "median µs", "minimum µs", f"of {ONNX}"),
                time_rows(one, ONNX, unit_s=1e-6),
                f"{CALLS} calls each, {REPEATS} times in turns.",
            ),
            Table(
                (f"{ROWS:,} rows", "median ms", "minimum ms", f"of {ONNX}"),
                time_rows(many, ONNX),
                f"{REPEATS} times in turns.",
            ),
        ],
        packages=("numpy", "onnxruntime", "torch"),
        started_load=load,
    )


def _trained() -> Bundle:
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as folder:
        path = Path(folder) / "table.csv"
        write_csv(mixed_table(20_000), path)
        return train_model_from_file(path, TARGET, epochs=2)[0]


def _timed(bundle: Bundle, table: pa.Table, calls: int) -> Times:
    predictor = Predictor(bundle)
    columns = {name: table[name] for name in table.column_names if name != TARGET}
    if len(table) == 1:  # as JSON brings it
        columns = {name: column.to_pylist() for name, column in columns.items()}
    features = predictor.encode(columns).features
    ways: Mapping[str, Callable[[], object]] = {
        WITH_ENCODING: lambda: predictor.predict(predictor.encode(columns).features),
        OURS: lambda: predictor.predict(features),
        ONNX: _by_onnx(bundle, features),
        TORCH: _by_torch(bundle, features),
    }
    repeated = {name: lambda way=way: [way() for _ in range(calls)] for name, way in ways.items()}
    times = interleaved(repeated, REPEATS)
    return {name: [taken / calls for taken in seconds] for name, seconds in times.items()}


def _by_onnx(bundle: Bundle, features: np.ndarray) -> Callable[[], np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(to_onnx(bundle), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"features": features})[0]


def _by_torch(bundle: Bundle, features: np.ndarray) -> Callable[[], np.ndarray]:
    network = load_network(bundle.architecture, bundle.weights)
    return lambda: outputs_of(network, torch.as_tensor(features)).softmax(1).numpy()


def _deviation(bundle: Bundle, table: pa.Table) -> float:
    predictor = Predictor(bundle)
    columns = {name: table[name] for name in table.column_names if name != TARGET}
    features = predictor.encode(columns).features
    found = predictor.predict(features).probabilities
    return float(np.abs(found - _by_torch(bundle, features)()).max())
