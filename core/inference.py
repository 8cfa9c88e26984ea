"""Networks in evaluation, by NumPy alone: for one row PyTorch's modules take ten times as long.

Batch normalisation is affine there, so it is folded into a linear layer before or after it, in float64.
Axes: N rows, B rows of a block, I inputs, O outputs, H hidden units.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from core.architecture import Architecture

BLOCK_ROWS = 2_048  # whose activations stay in the cache

Forward = Callable[[np.ndarray], np.ndarray]
"""Outputs (N, C) of features (N, F), both float32; thread-safe."""


@dataclass(frozen=True, slots=True)
class Affine:
    """``x W + b``."""

    w_IO: np.ndarray
    b_O: np.ndarray

    def __call__(self, x_BI: np.ndarray) -> np.ndarray:
        y_BO: np.ndarray = x_BI @ self.w_IO
        y_BO += self.b_O
        return y_BO

    def then(self, scale_O: np.ndarray, shift_O: np.ndarray) -> "Affine":
        """``scale y + shift`` of its outputs y."""
        return Affine(self.w_IO * scale_O, self.b_O * scale_O + shift_O)

    def after(self, scale_I: np.ndarray, shift_I: np.ndarray) -> "Affine":
        """Of ``scale x + shift`` in the place of x."""
        return Affine(self.w_IO * scale_I[:, None], self.b_O + shift_I @ self.w_IO)

    def single(self) -> "Affine":
        return Affine(np.ascontiguousarray(self.w_IO, np.float32), self.b_O.astype(np.float32))


def fold(architecture: Architecture, weights: Mapping[str, np.ndarray]) -> Forward:
    """The network of ``core.models`` with these weights, as a function.

    Raises:
        ValueError: if the weights do not fit the architecture.
    """
    forward = (_fold_resnet if architecture.kind == "resnet" else _fold_mlp)(architecture, _Weights(weights))

    def in_blocks(features_NF: np.ndarray) -> np.ndarray:
        if len(features_NF) <= BLOCK_ROWS:
            return forward(features_NF)
        outputs_NC = np.empty((len(features_NF), architecture.outputs), np.float32)
        for start in range(0, len(features_NF), BLOCK_ROWS):
            outputs_NC[start : start + BLOCK_ROWS] = forward(features_NF[start : start + BLOCK_ROWS])
        return outputs_NC

    return in_blocks


def _fold_mlp(a: Architecture, weights: "_Weights") -> Forward:
    """Linear → normalise → ReLU → dropout, as often as there are hidden layers, then linear."""
    hidden, width, position = [], a.inputs, 0
    for _ in range(a.num_hidden_layers):
        layer = weights.linear(f"{position}", width, a.hidden_dim)
        if a.batch_norm:
            layer = layer.then(*weights.normalisation(f"{position + 1}", a.hidden_dim))
        hidden.append(layer.single())
        width, position = a.hidden_dim, position + (4 if a.batch_norm else 3)
    last = weights.linear(f"{position}", width, a.outputs).single()

    def forward(x_BI: np.ndarray) -> np.ndarray:
        for layer in hidden:
            x_BI = _relu(layer(x_BI))
        return last(x_BI)

    return forward


def _fold_resnet(a: Architecture, weights: "_Weights") -> Forward:
    """Linear, blocks of ``x + f(x)`` with f normalise → widen → ReLU → project, normalise → ReLU → linear."""
    width, blocks = a.hidden_dim, []
    for position in range(1, a.num_hidden_layers + 1):
        widen = weights.linear(f"{position}.branch.1", width, width)
        if a.batch_norm:
            widen = widen.after(*weights.normalisation(f"{position}.branch.0", width))
        blocks.append((widen.single(), weights.linear(f"{position}.branch.4", width, width).single()))
    position = a.num_hidden_layers + 1
    first, normalise = weights.linear("0", a.inputs, width).single(), None
    if a.batch_norm:
        scale_H, shift_H = weights.normalisation(f"{position}", width)
        normalise = scale_H.astype(np.float32), shift_H.astype(np.float32)
        position += 1
    last = weights.linear(f"{position + 1}", width, a.outputs).single()

    def forward(x_BI: np.ndarray) -> np.ndarray:
        x_BH = first(x_BI)
        for widen, project in blocks:
            x_BH += project(_relu(widen(x_BH)))
        if normalise is not None:
            x_BH *= normalise[0]
            x_BH += normalise[1]
        return last(_relu(x_BH))

    return forward


def _relu(x_BH: np.ndarray) -> np.ndarray:
    return np.maximum(x_BH, 0, out=x_BH)  # type: ignore[no-any-return]


class _Weights:
    """A bundle's weights by module, checked against the width that is wanted."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self._weights = weights

    def linear(self, name: str, inputs: int, outputs: int) -> Affine:
        w_OI = self._array(f"{name}.weight", (outputs, inputs))
        return Affine(w_OI.T, self._array(f"{name}.bias", (outputs,)))

    def normalisation(self, name: str, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Scale γ/s and shift β − mean γ/s with ``s = √(variance + ε)``, each (H,) float64."""
        gamma, beta, mean, variance = (
            self._array(f"{name}.{part}", (width,))
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale_H = gamma / np.sqrt(variance + _EPSILON)
        return scale_H, beta - mean * scale_H

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        array = self._weights.get(name)
        if array is None or array.shape != shape:
            found = "absent" if array is None else f"of shape {array.shape}"
            raise ValueError(f"weight {name!r} must have the shape {shape}, however it is {found}")
        return array.astype(np.float64)


_EPSILON = 1e-5  # of torch.nn.BatchNorm1d
