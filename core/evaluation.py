"""Scores of a model on held-out rows, in the shape of the contract (section 4)."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from core.metrics import classification_metrics, confusion_matrix, precision_recall_f1, regression_metrics
from core.prediction import Prediction

MOST_LISTED: Final = 100  # classes or columns; a thousand classes would make a matrix of 3 MB


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
        "details": {} if prediction.classes is None else by_class(prediction, truth_N),
    }


def by_class(prediction: Prediction, truth_N: np.ndarray) -> dict[str, object]:
    """Scores of each class, and which was taken for which: rows of the matrix are the truth.

    Of more than ``MOST_LISTED`` classes those with the most test rows are told, in their order; the matrix is
    then that of the rows where both truth and prediction are among them.
    """
    assert prediction.classes is not None  # noqa: S101  # the caller knows
    count = len(prediction.classes)
    confusion_CC = confusion_matrix(truth_N, prediction.values, count)
    support_C = confusion_CC.sum(axis=1)
    told = np.sort(np.argsort(-support_C, kind="stable")[:MOST_LISTED])
    scores = precision_recall_f1(confusion_CC)[told]
    return {
        "per_class": [
            {
                "class": prediction.classes[index],
                **{name: _number(value) for name, value in zip(_OF_CLASS, row, strict=True)},
                "support": int(support_C[index]),
            }
            for index, row in zip(told, scores, strict=True)
        ],
        "confusion_matrix": confusion_CC[np.ix_(told, told)].tolist(),
        "classes_left_out": count - len(told),
    }


_OF_CLASS: Final = ("precision", "recall", "f1")


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else float(value)


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
