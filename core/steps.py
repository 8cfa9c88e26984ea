"""How an optimisation step runs. What it computes are the network, the objective and Adam.

``EagerStep`` is the reference: autograd differentiates the modules. ``FlatStep`` computes the same from the
closed forms of ``core.layers`` and ``core.losses``, and every test of the one holds for the other.
Axes: N rows of the table, F features, B rows of a batch, C outputs.
"""

from collections.abc import Callable
from typing import Final, Protocol, TypedDict

import torch
from torch import Tensor, nn

from core.layers import Network
from core.losses import Objective


class Step(Protocol):
    def __call__(self, rows_B: Tensor, learning_rate: float) -> Tensor:
        """Learns from the rows; returns their loss, a scalar tensor, as it was before."""

    def moments(self) -> "Moments":
        """What Adam remembers; copies."""

    def restore(self, moments: "Moments") -> None:
        """Goes on as the step did whose moments these are; raises ValueError if they are of other weights."""


class Moments(TypedDict):
    """Adam's moving means over all P weights that learn, in their order, and how many steps there were."""

    mean_P: Tensor
    square_P: Tensor
    steps: Tensor


StepMaker = Callable[[nn.Sequential, Objective, Tensor], Step]
"""``(network, objective, features_NF) -> step``; all on one device."""


def choose_step(network: nn.Sequential, objective: Objective, features_NF: Tensor) -> Step:
    """The fastest way on the device of the features."""
    make: StepMaker = FlatStep if features_NF.device.type == "cpu" else EagerStep
    return make(network, objective, features_NF)


class EagerStep:
    """Autograd and ``torch.optim.Adam``."""

    def __init__(self, network: nn.Sequential, objective: Objective, features_NF: Tensor) -> None:
        self._network, self._objective, self._features_NF = network, objective, features_NF
        self._optimizer = torch.optim.Adam(learning(network), fused=True)

    def __call__(self, rows_B: Tensor, learning_rate: float) -> Tensor:
        self._network.train()
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._objective(self._network(self._features_NF[rows_B]), rows_B)
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def moments(self) -> Moments:
        kept = [self._optimizer.state[parameter] for parameter in learning(self._network)]
        mean_P, square_P = (torch.cat([state[name].flatten() for state in kept]) for name in _MOMENTS)
        return {"mean_P": mean_P, "square_P": square_P, "steps": kept[0]["step"].clone()}

    def restore(self, moments: Moments) -> None:
        parameters = learning(self._network)
        _check_size(moments, parameters)
        sizes = [parameter.numel() for parameter in parameters]
        means, squares = moments["mean_P"].split(sizes), moments["square_P"].split(sizes)
        for parameter, mean, square in zip(parameters, means, squares, strict=True):
            self._optimizer.state[parameter] = {
                "step": moments["steps"].to(parameter.device, copy=True),
                **{
                    name: value.view_as(parameter).to(parameter.device, copy=True)
                    for name, value in zip(_MOMENTS, (mean, square), strict=True)
                },
            }


class FlatStep:
    """Closed forms over flat weights, buffers of its own, and one call of Adam: for the CPU.

    The network's parameters and their gradients become views of two vectors. With 128 hidden units and
    batches of 64 the products take less time than autograd, allocation and a walk over the parameters.
    """

    def __init__(self, network: nn.Sequential, objective: Objective, features_NF: Tensor) -> None:
        self._network, self._objective, self._features_NF = network, objective, features_NF
        self._steps = torch.zeros((), dtype=torch.float32)
        weights_P, gradients_P = flatten(network)
        self._adam = Adam([weights_P], [gradients_P], self._steps)
        self._counts = [self._steps, *batch_counts(network)]
        self._batches: dict[int, tuple[Tensor, Network]] = {}

    @torch.inference_mode()
    def __call__(self, rows_B: Tensor, learning_rate: float) -> Tensor:
        x_BF, network = self._batch(len(rows_B))
        torch._foreach_add_(self._counts, 1)
        torch.index_select(self._features_NF, 0, rows_B, out=x_BF)
        loss, by_outputs_BC = self._objective.gradient(network.forward(x_BF), rows_B)
        network.backward(by_outputs_BC)
        self._adam.step(learning_rate)
        return loss

    def moments(self) -> Moments:
        (mean_P,), (square_P,) = self._adam.means, self._adam.squares
        return {"mean_P": mean_P.clone(), "square_P": square_P.clone(), "steps": self._steps.clone()}

    def restore(self, moments: Moments) -> None:
        _check_size(moments, learning(self._network))
        self._adam.means[0].copy_(moments["mean_P"])
        self._adam.squares[0].copy_(moments["square_P"])
        self._steps.copy_(moments["steps"])

    def _batch(self, rows: int) -> tuple[Tensor, Network]:
        """Buffers for batches of that size: an epoch has two sizes at most."""
        if rows not in self._batches:
            x_BF = self._features_NF.new_empty(rows, self._features_NF.shape[1])
            self._batches[rows] = x_BF, Network(self._network, rows)
        return self._batches[rows]


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) over vectors of weights, as PyTorch's fused kernel has it.

    Args:
        steps: How many there were, the one to come included; the caller counts.
        moments: Means of the gradients and of their squares to go on from; zeros by default.
    """

    def __init__(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        steps: Tensor,
        moments: tuple[list[Tensor], list[Tensor]] | None = None,
    ) -> None:
        self._vectors = weights, gradients
        self.means, self.squares = moments or (_zeros(weights), _zeros(weights))
        self._steps = [steps] * len(weights)

    def step(self, learning_rate: float) -> None:
        torch._fused_adam_(
            *self._vectors,
            self.means,
            self.squares,
            [],
            self._steps,
            lr=learning_rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )


def _zeros(like: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(vector) for vector in like]


def flatten(network: nn.Module) -> tuple[Tensor, Tensor]:
    """Moves what learns into one vector, its gradients into another; the parameters become views of them."""
    parameters = learning(network)
    weights_P = torch.cat([parameter.detach().flatten() for parameter in parameters])
    gradients_P = torch.zeros_like(weights_P)
    sizes = [parameter.numel() for parameter in parameters]
    parts = zip(parameters, weights_P.split(sizes), gradients_P.split(sizes), strict=True)
    for parameter, weights, gradients in parts:
        parameter.data, parameter.grad = weights.view_as(parameter), gradients.view_as(parameter)
    return weights_P, gradients_P


_MOMENTS: Final = ("exp_avg", "exp_avg_sq")  # as torch.optim.Adam calls them


def _check_size(moments: Moments, parameters: list[nn.Parameter]) -> None:
    size = sum(parameter.numel() for parameter in parameters)
    shapes = tuple(moments[name].shape for name in ("mean_P", "square_P", "steps"))
    if shapes != ((size,), (size,), ()):
        raise ValueError(f"moments must be of {size} weights, however their shapes are {shapes}")


def batch_counts(network: nn.Module) -> list[Tensor]:
    """What the normalisations count themselves on the eager way."""
    norms = (module for module in network.modules() if isinstance(module, nn.BatchNorm1d))
    return [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]


def learning(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that training changes."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
