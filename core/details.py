"""What a request asks to know of its model beside its scores: intervals, and how much each column matters.

Axes: N rows, F features.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from core.bundles import Bundle, Interval
from core.conformal import fewest_rows, interval_radius
from core.contract import DistillRequest, TrainRequest
from core.errors import DatasetError, ParameterError, TrainingStoppedError
from core.evaluation import MOST_LISTED
from core.metrics import accuracy, rmse
from core.prediction import as_prediction
from core.splits import Split
from core.target import Target
from core.training import Stop, outputs_of

REPEATS: Final = 5
MOST_ROWS: Final = 10_000
MOST_VALUES: Final = 25_000_000  # of the copy whose columns are shuffled: 100 MB
MOST_OUTPUTS: Final = 20_000_000  # rows computed for all columns together: a minute for small networks

Request = TrainRequest | DistillRequest


class Data(Protocol):
    """The table as training has it."""

    @property
    def split(self) -> Split: ...

    @property
    def features(self) -> Tensor: ...

    @property
    def truth(self) -> np.ndarray: ...


def check_interval(request: Request, target: Target, split: Split) -> None:
    """Refuses an interval that cannot be had, before anything is trained.

    Raises:
        ParameterError: for a classification.
        DatasetError: for fewer validation rows than the level needs.
    """
    if request.interval is None:
        return
    if target.classes is not None:
        raise ParameterError("interval needs a regression: leave it out, or set task", field="interval")
    needed, found = fewest_rows(request.interval), len(split.validation)
    if found < needed:
        raise DatasetError(
            f"interval {request.interval:g} needs {needed} validation rows, there are {found}: lower it.",
            needed=needed,
            rows=found,
        )


def with_details(request: Request, bundle: Bundle, network: nn.Module, data: Data, stop: Stop) -> Bundle:
    """The bundle with its interval, and with what was asked for in the details of its metrics.

    Raises:
        TrainingStoppedError: between two columns.
    """
    details = dict(bundle.metrics["details"])  # type: ignore[call-overload]
    if request.interval is not None:
        errors = {part: _errors(bundle, network, data, getattr(data.split, part)) for part in _PARTS}
        radius = interval_radius(errors["validation"], request.interval)
        bundle = dataclasses.replace(bundle, interval=Interval(request.interval, radius))
        coverage = float(np.mean(np.abs(errors["test"]) <= radius))
        details["interval"] = {"level": request.interval, "radius": radius, "test_coverage": coverage}
    if request.importance:
        details["importance"] = _importance(bundle, network, data, request.random_seed, stop)
    return dataclasses.replace(bundle, metrics={**bundle.metrics, "details": details})


_PARTS: Final = ("validation", "test")


def _errors(bundle: Bundle, network: nn.Module, data: Data, rows: np.ndarray) -> np.ndarray:
    """Truth minus prediction, in the target's units."""
    positions = torch.as_tensor(rows, device=data.features.device)
    outputs_NC = outputs_of(network, data.features, positions).cpu().numpy()
    return data.truth[rows] - as_prediction(bundle, outputs_NC).values  # type: ignore[no-any-return]


def _importance(bundle: Bundle, network: nn.Module, data: Data, seed: int, stop: Stop) -> dict[str, object]:
    """How much worse the test metric gets when a column is shuffled among the test rows (Breiman 2001)."""
    groups, width = bundle.encoder.features_of_columns(), data.features.shape[1]
    most = min(MOST_ROWS, MOST_VALUES // width, MOST_OUTPUTS // (len(groups) * REPEATS))
    generator = np.random.Generator(np.random.PCG64(seed))
    test = data.split.test
    rows = test if len(test) <= most else np.sort(generator.choice(test, most, replace=False))
    truth_N = data.truth[rows]

    def loss(features_NF: Tensor) -> float:
        found = as_prediction(bundle, outputs_of(network, features_NF).cpu().numpy()).values
        return rmse(truth_N, found) if bundle.classes is None else 1 - accuracy(truth_N, found)

    features_NF = data.features[torch.as_tensor(rows, device=data.features.device)]
    found = permutation_importance(loss, features_NF, groups, generator, stop)
    ranked = sorted(found, key=lambda name: -found[name][0])
    return {
        "metric": bundle.metrics["test_metric_name"],
        "rows": len(rows),
        "repeats": REPEATS,
        "columns": [
            {"column": name, "mean": found[name][0], "std": found[name][1]} for name in ranked[:MOST_LISTED]
        ],
        "columns_left_out": max(0, len(ranked) - MOST_LISTED),
    }


def permutation_importance(
    loss: Callable[[Tensor], float],
    features_NF: Tensor,
    groups: Mapping[str, np.ndarray],
    generator: np.random.Generator,
    stop: Stop,
) -> dict[str, tuple[float, float]]:
    """What shuffling adds to the loss: mean and standard deviation over ``REPEATS`` orders of the rows.

    Args:
        features_NF: Shuffled in place, and put back.
        groups: Positions of the features that move together, by the name of what they are of.

    Raises:
        TrainingStoppedError: between two groups.
    """
    base, found = loss(features_NF), {}
    for name, positions in groups.items():
        if stop():
            raise TrainingStoppedError("Training was stopped because nobody waits for its result any more.")
        moved = torch.as_tensor(positions, device=features_NF.device)
        before_NG, added = features_NF[:, moved], []
        for _ in range(REPEATS):
            order = torch.as_tensor(generator.permutation(len(features_NF)), device=features_NF.device)
            features_NF[:, moved] = before_NG[order]
            added.append(loss(features_NF) - base)
        features_NF[:, moved] = before_NG
        found[name] = float(np.mean(added)), float(np.std(added))
    return found
