"""Networks in evaluation, by NumPy alone: for one row PyTorch's modules take ten times as long.

Batch normalisation is affine there, so it is folded into a linear layer before or after it, in float64.
The members of an ensemble are computed together: their weights have an axis K more, in front of those named.
Axes: N rows, B rows of a block, I inputs, O outputs, H hidden units, C outputs of a model, K members.
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
    """``x W + b``; vectors are matrices of one row."""

    w_IO: np.ndarray
    b_1O: np.ndarray

    def __call__(self, x_BI: np.ndarray) -> np.ndarray:
        y_BO: np.ndarray = x_BI @ self.w_IO
        y_BO += self.b_1O
        return y_BO

    def then(self, scale_1O: np.ndarray, shift_1O: np.ndarray) -> "Affine":
        """``scale y + shift`` of its outputs y."""
        return Affine(self.w_IO * scale_1O, self.b_1O * scale_1O + shift_1O)

    def after(self, scale_1I: np.ndarray, shift_1I: np.ndarray) -> "Affine":
        """Of ``scale x + shift`` in the place of x."""
        return Affine(self.w_IO * scale_1I.swapaxes(-1, -2), self.b_1O + shift_1I @ self.w_IO)

    def single(self) -> "Affine":
        return Affine(np.ascontiguousarray(self.w_IO, np.float32), self.b_1O.astype(np.float32))


def fold(architecture: Architecture, weights: Mapping[str, np.ndarray]) -> Forward:
    """The network of ``core.models`` with these weights, as a function.

    Raises:
        ValueError: if the weights do not fit the architecture.
    """
    members, ready = architecture.members, _Weights(weights, architecture.members)
    networks = (_fold_resnet if architecture.kind == "resnet" else _fold_mlp)(architecture, ready)
    forward = networks if members == 1 else lambda features_BF: mixture(networks(features_BF))
    block_rows = -(-BLOCK_ROWS // members)

    def in_blocks(features_NF: np.ndarray) -> np.ndarray:
        if len(features_NF) <= block_rows:
            return forward(features_NF)
        outputs_NC = np.empty((len(features_NF), architecture.outputs), np.float32)
        for start in range(0, len(features_NF), block_rows):
            outputs_NC[start : start + block_rows] = forward(features_NF[start : start + block_rows])
        return outputs_NC

    return in_blocks


def mixture(outputs_KBC: np.ndarray) -> np.ndarray:
    """The outputs (B, C) of an ensemble: logits whose softmax is the mean of the members' probabilities.

    In regression, C = 1, the mean.
    """
    if outputs_KBC.shape[2] == 1:
        return outputs_KBC.mean(0)  # type: ignore[no-any-return]
    logs_KBC = outputs_KBC - outputs_KBC.max(2, keepdims=True)
    logs_KBC -= np.log(np.exp(logs_KBC).sum(2, keepdims=True))
    highest_BC = logs_KBC.max(0)  # taken out, so that no class has a logit of −∞
    return highest_BC + np.log(np.exp(logs_KBC - highest_BC).mean(0))  # type: ignore[no-any-return]


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
        scale_1H, shift_1H = weights.normalisation(f"{position}", width)
        normalise = scale_1H.astype(np.float32), shift_1H.astype(np.float32)
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

    def __init__(self, weights: Mapping[str, np.ndarray], members: int) -> None:
        self._weights, self._leading = weights, () if members == 1 else (members,)

    def linear(self, name: str, inputs: int, outputs: int) -> Affine:
        w_OI = self._array(f"{name}.weight", (outputs, inputs))
        return Affine(w_OI.swapaxes(-1, -2), self._vector(f"{name}.bias", outputs))

    def normalisation(self, name: str, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Scale γ/s and shift β − mean γ/s with ``s = √(variance + ε)``, each (1, H) float64."""
        gamma, beta, mean, variance = (
            self._vector(f"{name}.{part}", width)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale_1H = gamma / np.sqrt(variance + _EPSILON)
        return scale_1H, beta - mean * scale_1H

    def _vector(self, name: str, width: int) -> np.ndarray:
        return self._array(name, (width,))[..., None, :]

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        array, shape = self._weights.get(name), (*self._leading, *shape)
        if array is None or array.shape != shape:
            found = "absent" if array is None else f"of shape {array.shape}"
            raise ValueError(f"weight {name!r} must have the shape {shape}, however it is {found}")
        return array.astype(np.float64)


_EPSILON = 1e-5  # of torch.nn.BatchNorm1d
