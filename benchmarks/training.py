"""What a training costs: one optimisation step, and the whole way from a CSV file to the metric."""

import time
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from sklearn.neural_network import MLPClassifier

from benchmarks.end_to_end import (
    END_REPEATS,
    EPOCHS,
    HIDDEN,
    PEER_OF,
    ROWS,
    SKORCH,
    WIDTH,
    end_to_end_times,
    plain_network,
)
from benchmarks.report import Section, Table, Target, load_average
from benchmarks.samples import TARGET, mixed_table
from benchmarks.timing import Times, interleaved, ratio
from core.architecture import design
from core.contract.modes import TrainingMode
from core.encoding import Encoder
from core.losses import cross_entropy
from core.models import build_network, initialise
from core.steps import EagerStep, StepMaker, choose_step
from core.training import Rows, Schedule, fit

BATCHES: Final = (64, 256)
MODES: Final[tuple[TrainingMode, ...]] = ("mlp_dense", "tabresnet", "linear_glm_baseline")
STEP_REPEATS: Final = 11
FASTER: Final[Mapping[int, float]] = {64: 3.0, 256: 2.0}
OURS, EAGER, PLAIN, SCIKIT = "Stillhouse", "the same, eager", "PyTorch's modules, eager", "scikit-learn"


def measure() -> Section:
    load = load_average()
    steps = {(batch, mode): step_times(batch, mode) for batch in BATCHES for mode in MODES}
    ends = {batch: end_to_end_times(batch) for batch in BATCHES}
    return Section(
        name="training",
        title="Training",
        about=(
            f"{ROWS:,} rows of 20 numeric and 3 text columns (77 features), 3 classes, hidden layers of "
            f"{WIDTH}, one thread. Stillhouse, PyTorch and skorch train batch normalisation and dropout as "
            "well, scikit-learn neither. The eager way is autograd and fused Adam over the same modules and "
            "dropout masks, the reference that the fast way is tested against; PyTorch's modules draw masks "
            "by `nn.Dropout`. scikit-learn's network has as many layers of the same width."
        ),
        targets=[*_step_targets(steps), *_end_targets(ends)],
        tables=[
            Table(
                ("one optimisation step", "median µs", "minimum µs", "of Stillhouse"),
                [row for key, times in steps.items() for row in _step_rows(*key, times)],
                f"Epochs in turns, {STEP_REPEATS} each, over their steps, in CPU time, which others' work on "
                "the machine lengthens less; scikit-learn by `partial_fit`.",
            ),
            Table(
                ("CSV to test accuracy", "median s", "minimum s", "of its peer"),
                [row for batch, times in ends.items() for row in _end_rows(batch, times)],
                f"{EPOCHS} epochs, {END_REPEATS} times in turns, imports not counted; a peer has as many "
                "layers of the same width. The teacher is trained before"
                + ("." if SKORCH in ends[BATCHES[0]] else "; skorch is not installed."),
            ),
        ],
        packages=("torch", "scikit-learn", "skorch", "pandas", "pyarrow", "numpy"),
        started_load=load,
    )


def step_times(
    batch: int, mode: TrainingMode = "mlp_dense", device: str = "cpu", *, peers: bool = True
) -> Times:
    """Seconds a step, of whole epochs over the rows; of CPU time where peers are compared."""
    features, classes = encoded(ROWS)
    ways = {OURS: _epochs(features, classes, batch, mode, device, choose_step)}
    if peers:
        ways[EAGER] = _epochs(features, classes, batch, mode, device, EagerStep)
        if mode == "mlp_dense":
            ways[PLAIN] = _plain_epochs(features, classes, batch)
        ways[SCIKIT] = _scikit_epochs(features, classes, batch, mode)
    steps = -(-len(features) // batch)
    calls = {name: lambda way=way: next(way) for name, way in ways.items()}  # type: ignore[misc]
    times = interleaved(calls, STEP_REPEATS, time.process_time if peers else time.perf_counter)
    return {name: [taken / steps for taken in seconds] for name, seconds in times.items()}


def _epochs(
    features: np.ndarray,
    classes: np.ndarray,
    batch: int,
    mode: TrainingMode,
    device: str,
    make_step: StepMaker,
) -> Iterator[object]:
    """The service's own loop, an epoch at a time; the loss of an epoch is read, so a device has finished."""
    shape = design(
        mode,
        inputs=features.shape[1],
        outputs=3,
        hidden_dim=WIDTH,
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
    objective = cross_entropy(torch.as_tensor(classes, device=place), 3)
    schedule = Schedule(epochs=10_000, batch_size=batch, learning_rate=0.001, patience=0, seed=0)
    return fit(network.to(place), objective, rows, schedule, lambda: False, make_step)


def _plain_epochs(features: np.ndarray, classes: np.ndarray, batch: int) -> Iterator[object]:
    """The loop that one would write: a permutation an epoch, autograd, fused Adam."""
    x, y = torch.as_tensor(features), torch.as_tensor(classes)
    network = plain_network(features.shape[1])
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    while True:
        for rows in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
        yield loss.item()


def _scikit_epochs(
    features: np.ndarray, classes: np.ndarray, batch: int, mode: TrainingMode
) -> Iterator[object]:
    network = MLPClassifier(HIDDEN[PEER_OF[mode]], batch_size=batch, random_state=0)
    while True:
        yield network.partial_fit(features, classes, classes=[0, 1, 2])


def encoded(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and classes of a mixed table."""
    table = mixed_table(rows)
    columns = {name: table[name] for name in table.column_names if name != TARGET}
    features = Encoder.fit(columns, np.arange(rows)).transform(columns).features
    kinds: pa.DictionaryArray = table[TARGET].combine_chunks().dictionary_encode()
    return features, kinds.indices.to_numpy().astype(np.int64)


def _step_targets(steps: Mapping[tuple[int, TrainingMode], Times]) -> list[Target]:
    targets = []
    for batch, least in FASTER.items():
        for name in (PLAIN, EAGER):
            found = ratio(steps[batch, "mlp_dense"], name, OURS)
            claim = f"step of {name} over ours, `mlp_dense`, batch {batch}, median"
            targets.append(Target(claim, f"at least {least:.0f} ×", f"{found:.2f} ×", found >= least))
    return targets


def _end_targets(ends: Mapping[int, Times]) -> list[Target]:
    targets = []
    for batch, times in ends.items():
        for mode, peer in PEER_OF.items():
            found = ratio(times, mode, peer)
            claim = f"CSV to metric, `{mode}`, batch {batch}, median"
            targets.append(Target(claim, f"below 1 × {peer}", f"{found:.2f} ×", found < 1))
    return targets


def _step_rows(batch: int, mode: str, times: Times) -> list[tuple[str, ...]]:
    return [
        (
            f"{name}, `{mode}`, batch {batch}",
            f"{median(taken) * 1e6:,.0f}",
            f"{min(taken) * 1e6:,.0f}",
            f"{ratio(times, name, OURS):.2f}",
        )
        for name, taken in times.items()
    ]


def _end_rows(batch: int, times: Times) -> list[tuple[str, ...]]:
    return [
        (
            f"{name if name not in PEER_OF else f'Stillhouse, `{name}`'}, batch {batch}",
            f"{median(taken):.2f}",
            f"{min(taken):.2f}",
            f"{ratio(times, name, PEER_OF[name]):.2f}" if name in PEER_OF else "",
        )
        for name, taken in times.items()
    ]
