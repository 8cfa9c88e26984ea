"""Networks of PyTorch, built from an ``Architecture``.

Axes: B rows, F encoded features, H hidden units, C outputs.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from core.architecture import Architecture
from core.masks import Masks, masks_for


class Dropout(nn.Module):
    """Inverted dropout (Srivastava et al. 2014); whoever trains must give it its ``masks``."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.masks: Masks | None = None

    def forward(self, x_BH: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x_BH
        assert self.masks is not None  # noqa: S101
        masks = self.masks.draw(x_BH)
        return (x_BH.view_as(masks) * masks).view_as(x_BH)


class Residual(nn.Module):
    """``x + f(x)`` with ``f`` = normalise, widen, ReLU, dropout, project (Gorishniy et al. 2021, ResNet)."""

    def __init__(self, width: int, dropout: float, batch_norm: bool) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm1d(width) if batch_norm else nn.Identity(),
            nn.Linear(width, width),
            nn.ReLU(),
            Dropout(dropout),
            nn.Linear(width, width),
        )

    def forward(self, x_BH: Tensor) -> Tensor:
        return x_BH + self.branch(x_BH)  # type: ignore[no-any-return]


def build_network(architecture: Architecture) -> nn.Sequential:
    """A network with undefined weights, in float32 on the CPU: initialise or load before use."""
    with torch.device("meta"):
        network = nn.Sequential(*_layers(architecture))
    for layer in _normalised(network, architecture):
        layer.bias.requires_grad_(False)
    return network.to_empty(device="cpu")


def initialise(network: nn.Module, seed: int, silent_inputs: np.ndarray) -> None:
    """Draws all weights from ``seed``: Kaiming uniform as ``nn.Linear`` does, independent of global state.

    Args:
        silent_inputs: Features that are 0 in every training row. Their weights get no gradient, so they
            start, and stay, at 0 instead of adding noise when such a feature is first seen at prediction.
    """
    generator = torch.Generator().manual_seed(seed)
    first = True
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.in_features)
                module.weight.uniform_(-bound, bound, generator=generator)
                module.bias.uniform_(-bound, bound, generator=generator)
                if first:
                    module.weight[:, torch.as_tensor(silent_inputs, dtype=torch.long)] = 0
                first = False
            elif isinstance(module, nn.BatchNorm1d):
                module.reset_parameters()


def seed_dropout(network: nn.Module, seed: int, device: torch.device) -> None:
    """Gives each dropout a stream of masks of its own."""
    dropouts = (module for module in network.modules() if isinstance(module, Dropout))
    for stream, dropout in enumerate(dropouts):
        dropout.masks = masks_for(dropout.probability, device, seed, stream)


def begin_epoch(network: nn.Module, epoch: int) -> None:
    """Lets each dropout go on with the masks of that epoch."""
    for module in network.modules():
        if isinstance(module, Dropout) and module.masks is not None:
            module.masks.begin(epoch)


def load_network(architecture: Architecture, weights: Mapping[str, np.ndarray]) -> nn.Sequential:
    """The network with the given weights, in evaluation mode.

    Raises:
        RuntimeError: if the weights do not fit the architecture.
    """
    network = build_network(architecture)
    network.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    return network.eval()


def export_weights(network: nn.Module) -> dict[str, np.ndarray]:
    """Copies of all weights and running statistics."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in network.state_dict().items()}


def count_parameters(network: nn.Module) -> int:
    """How many numbers training changes: biases and normalisation weights, but no running statistics."""
    return sum(parameter.numel() for parameter in network.parameters())


def _normalised(network: nn.Sequential, architecture: Architecture) -> list[nn.Linear]:
    """The layers whose bias the mean of a normalisation takes away again.

    The gradient of such a bias is rounding noise, which Adam would blow up to steps of the learning rate.
    """
    if not architecture.batch_norm:
        return []
    layers = list(network)
    if architecture.kind == "resnet":  # all that is added to the residual stream is normalised before its use
        layers = [
            layers[0],
            *(block.branch[-1] for block in layers if isinstance(block, Residual)),
            layers[-1],
        ]
    return [layer for layer in layers[:-1] if isinstance(layer, nn.Linear)]


def _layers(a: Architecture) -> list[nn.Module]:
    if a.kind == "linear":
        return [nn.Linear(a.inputs, a.outputs)]
    if a.kind == "resnet":
        blocks = [Residual(a.hidden_dim, a.dropout, a.batch_norm) for _ in range(a.num_hidden_layers)]
        normalise = [nn.BatchNorm1d(a.hidden_dim)] if a.batch_norm else []
        first, last = nn.Linear(a.inputs, a.hidden_dim), nn.Linear(a.hidden_dim, a.outputs)
        return [first, *blocks, *normalise, nn.ReLU(), last]
    layers: list[nn.Module] = []
    width = a.inputs
    for _ in range(a.num_hidden_layers):
        layers.append(nn.Linear(width, a.hidden_dim))
        if a.batch_norm:
            layers.append(nn.BatchNorm1d(a.hidden_dim))
        layers += [nn.ReLU(), Dropout(a.dropout)]
        width = a.hidden_dim
    return [*layers, nn.Linear(width, a.outputs)]
