"""Objectives: what one batch costs. Axes: N training rows, B rows of a batch, C classes."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Objective = Callable[[Tensor, Tensor], Tensor]
"""``(outputs_BC, rows_B) -> scalar loss``; ``rows_B`` says which rows of the table the batch holds."""


def cross_entropy(
    classes_N: Tensor, weights_C: Tensor | None = None, label_smoothing: float = 0.0
) -> Objective:
    """Mean negative log-likelihood of the true class, weighted per class where weights are given."""

    def objective(logits_BC: Tensor, rows_B: Tensor) -> Tensor:
        return functional.cross_entropy(
            logits_BC, classes_N[rows_B], weight=weights_C, label_smoothing=label_smoothing
        )

    return objective


def squared_error(values_N: Tensor) -> Objective:
    """Mean squared error of standardised targets."""

    def objective(outputs_B1: Tensor, rows_B: Tensor) -> Tensor:
        return functional.mse_loss(outputs_B1.squeeze(1), values_N[rows_B])

    return objective


def soft_cross_entropy(probabilities_NC: Tensor) -> Objective:
    """Mean cross-entropy to given class probabilities."""

    def objective(logits_BC: Tensor, rows_B: Tensor) -> Tensor:
        return functional.cross_entropy(logits_BC, probabilities_NC[rows_B])

    return objective


def distillation_divergence(teacher_logits_NC: Tensor, temperature: float) -> Objective:
    """``T² · KL(teacher ‖ student)`` of outputs softened by T, mean over rows (Hinton et al. 2015).

    The teacher's softened probabilities are computed here, once for all rows.
    """
    teacher_NC = functional.log_softmax(teacher_logits_NC / temperature, dim=1)

    def objective(logits_BC: Tensor, rows_B: Tensor) -> Tensor:
        student_BC = functional.log_softmax(logits_BC / temperature, dim=1)
        divergence = functional.kl_div(student_BC, teacher_NC[rows_B], reduction="batchmean", log_target=True)
        return temperature**2 * divergence

    return objective


def blend(share: float, first: Objective, second: Objective) -> Objective:
    """``share · first + (1 − share) · second``; a part of weight 0 is not computed."""
    if share in (0.0, 1.0):
        return first if share else second

    def objective(outputs_BC: Tensor, rows_B: Tensor) -> Tensor:
        return share * first(outputs_BC, rows_B) + (1 - share) * second(outputs_BC, rows_B)

    return objective


def balanced_weights(classes_N: np.ndarray, n_classes: int) -> Tensor:
    """Weights (C,) inverse to class frequency, mean 1 over the rows (King and Zeng 2001).

    Classes without rows get weight 0.
    """
    counts_C = np.bincount(classes_N, minlength=n_classes)
    weights_C = np.zeros(n_classes)
    seen = counts_C > 0
    weights_C[seen] = len(classes_N) / (seen.sum() * counts_C[seen])
    return torch.as_tensor(weights_C, dtype=torch.float32)
