"""How good predictions are: exact float64 metrics, as scikit-learn defines them, without scikit-learn.

``y`` (N,) holds class indices below C, or numbers; ``probabilities`` is (N, C), its rows sum to 1.
"""

from typing import Final

import numpy as np

ECE_BINS: Final = 15


def classification_metrics(
    y: np.ndarray, probabilities: np.ndarray, n_classes: int
) -> dict[str, float | None]:
    """All metrics of a classifier that predicts the most probable class, the first of equals.

    Args:
        n_classes: Must be C; a check, for a column too many would otherwise pass unseen.

    Raises:
        ValueError: The shapes do not fit.
    """
    if probabilities.shape != (len(y), n_classes):
        raise ValueError(
            f"probabilities must be {(len(y), n_classes)}, however they are {probabilities.shape}"
        )
    predicted = probabilities.argmax(axis=1)
    return {
        "accuracy": accuracy(y, predicted),
        "f1_macro": f1_macro(y, predicted),
        "roc_auc": roc_auc(y, probabilities),
        "log_loss": log_loss(y, probabilities),
        "ece": ece(y, probabilities),
    }


def confusion_matrix(y: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """How often a class (row) was taken for another (column), (C, C) int64."""
    counts: np.ndarray = np.bincount(y * n_classes + predicted, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes)


def precision_recall_f1(confusion_CC: np.ndarray) -> np.ndarray:
    """Of each class, (C, 3) float64; NaN where it is 0 / 0.

    That is the precision of what was never predicted, the recall of what never occurs, the F1 of both.
    """
    hits_C, true_C, predicted_C = np.diag(confusion_CC), confusion_CC.sum(1), confusion_CC.sum(0)
    with np.errstate(invalid="ignore"):
        return np.stack([hits_C / predicted_C, hits_C / true_C, 2 * hits_C / (true_C + predicted_C)], axis=1)


def regression_metrics(y: np.ndarray, prediction: np.ndarray) -> dict[str, float | None]:
    """All metrics of a regression."""
    return {"rmse": rmse(y, prediction), "mae": mae(y, prediction), "r2": r2(y, prediction)}


def accuracy(y: np.ndarray, predicted: np.ndarray) -> float:
    """Share of rows whose predicted class index is right."""
    return float(np.mean(y == predicted))


def f1_macro(y: np.ndarray, predicted: np.ndarray) -> float:
    """Mean of the F1 scores of the classes that occur in ``y`` or in ``predicted``."""
    size = int(max(y.max(), predicted.max())) + 1
    hits_C = np.bincount(y[y == predicted], minlength=size)
    occurrences_C = np.bincount(y, minlength=size) + np.bincount(predicted, minlength=size)
    present = occurrences_C > 0
    return float(np.mean(2 * hits_C[present] / occurrences_C[present]))


def roc_auc(y: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Area under the ROC curve; the mean of one-vs-rest areas with more than two classes.

    Returns:
        None where a class does not occur in ``y``, which leaves the area undefined.
    """
    n_classes = probabilities.shape[1]
    if n_classes < 2 or np.bincount(y, minlength=n_classes).min() == 0:
        return None
    judged = [1] if n_classes == 2 else range(n_classes)
    return float(np.mean([_binary_auc(y == label, probabilities[:, label]) for label in judged]))


def _binary_auc(positive: np.ndarray, scores: np.ndarray) -> float:
    """The Mann-Whitney statistic from mid-ranks, which count a tie as half (Hanley and McNeil 1982)."""
    _, groups, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    mid_ranks = np.cumsum(sizes) - (sizes - 1) / 2
    positives = int(np.count_nonzero(positive))
    rank_sum = float(mid_ranks[groups[positive]].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * (len(positive) - positives))


def log_loss(y: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean negative log-likelihood, probabilities clipped to [ε, 1 − ε] with ε of their own dtype.

    The clipping is that of scikit-learn 1.9; it keeps a certain but wrong prediction finite.
    """
    eps = np.finfo(probabilities.dtype).eps
    likelihoods = np.clip(probabilities[np.arange(len(y)), y], eps, 1 - eps)
    return float(-np.mean(np.log(likelihoods.astype(np.float64))))


def ece(y: np.ndarray, probabilities: np.ndarray, bins: int = ECE_BINS) -> float:
    """Expected calibration error of the top probability over equal-width bins.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3: bin m holds confidences in
    ((m − 1)/M, m/M], and the gaps between accuracy and mean confidence are weighted by its share of rows.
    """
    confidences = probabilities.max(axis=1).astype(np.float64)
    gaps = (probabilities.argmax(axis=1) == y) - confidences
    edges = np.arange(1, bins) / bins
    sums_M = np.bincount(np.searchsorted(edges, confidences, side="left"), weights=gaps, minlength=bins)
    return float(np.abs(sums_M).sum() / len(y))


def rmse(y: np.ndarray, prediction: np.ndarray) -> float:
    """Root of the mean squared error, in the units of ``y``."""
    return float(np.sqrt(np.mean(_residuals(y, prediction) ** 2)))


def mae(y: np.ndarray, prediction: np.ndarray) -> float:
    """Mean absolute error, in the units of ``y``."""
    return float(np.mean(np.abs(_residuals(y, prediction))))


def r2(y: np.ndarray, prediction: np.ndarray) -> float | None:
    """Coefficient of determination; None for a single row, where it is undefined.

    A constant ``y`` gives 1 when predicted exactly and 0 otherwise, as scikit-learn has it.
    """
    if len(y) < 2:
        return None
    target = y.astype(np.float64)
    residual = float(np.sum(_residuals(y, prediction) ** 2))
    total = float(np.sum((target - target.mean()) ** 2))
    if total == 0:
        return 1.0 if residual == 0 else 0.0
    return 1 - residual / total


def _residuals(y: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    residuals: np.ndarray = np.subtract(y, prediction, dtype=np.float64)
    return residuals
