"""The layers in closed form: what each computes and what it hands back, side by side.

``forward`` maps a batch x to the layer's outputs y. ``backward`` takes g, the gradient of the loss by y,
writes the gradients by the layer's weights into their ``grad``, and returns the one by x, which is the g of
the layer below (Rumelhart et al. 1986). Sums run over the rows of the batch.

A layer serves batches of one size. ``Linear`` and ``BatchNorm`` own the buffer of their outputs and keep
their inputs until ``backward``; the others work in place, so that at 256 rows a step stays within the cache.
Axes: B rows, I inputs, O outputs, H hidden units.
"""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from core import ensembles, models
from core.masks import Masks

_threshold_backward = torch.ops.aten.threshold_backward.grad_input
_batch_norm_backward = torch.ops.aten.native_batch_norm_backward.default


class Layer(Protocol):
    def forward(self, x_BI: Tensor) -> Tensor: ...

    def backward(self, g_BO: Tensor) -> Tensor: ...


class Linear:
    """``y = x Wᵀ + b``; by W ``gᵀ x``, by b ``Σ g``, by x ``g W``."""

    def __init__(self, module: nn.Linear, rows: int) -> None:
        self._w_OI, self._w_IO, self._b_O = module.weight, module.weight.t(), module.bias
        self._by_w_OI, self._by_b_O = module.weight.grad, module.bias.grad
        self._y_BO = module.weight.new_empty(rows, module.out_features)

    def forward(self, x_BI: Tensor) -> Tensor:
        self._x_BI = x_BI
        return torch.addmm(self._b_O, x_BI, self._w_IO, out=self._y_BO)

    def backward(self, g_BO: Tensor) -> Tensor:
        self.learn(g_BO)
        return torch.mm(g_BO, self._w_OI)

    def learn(self, g_BO: Tensor) -> None:
        """``backward`` without the gradient by x, for which a first layer has no use."""
        torch.mm(g_BO.t(), self._x_BI, out=self._by_w_OI)
        if self._by_b_O is not None:  # a normalisation that follows leaves it without effect
            torch.sum(g_BO, 0, out=self._by_b_O)


class BesideLinear:
    """``Linear`` of K networks side by side: each product is one of K, and reads every K-th part of a row."""

    def __init__(self, module: ensembles.BesideLinear, rows: int) -> None:
        assert module.weight.grad is not None  # noqa: S101
        members, outputs, inputs = module.weight.shape
        self._w_KOI, self._w_KIO = module.weight, module.weight.transpose(1, 2)
        self._b_K1O, self._by_w_KOI = module.bias.unsqueeze(1), module.weight.grad
        self._by_b_KO = None if module.bias.grad is None else module.bias.grad.view(-1)
        self._y_BKO = module.weight.new_empty(rows, members, outputs)
        self._by_x_BKI = module.weight.new_empty(rows, members, inputs)

    def forward(self, x_BKI: Tensor) -> Tensor:
        self._x_KBI = x_BKI.view_as(self._by_x_BKI).transpose(0, 1)
        torch.baddbmm(self._b_K1O, self._x_KBI, self._w_KIO, out=self._y_BKO.transpose(0, 1))
        return self._y_BKO.flatten(1)

    def backward(self, g_BKO: Tensor) -> Tensor:
        g_KBO = g_BKO.view_as(self._y_BKO).transpose(0, 1)
        torch.bmm(g_KBO.transpose(1, 2), self._x_KBI, out=self._by_w_KOI)
        if self._by_b_KO is not None:
            torch.sum(g_BKO, 0, out=self._by_b_KO)
        torch.bmm(g_KBO, self._w_KOI, out=self._by_x_BKI.transpose(0, 1))
        return self._by_x_BKI.flatten(1)


