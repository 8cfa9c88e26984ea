"""Models a second: trained together, one after the other, and by scikit-learn."""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from benchmarks.report import Section, Table, Target, load_average
from benchmarks.timing import Times, interleaved
from benchmarks.training import encoded
from core.architecture import Architecture, design
from core.contract.modes import TrainingMode
from core.losses import cross_entropy
from core.models import build_network, initialise
from core.stacked import Member, Together, fit_together
from core.training import Rows, Schedule, fit

SIZES: Final = (1, 2, 4, 8, 16, 32)
TRAIN_ROWS: Final = 2_000
VALIDATION_ROWS: Final = 250
EPOCHS: Final = 10
REPEATS: Final = 7
LARGE: Final = 16
FASTER: Final = 1.5
ALONE, SCIKIT, SWEPT = "one by one", "scikit-learn", "sweep"


@dataclass(frozen=True, slots=True)
class Setting:
    """Attributes:
    hidden: scikit-learn's layers of the same width and number; tabresnet has two a block.
    """

    mode: TrainingMode
    width: int
    batch: int
    hidden: tuple[int, ...]

    def __str__(self) -> str:
        width = f" of {self.width}" if self.hidden else ""
        return f"`{self.mode}`{width}, batch {self.batch}"


SETTINGS: Final = (
    Setting("mlp_dense", 128, 64, (128, 128)),
    Setting("mlp_dense", 32, 64, (32, 32)),
    Setting("mlp_dense", 128, 256, (128, 128)),
    Setting("tabresnet", 128, 64, (128,) * 5),
    Setting("linear_glm_baseline", 128, 64, ()),
)


def measure() -> Section:
    load = load_average()
    times = {setting: training_times(setting) for setting in SETTINGS}
    first = times[SETTINGS[0]]
    gain = rate(first, LARGE) / rate(first, ALONE)
    costs = [median(first[str(size)]) / size for size in SIZES if size <= LARGE]
    return Section(
        name="ensembles",
        title="Many models at once",
        about=(
            f"{TRAIN_ROWS:,} rows to learn from and {VALIDATION_ROWS} to watch, 77 features, 3 classes; "
            f"{EPOCHS} epochs, validation included, one thread. K models train together in common steps, or "
            "each by itself, as scikit-learn's must: it has as many layers of the same width, without "
            "normalisation, dropout and validation. A sweep is of 8 learning rates."
        ),
        targets=[
            Target(
                f"models a second, {LARGE} together over one by one, {SETTINGS[0]}, median",
                f"at least {FASTER} ×",
                f"{gain:.2f} ×",
                gain >= FASTER,
            ),
            Target(
                f"cost of a model from {SIZES[0]} to {LARGE} together, the same",
                "falls each time it doubles",
                " > ".join(f"{1e3 * cost:.0f}" for cost in costs) + " ms",
                costs == sorted(costs, reverse=True),
            ),
        ],
        tables=[
            Table(_HEADS, _rows(of), f"{setting}. CPU time, {REPEATS} times in turns.")
            for setting, of in times.items()
        ],
        packages=("torch", "scikit-learn", "numpy"),
        started_load=load,
    )


def training_times(setting: Setting, sizes: tuple[int, ...] = SIZES, repeats: int = REPEATS) -> Times:
    """CPU seconds of each way, from the first weights to the last: by K, of one model, and of 8 swept."""
    features, classes = encoded(TRAIN_ROWS + VALIDATION_ROWS)
    trains = {str(size): _together(setting, features, classes, [0.001] * size) for size in sizes}
    ways: dict[str, Callable[[], object]] = {
        **trains,
        SWEPT: _together(setting, features, classes, [0.001 * 2**-k for k in range(8)]),
        ALONE: _alone(setting, features, classes),
        SCIKIT: _scikit(setting, features[:TRAIN_ROWS], classes[:TRAIN_ROWS]),
    }
    return interleaved(ways, repeats, time.process_time)


def rate(times: Times, way: int | str) -> float:
    """Models a second."""
    models = way if isinstance(way, int) else 8 if way == SWEPT else 1
    return models / median(times[str(way)])


def _together(
    setting: Setting, features: np.ndarray, classes: np.ndarray, rates: list[float]
) -> Callable[[], object]:
    shape, rows, schedule = _shape(setting, features), _place(features), _schedule(setting)
    objective = cross_entropy(torch.as_tensor(classes), 3)
    members = [Member(rate, shape.dropout, seed) for seed, rate in enumerate(rates)]

    def train() -> object:
        networks = [_network(shape, member.seed) for member in members]
        together = Together(networks, shape, members, objective, rows, schedule)
        return list(fit_together(together, lambda: False))

    return train


def _alone(setting: Setting, features: np.ndarray, classes: np.ndarray) -> Callable[[], object]:
    shape, rows, schedule = _shape(setting, features), _place(features), _schedule(setting)
    objective = cross_entropy(torch.as_tensor(classes), 3)
    return lambda: list(fit(_network(shape, 0), objective, rows, schedule, lambda: False))


def _scikit(setting: Setting, features: np.ndarray, classes: np.ndarray) -> Callable[[], object]:
    def train() -> object:
        network = MLPClassifier(setting.hidden, batch_size=setting.batch, max_iter=EPOCHS, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return network.fit(features, classes)

    return train


def _shape(setting: Setting, features: np.ndarray) -> Architecture:
    return design(
        setting.mode,
        inputs=features.shape[1],
        outputs=3,
        hidden_dim=setting.width,
        num_hidden_layers=2,
        dropout=0.1,
        classification=True,
    )


def _network(shape: Architecture, seed: int) -> torch.nn.Sequential:
    network = build_network(shape)
    initialise(network, seed, np.empty(0, np.int64))
    return network


def _place(features: np.ndarray) -> Rows:
    order = torch.arange(len(features))
    return Rows(torch.as_tensor(features), order[:TRAIN_ROWS], order[TRAIN_ROWS:])


def _schedule(setting: Setting) -> Schedule:
    return Schedule(EPOCHS, setting.batch, learning_rate=0.001, patience=EPOCHS, seed=0)


_HEADS: Final = ("K", "models a second", "ms a model", "of one by one", "of scikit-learn")


def _rows(times: Times) -> list[tuple[str, ...]]:
    ways: Mapping[str, int | str] = {
        **{str(size): size for size in SIZES},
        "8, swept": SWEPT,
        "one by one": ALONE,
        "scikit-learn": SCIKIT,
    }
    return [
        (
            name,
            f"{rate(times, way):.2f}",
            f"{1e3 / rate(times, way):.1f}",
            f"{rate(times, way) / rate(times, ALONE):.2f} ×",
            f"{rate(times, way) / rate(times, SCIKIT):.2f} ×",
        )
        for name, way in ways.items()
    ]
