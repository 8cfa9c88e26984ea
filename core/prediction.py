"""Using a bundle: rows in, predictions out. Axes: N rows, F features, C classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from core.bundles import Bundle, Value
from core.encoding import Encoded
from core.errors import ParameterError
from core.inference import fold

Columns = Mapping[str, pa.ChunkedArray | pa.Array | Sequence[object]]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of N rows, in input order.

    Attributes:
        values: Class indices (N,) int64 in classification; values in the target's units (N,) float64.
        probabilities: (N, C) float32, rows sum to 1; None in regression.
    """

    values: np.ndarray
    probabilities: np.ndarray | None
    classes: tuple[Value, ...] | None

    def labels(self) -> list[Value]:
        """The predictions as JSON values: labels of their own type, or floats."""
        if self.classes is None:
            return [float(value) for value in self.values]
        return [self.classes[index] for index in self.values]

    def part(self, start: int, end: int) -> "Prediction":
        probabilities = None if self.probabilities is None else self.probabilities[start:end]
        return Prediction(self.values[start:end], probabilities, self.classes)


class Predictor:
    """A bundle ready for use, without PyTorch. Thread-safe.

    Raises:
        ValueError: from the constructor, if the weights do not fit the architecture.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._forward = fold(bundle.architecture, bundle.weights)

    def intervals(self, values_N: np.ndarray) -> np.ndarray:
        """Low and high around the predicted values of a regression, (N, 2) float64.

        Raises:
            ParameterError: if the model was trained without.
        """
        interval = self.bundle.interval
        if interval is None:
            raise ParameterError(
                "The model has no intervals: leave intervals out, or train with interval, such as 0.9.",
                field="intervals",
            )
        return np.stack([values_N - interval.radius, values_N + interval.radius], axis=1)

    def encode(self, columns: Columns) -> Encoded:
        """Rows of the user as features; raises PredictionInputError where they do not fit the schema."""
        return self.bundle.encoder.transform(columns)

    def predict(self, features_NF: np.ndarray) -> Prediction:
        """Predictions for encoded rows, float32."""
        return as_prediction(self.bundle, self.outputs(features_NF))

    def outputs(self, features_NF: np.ndarray) -> np.ndarray:
        """What the network itself says, float32 (N, C): logits, or standardised values."""
        return self._forward(features_NF)


def as_prediction(bundle: Bundle, outputs_NC: np.ndarray) -> Prediction:
    """Outputs of a bundle's network in the terms of its target."""
    if bundle.classes is None:
        values = outputs_NC[:, 0].astype(np.float64) * bundle.target_std + bundle.target_mean
        return Prediction(values, None, None)
    probabilities_NC = softmax(outputs_NC / np.float32(bundle.temperature))
    return Prediction(probabilities_NC.argmax(axis=1), probabilities_NC, bundle.classes)


def softmax(logits_NC: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, safe against overflow."""
    exponents_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    return exponents_NC / exponents_NC.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


__all__ = ["Columns", "Prediction", "Predictor", "as_prediction", "softmax"]
