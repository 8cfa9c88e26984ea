"""One optimisation step of networks side by side, each with a learning rate of its own.

Axes: N rows of the table, B rows of a batch, F features, K members, C outputs, P weights of one parameter.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.layers import Network
from core.losses import Objective
from core.steps import Adam, batch_counts, flatten, learning


@dataclass(frozen=True, slots=True)
class Moments:
    """What Adam remembers of K networks.

    Attributes:
        means, squares: For each parameter the mean gradients (K, P) and the mean squared ones.
        steps: How many there were, a scalar.
    """

    means: list[Tensor]
    squares: list[Tensor]
    steps: Tensor

    def of(self, members: list[int] | slice) -> "Moments":
        """Those of some members; of a slice they are views."""
        means, squares = ([v[members] for v in vectors] for vectors in (self.means, self.squares))
        return Moments(means, squares, self.steps)


class StackedStep:
    """``FlatStep`` of K networks side by side, each with a learning rate of its own.

    Args:
        learning_rates: (K,); neighbours with the same one share a call of Adam.
        moments: Of Adam, to go on from.
    """

    def __init__(
        self,
        network: nn.Sequential,
        learning_rates: Sequence[float],
        objective: Objective,
        features_NF: Tensor,
        moments: Moments | None = None,
    ) -> None:
        self._network, self._members = network, len(learning_rates)
        self._objective, self._features_NF = objective, features_NF
        weights, gradients = (_by_member(flat, network, self._members) for flat in flatten(network))
        self.moments = moments or _no_moments(weights)
        self._adams = [
            (rate, _adam(weights, gradients, self.moments, part)) for rate, part in _by_rate(learning_rates)
        ]
        self._counts = [self.moments.steps, *batch_counts(network)]
        self._batches: dict[int, tuple[Tensor, Network]] = {}

    @torch.inference_mode()
    def __call__(self, rows_B: Tensor, share: float) -> Tensor:
        """Learns from the rows at that share of each learning rate; returns their losses (K,) before."""
        x_BF, network = self._batch(len(rows_B))
        torch._foreach_add_(self._counts, 1)
        torch.index_select(self._features_NF, 0, rows_B, out=x_BF)
        outputs_BKC = network.forward(x_BF).unflatten(1, (self._members, -1))
        losses_K, by_outputs_BKC = self._objective.gradient(outputs_BKC, rows_B)
        network.backward(by_outputs_BKC.flatten(1))
        for rate, adam in self._adams:
            adam.step(rate * share)
        return losses_K

    def _batch(self, rows: int) -> tuple[Tensor, Network]:
        if rows not in self._batches:
            x_BF = self._features_NF.new_empty(rows, self._features_NF.shape[1])
            self._batches[rows] = x_BF, Network(self._network, rows)
        return self._batches[rows]


def _by_member(flat_P: Tensor, network: nn.Sequential, members: int) -> list[Tensor]:
    """A vector of all parameters as one view (K, P) for each of them."""
    sizes = [parameter.numel() for parameter in learning(network)]
    return [part.view(members, -1) for part in flat_P.split(sizes)]


def _no_moments(weights: list[Tensor]) -> Moments:
    means, squares = ([torch.zeros_like(vector) for vector in weights] for _ in range(2))
    return Moments(means, squares, torch.zeros((), device=weights[0].device))


def _adam(weights: list[Tensor], gradients: list[Tensor], moments: Moments, part: slice) -> Adam:
    """Adam over the weights of some neighbours."""
    own, of_part = moments.of(part), [[vector[part] for vector in of] for of in (weights, gradients)]
    return Adam(of_part[0], of_part[1], moments.steps, (own.means, own.squares))


def _by_rate(learning_rates: Sequence[float]) -> Iterator[tuple[float, slice]]:
    """Each learning rate, and the neighbours that have it."""
    start = 0
    for rate, same in itertools.groupby(learning_rates):
        end = start + len(list(same))
        yield rate, slice(start, end)
        start = end
