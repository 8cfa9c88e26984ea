"""K networks of one shape side by side, as one network whose every layer is K wide.

All read the same rows. Activations are (B, K·H), a network's next to its neighbour's, so that whatever works
on each unit alone (normalisation, ReLU, dropout) works on all K in one pass; the first layer is one product
with (K·H, F), and each later one a batched product. Axes: B rows, F features, I inputs, O outputs, C outputs
of the last layer, K members.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from core.architecture import Architecture
from core.models import Dropout, Residual, build_network, load_network

Stacked = Mapping[str, Tensor]
"""By the names of ``state_dict`` of one member, each with an axis of K in front."""


class BesideLinear(nn.Module):
    """K linear layers that each read outputs of their own: ``y_k = x_k W_kᵀ + b_k``."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.members = members
        self.weight = nn.Parameter(torch.empty(members, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(members, outputs))

    def forward(self, x: Tensor) -> Tensor:
        x_KBI = x.unflatten(1, (self.members, -1)).transpose(0, 1)
        y_KBO = torch.baddbmm(self.bias.unsqueeze(1), x_KBI, self.weight.transpose(1, 2))
        return y_KBO.transpose(0, 1).flatten(1)


class Mixture(nn.Module):
    """The outputs (B, C) of an ensemble from those of its members (B, K·C).

    Logits whose softmax is the mean of the members' probabilities; in regression, C = 1, the mean.
    """

    def __init__(self, members: int, outputs: int) -> None:
        super().__init__()
        self.shape, self.log_members = (members, outputs), math.log(members)

    def forward(self, outputs: Tensor) -> Tensor:
        outputs_BKC: Tensor = outputs.unflatten(1, self.shape)
        if self.shape[1] == 1:
            return outputs_BKC.mean(1)
        return torch.logsumexp(outputs_BKC.log_softmax(2), 1) - self.log_members


def load_model(architecture: Architecture, weights: Mapping[str, np.ndarray]) -> nn.Sequential:
    """The network of a bundle, in evaluation mode; of an ensemble its members and their mixture.

    Raises:
        RuntimeError: if the weights do not fit the architecture.
    """
    if architecture.members == 1:
        return load_network(architecture, weights)
    stacked = {name: torch.tensor(array) for name, array in weights.items()}
    return ensemble(architecture, architecture.members, stacked).eval()


def ensemble(architecture: Architecture, members: int, stacked: Stacked) -> nn.Sequential:
    """The members side by side and their mixture, on the device of the weights; copies them."""
    return nn.Sequential(
        *side_by_side(architecture, members, stacked), Mixture(members, architecture.outputs)
    )


def side_by_side(architecture: Architecture, members: int, stacked: Stacked) -> nn.Sequential:
    """One network with the outputs (B, K·C) of all members.

    Raises:
        RuntimeError: if the weights do not fit.
    """
    single = build_network(architecture)
    with torch.device("meta"):
        wide = _widen(single, members)
    shapes = {name: tensor.shape for name, tensor in wide.state_dict().items()}
    like = next((tensor for tensor in stacked.values() if tensor.is_floating_point()), torch.empty(0))
    wide.to(like.dtype).to_empty(device=like.device)
    wide.load_state_dict({name: _beside(tensor, name, shapes) for name, tensor in stacked.items()})
    for of_wide, of_single in zip(wide.parameters(), single.parameters(), strict=True):
        of_wide.requires_grad_(of_single.requires_grad)
    return wide


def stack(networks: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The weights and statistics of networks of one shape; copies."""
    states = [network.state_dict() for network in networks]
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def evaluation_rows(network: nn.Module, rows: int) -> int:
    """How many rows to compute at once, so that activations take what those of ``rows`` do of one network."""
    members = max(
        (module.members for module in network.modules() if isinstance(module, BesideLinear)), default=1
    )
    return -(-rows // members)


def _beside(stacked: Tensor, name: str, shapes: Mapping[str, torch.Size]) -> Tensor:
    """A stacked tensor in the shape that it has in the wide network."""
    if name.endswith("num_batches_tracked"):  # evaluation does not ask for it
        return stacked.max()
    return stacked.reshape(shapes[name]) if name in shapes else stacked


def _widen(network: nn.Sequential, members: int) -> nn.Sequential:
    first, *rest = network
    assert isinstance(first, nn.Linear)  # noqa: S101  # so begins every architecture
    wide = nn.Linear(first.in_features, members * first.out_features)
    return nn.Sequential(wide, *(_wide(module, members) for module in rest))


def _wide(module: nn.Module, members: int) -> nn.Module:
    match module:
        case nn.Linear():
            return BesideLinear(members, module.in_features, module.out_features)
        case nn.BatchNorm1d():
            return nn.BatchNorm1d(members * module.num_features)
        case nn.ReLU() | nn.Identity():
            return module
        case Dropout():
            return Dropout(module.probability)
        case Residual():
            block = Residual(1, 0.0, batch_norm=False)
            block.branch = nn.Sequential(*(_wide(part, members) for part in module.branch))
            return block
    raise TypeError(f"no way to put {module} side by side")
