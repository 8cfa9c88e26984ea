"""The models of a request that asks for several: which they are, and what of them is kept.

Axes: V validation rows, C outputs.
"""

import itertools
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from core.architecture import Architecture
from core.checkpoints import Progress
from core.contract import TrainRequest
from core.models import load_network
from core.stacked import Fitted, Member, Together, fit_together
from core.training import Checkpoints, EpochReport, Stop, divergence_error, outputs_of

Judge = Callable[[np.ndarray], float]
"""The metric of outputs (V, C) of the validation rows."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of several models: all as an ensemble, or the best one.

    Attributes:
        weights: As a bundle has them.
        settings: Of the best one, what was swept.
        report: Of each member its settings, how long and how well it trained, and whether it was kept.
    """

    architecture: Architecture
    weights: Mapping[str, np.ndarray]
    settings: Mapping[str, object]
    progress: Progress
    report: Sequence[Mapping[str, object]]


def members_of(request: TrainRequest) -> list[Member]:
    """The members of the ensemble, or the grid of the sweep; none where one model is asked for.

    All of a sweep start from the same weights. The first of an ensemble is what the request would get without
    it.
    """
    if request.sweep is not None:
        rates = request.sweep.learning_rate or (request.learning_rate,)
        dropouts = request.sweep.dropout or (request.dropout,)
        return [Member(*pair, request.random_seed) for pair in itertools.product(rates, dropouts)]
    if request.ensemble_size == 1:
        return []
    seeds = (request.random_seed, *_further_seeds(request.random_seed, request.ensemble_size - 1))
    return [Member(request.learning_rate, request.dropout, seed) for seed in seeds]


def train_members(
    together: Together,
    judge: Judge,
    stop: Stop,
    checkpoints: Checkpoints | None = None,
    fingerprint: str = "",
    *,
    best_alone: bool,
) -> Generator[EpochReport, None, Kept]:
    """Trains them together, and keeps all of them or the one with the lowest validation loss.

    Raises:
        TrainingDivergedError: if there is none to keep, or one of an ensemble is missing.
        CheckpointError, TrainingStoppedError: as ``fit_together``.
    """
    fitted, progress = yield from fit_together(together, stop, checkpoints, fingerprint)
    kept = [_best(fitted)] if best_alone else list(range(len(fitted)))
    weights = [_arrays(one) for one in fitted]
    if not all(weights[k] for k in kept):
        raise divergence_error()
    metrics = [_metric(together, arrays, judge) for arrays in weights]
    best = fitted[kept[0]].member
    return Kept(
        architecture=_shape_of(together.architecture, best, len(kept)),
        weights=_stacked([weights[k] for k in kept]),
        settings={"learning_rate": best.learning_rate, "dropout": best.dropout},
        progress=replace(progress, epoch=max(fitted[k].epochs_run for k in kept)),
        report=[_describe(one, metrics[k], k in kept) for k, one in enumerate(fitted)],
    )


def _further_seeds(seed: int, count: int) -> list[int]:
    return [int(np.random.SeedSequence((seed, k)).generate_state(1)[0]) for k in range(1, count + 1)]


def _arrays(fitted: Fitted) -> dict[str, np.ndarray]:
    return {name: tensor.cpu().numpy() for name, tensor in (fitted.weights or {}).items()}


def _best(fitted: Sequence[Fitted]) -> int:
    """The place of the lowest validation loss; those that have none come last."""

    def loss(place: int) -> float:
        found = fitted[place].validation_loss
        return math.inf if found is None or math.isnan(found) else found

    return min(range(len(fitted)), key=loss)


def _metric(together: Together, weights: Mapping[str, np.ndarray], judge: Judge) -> float | None:
    rows = together.rows
    if not weights or not len(rows.validation):
        return None
    network = load_network(together.architecture, weights).to(rows.features_NF.device)
    return judge(outputs_of(network, rows.features_NF, rows.validation).cpu().numpy())


def _shape_of(architecture: Architecture, member: Member, members: int) -> Architecture:
    dropout = 0.0 if architecture.kind == "linear" else member.dropout
    return replace(architecture, dropout=dropout, members=members)


def _stacked(weights: Sequence[Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
    """One member's arrays as they are; those of several with an axis of members in front."""
    if len(weights) == 1:
        return weights[0]
    return {name: np.stack([arrays[name] for arrays in weights]) for name in weights[0]}


def _describe(fitted: Fitted, metric: float | None, kept: bool) -> dict[str, object]:
    """Its settings and what became of it, as JSON; None for numbers that are not finite."""
    member = fitted.member
    return {
        "learning_rate": member.learning_rate,
        "dropout": member.dropout,
        "random_seed": member.seed,
        "epochs_run": fitted.epochs_run,
        "validation_loss": _finite(fitted.validation_loss),
        "validation_metric_value": _finite(metric),
        "kept": kept,
    }


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
