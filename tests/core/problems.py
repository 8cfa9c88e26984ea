"""Random tables with a network and an objective of some mode: what every way to step is compared on."""

import dataclasses

import numpy as np
import torch
from hypothesis import strategies as st

from core.architecture import Architecture
from core.losses import (
    balanced_weights,
    blend,
    cross_entropy,
    distillation_divergence,
    soft_cross_entropy,
    squared_error,
)
from core.models import build_network, initialise, seed_dropout

CPU = torch.device("cpu")
TABLE = 60
CLASSIFICATION = ["plain", "weighted", "smoothed", "forest", "distilled"]
REGRESSION = ["plain", "forest"]


@dataclasses.dataclass
class Problem:
    """A table, a network for it, and the objective of one of the training modes."""

    architecture: Architecture
    features: torch.Tensor
    objective: object
    seed: int

    def network(self):
        network = build_network(self.architecture)
        initialise(network, self.seed, np.empty(0, np.int64))
        seed_dropout(network, self.seed, CPU)
        return network.to(self.features.dtype).train()

    def doubled(self, in_double):
        return dataclasses.replace(self, features=self.features.double(), objective=in_double(self.objective))


def objective_of(mode, classes, n_classes, soft):
    hard = cross_entropy(classes, n_classes)
    match mode:
        case "plain":
            return hard
        case "weighted":
            return cross_entropy(classes, n_classes, balanced_weights(classes.numpy(), n_classes))
        case "smoothed":
            return cross_entropy(classes, n_classes, label_smoothing=0.05)
        case "forest":
            return blend(0.5, hard, soft_cross_entropy(soft.softmax(1)))
        case "distilled":
            return blend(0.3, hard, distillation_divergence(soft, 2.5))


@st.composite
def problems(draw, varied=0):
    """All kinds of networks, modes and tasks; labels of one class and constant features among them.

    Args:
        varied: How many features are not constant, at least.
    """
    inputs, outputs = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    kind, regression = draw(st.sampled_from(["linear", "mlp", "resnet"])), outputs == 1
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    features = rng.normal(size=(TABLE, inputs))
    features[:, : draw(st.integers(0, inputs - varied))] = draw(st.sampled_from([0.0, 1.0]))
    if kind == "linear":
        architecture = Architecture(kind, inputs, outputs, 0, 0, 0.0, batch_norm=False)
    else:
        width, depth = draw(st.sampled_from([8, 33, 128])), draw(st.integers(1, 3))
        dropout = draw(st.sampled_from([0.0, 0.1, 0.9]))
        architecture = Architecture(kind, inputs, outputs, width, depth, dropout, batch_norm=not regression)
    if regression:
        hard, soft = torch.tensor(rng.normal(size=(2, TABLE)), dtype=torch.float32)
        plain = squared_error(hard)
        objective = (
            plain if draw(st.sampled_from(REGRESSION)) == "plain" else blend(0.5, plain, squared_error(soft))
        )
    else:
        classes = torch.tensor(rng.integers(0, draw(st.sampled_from([1, outputs])), TABLE))
        soft = torch.tensor(rng.normal(0, 2, (TABLE, outputs)), dtype=torch.float32)
        objective = objective_of(draw(st.sampled_from(CLASSIFICATION)), classes, outputs, soft)
    return Problem(
        architecture, torch.tensor(features, dtype=torch.float32), objective, draw(st.integers(0, 10**6))
    )


BATCHES = st.lists(st.integers(0, TABLE - 1), min_size=2, unique=True).map(torch.tensor)