class BatchNorm:
    """``x̂ = (x − mean) / s`` with ``s = √(variance + ε)``, ``y = γ x̂ + β`` (Ioffe and Szegedy 2015).

    By γ ``Σ g x̂``, by β ``Σ g``, by x ``γ/s · (g − (Σ g + x̂ Σ g x̂) / B)``: their section 3, put together.
    PyTorch has each way as one pass over the batch.
    """

    def __init__(self, module: nn.BatchNorm1d, rows: int) -> None:
        assert module.weight.grad is not None and module.bias.grad is not None  # noqa: S101, PT018
        assert module.momentum is not None  # noqa: S101
        self._gamma_H, self._beta_H = module.weight, module.bias
        self._by_gamma_beta = module.weight.grad, module.bias.grad
        self._running = module.running_mean, module.running_var
        self._momentum, self._epsilon = module.momentum, module.eps
        self._of_batch = torch.empty_like(module.bias), torch.empty_like(module.bias)  # mean, 1/s
        self._out = (module.weight.new_empty(rows, module.num_features), *self._of_batch)

    def forward(self, x_BH: Tensor) -> Tensor:
        self._x_BH = x_BH
        torch.native_batch_norm(
            x_BH,
            self._gamma_H,
            self._beta_H,
            *self._running,
            True,
            self._momentum,
            self._epsilon,
            out=self._out,
        )
        return self._out[0]

    def backward(self, g_BH: Tensor) -> Tensor:
        by_x_BH, *by_gamma_beta = _batch_norm_backward(
            g_BH, self._x_BH, self._gamma_H, None, None, *self._of_batch, True, self._epsilon, [True] * 3
        )
        torch._foreach_copy_(self._by_gamma_beta, by_gamma_beta)
        return by_x_BH  # type: ignore[no-any-return]


class ReLU:
    """``y = max(x, 0)``; by x ``g`` where ``y > 0``, else 0 (Nair and Hinton 2010)."""

    def forward(self, x_BH: Tensor) -> Tensor:
        self._y_BH = x_BH.relu_()
        return self._y_BH

    def backward(self, g_BH: Tensor) -> Tensor:
        # dropout may have set some of y to 0 since; there it has set g to 0 as well
        return _threshold_backward(g_BH, self._y_BH, 0, grad_input=g_BH)  # type: ignore[no-any-return]


class Dropout:
    """``y = m x`` with m 0 or ``1 / kept share``; by x ``m g`` (Srivastava et al. 2014)."""

    def __init__(self, masks: Masks) -> None:
        self._masks = masks

    def forward(self, x_BH: Tensor) -> Tensor:
        self._m = self._masks.draw(x_BH)  # (B, H), or (B, K, H) of networks side by side
        x_BH.view_as(self._m).mul_(self._m)
        return x_BH

    def backward(self, g_BH: Tensor) -> Tensor:
        g_BH.view_as(self._m).mul_(self._m)
        return g_BH


class Residual:
    """``y = x + f(x)``; by x ``g`` and what f hands back of it (He et al. 2016)."""

    def __init__(self, branch: "Chain") -> None:
        self._branch = branch

    def forward(self, x_BH: Tensor) -> Tensor:
        return self._branch.forward(x_BH).add_(x_BH)

    def backward(self, g_BH: Tensor) -> Tensor:
        return self._branch.backward(g_BH).add_(g_BH)


class Chain:
    """One layer after the other, and back by the chain rule."""

    def __init__(self, modules: Iterable[nn.Module], rows: int) -> None:
        layers = (_layer(module, rows) for module in modules)
        self._layers = [layer for layer in layers if layer is not None]

    def forward(self, x_BI: Tensor) -> Tensor:
        for layer in self._layers:
            x_BI = layer.forward(x_BI)
        return x_BI

    def backward(self, g_BO: Tensor) -> Tensor:
        for layer in reversed(self._layers):
            g_BO = layer.backward(g_BO)
        return g_BO


class Network:
    """A network of ``core.models`` in training, for batches of ``rows`` rows.

    It works on the module's own weights. Those that learn must have a ``grad`` to write into.
    """

    def __init__(self, module: nn.Sequential, rows: int) -> None:
        first, *rest = module
        assert isinstance(first, nn.Linear)  # noqa: S101  # so begins every architecture
        self._first, self._rest = Linear(first, rows), Chain(rest, rows)

    def forward(self, x_BF: Tensor) -> Tensor:
        return self._rest.forward(self._first.forward(x_BF))

    def backward(self, g_BC: Tensor) -> None:
        self._first.learn(self._rest.backward(g_BC))


def _layer(module: nn.Module, rows: int) -> Layer | None:
    """The closed form of a module; None for one that does nothing."""
    match module:
        case nn.Linear():
            return Linear(module, rows)
        case ensembles.BesideLinear():
            return BesideLinear(module, rows)
        case nn.BatchNorm1d():
            return BatchNorm(module, rows)
        case nn.ReLU():
            return ReLU()
        case models.Dropout(probability=0) | nn.Identity():
            return None
        case models.Dropout(masks=masks) if masks is not None:
            return Dropout(masks)
        case models.Residual():
            return Residual(Chain(module.branch, rows))
    raise TypeError(f"no closed form for {module}")
