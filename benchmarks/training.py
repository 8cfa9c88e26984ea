"""What a training costs: one optimisation step, and the whole way from a CSV file to the metric."""

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from sklearn.neural_network import MLPClassifier

from benchmarks.end_to_end import END_REPEATS, EPOCHS, OURS, ROWS, SCIKIT, SKORCH, end_to_end_times
from benchmarks.report import Section, Table, load_average
from benchmarks.samples import TARGET, mixed_table
from benchmarks.timing import Times, interleaved, time_rows
from core.architecture import design
from core.encoding import Encoder
from core.losses import cross_entropy
from core.models import build_network, initialise
from core.training import Rows, Schedule, fit

BATCHES: Final = (64, 256)
STEP_REPEATS: Final = 7


def measure() -> Section:
    load = load_average()
    steps = [
        (f"{name}, batch {batch}", *cells)
        for batch in BATCHES
        for name, *cells in time_rows(step_times(batch), SCIKIT, unit_s=1e-6, digits=0)
    ]
    ends = end_to_end_times()
    return Section(
        name="training",
        title="Training",
        about=(
            f"{ROWS:,} rows of 20 numeric and 3 text columns (77 features), 3 classes, hidden layers (128, "
            "128), one thread. Stillhouse and skorch train batch normalisation and dropout as well, "
            "scikit-learn neither. For information: there is no target."
        ),
        targets=[],
        tables=[
            Table(
                ("one optimisation step", "median µs", "minimum µs", "of scikit-learn"),
                steps,
                f"Epochs in turns, {STEP_REPEATS} each, over their steps; scikit-learn by `partial_fit`.",
            ),
            Table(
                ("CSV to test accuracy", "median s", "minimum s", "of scikit-learn"),
                time_rows(ends, SCIKIT, unit_s=1.0, digits=2),
                f"{EPOCHS} epochs at batch 256, {END_REPEATS} times in turns, imports not counted"
                + ("." if SKORCH in ends else "; skorch is not installed."),
            ),
        ],
        packages=("torch", "scikit-learn", "skorch", "pandas", "pyarrow", "numpy"),
        started_load=load,
    )


def step_times(batch: int, device: str = "cpu", *, peer: bool = True) -> Times:
    """Seconds a step, of whole epochs over the rows."""
    features, classes = _encoded()
    epoch = our_epochs(features, classes, batch, device)
    ways: dict[str, Callable[[], object]] = {OURS: lambda: next(epoch)}
    if peer:
        network = MLPClassifier((128, 128), batch_size=batch, random_state=0)
        ways[SCIKIT] = lambda: network.partial_fit(features, classes, classes=[0, 1, 2])
    steps = -(-len(features) // batch)
    times = interleaved(ways, STEP_REPEATS)
    return {name: [taken / steps for taken in seconds] for name, seconds in times.items()}


def our_epochs(features: np.ndarray, classes: np.ndarray, batch: int, device: str) -> Iterator[object]:
    """The service's own loop, an epoch at a time; the loss of an epoch is read, so a device has finished."""
    shape = design(
        "mlp_dense",
        inputs=features.shape[1],
        outputs=3,
        hidden_dim=128,
        num_hidden_layers=2,
        dropout=0.1,
        classification=True,
    )
    network = build_network(shape)
    initialise(network, 0, np.empty(0, np.int64))
    place = torch.device(device)
    rows = Rows(
        torch.as_tensor(features, device=place),
        torch.arange(len(features), device=place),
        torch.empty(0, dtype=torch.long, device=place),
    )
    objective = cross_entropy(torch.as_tensor(classes, device=place))
    schedule = Schedule(epochs=10_000, batch_size=batch, learning_rate=0.001, patience=0, seed=0)
    return fit(network.to(place), objective, rows, schedule, lambda: False)


def _encoded() -> tuple[np.ndarray, np.ndarray]:
    table = mixed_table(ROWS)
    columns = {name: table[name] for name in table.column_names if name != TARGET}
    features = Encoder.fit(columns, np.arange(ROWS)).transform(columns).features
    kinds: pa.DictionaryArray = table[TARGET].combine_chunks().dictionary_encode()
    return features, kinds.indices.to_numpy().astype(np.int64)
