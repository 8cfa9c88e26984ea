"""Scores of a model on held-out rows, in the shape of the contract (section 4)."""

from collections.abc import Mapping

import numpy as np

from core.metrics import classification_metrics, regression_metrics
from core.prediction import Prediction


def report(
    prediction: Prediction, truth_N: np.ndarray, *, train_loss: float | None, test_loss: float | None
) -> dict[str, object]:
    """``metrics`` of a run.

    Args:
        prediction: For the test rows.
        truth_N: Class indices, or values in the target's units.
        train_loss, test_loss: The objective in evaluation mode; of standardised targets in regression.
    """
    scores = _scores(prediction, truth_N)
    name = "rmse" if prediction.classes is None else "accuracy"
    return {
        "task": "regression" if prediction.classes is None else "classification",
        "train_loss": train_loss,
        "test_loss": test_loss,
        "test_metric_name": name,
        "test_metric_value": scores[name],
        "extra": {key: value for key, value in scores.items() if key != name},
    }


def fidelity(student: Prediction, teacher: Prediction) -> float:
    """Share of rows on which both agree, or the root mean squared difference of their values."""
    if student.classes is None:
        return float(np.sqrt(np.mean((student.values - teacher.values) ** 2)))
    return float(np.mean(student.values == teacher.values))


def _scores(prediction: Prediction, truth_N: np.ndarray) -> Mapping[str, float | None]:
    if prediction.probabilities is None:
        return regression_metrics(truth_N, prediction.values)
    assert prediction.classes is not None  # noqa: S101  # probabilities come with classes
    return classification_metrics(truth_N, prediction.probabilities, len(prediction.classes))
