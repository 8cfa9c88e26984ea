"""Objectives: what one batch costs, and how that changes with the network's outputs.

Each says both side by side: the loss, which autograd differentiates on the reference path, and loss and
gradient in closed form, which the flat path needs. Axes: N training rows, B rows of a batch, C classes.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


class Objective(Protocol):
    """A scalar loss of outputs (B, C); ``rows_B`` says which rows of the table the batch holds."""

    def __call__(self, outputs_BC: Tensor, rows_B: Tensor, /) -> Tensor:
        """The loss."""

    def gradient(self, outputs_BC: Tensor, rows_B: Tensor, /) -> tuple[Tensor, Tensor]:
        """The loss, and its gradient by the outputs (B, C).

        Of K networks at once, with outputs (B, K, C), the losses are (K,) and the gradient is (B, K, C).
        """


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Mean negative log-likelihood of the true class, weighted per class where weights are given.

    Attributes:
        targets_CC: Row c is what the probabilities should be where c is the true class. Label smoothing by ε
            leaves it ``1 − ε`` and spreads ε over all classes (Szegedy et al. 2016).
    """

    classes_N: Tensor
    weights_C: Tensor | None
    label_smoothing: float
    targets_CC: Tensor

    def __call__(self, logits_BC: Tensor, rows_B: Tensor) -> Tensor:
        return functional.cross_entropy(
            logits_BC, self.classes_N[rows_B], weight=self.weights_C, label_smoothing=self.label_smoothing
        )

    def gradient(self, logits_BC: Tensor, rows_B: Tensor) -> tuple[Tensor, Tensor]:
        classes_B = self.classes_N.index_select(0, rows_B)
        targets_BC = self.targets_CC.index_select(0, classes_B)
        if self.weights_C is None:
            return _softmax_cross_entropy(logits_BC, targets_BC, 1 / len(rows_B))
        weights_B = self.weights_C[classes_B]
        return _softmax_cross_entropy(logits_BC, targets_BC, (weights_B / weights_B.sum())[:, None])


@dataclass(frozen=True, slots=True)
class SoftCrossEntropy:
    """Mean cross-entropy to given class probabilities."""

    probabilities_NC: Tensor

    def __call__(self, logits_BC: Tensor, rows_B: Tensor) -> Tensor:
        return functional.cross_entropy(logits_BC, self.probabilities_NC[rows_B])

    def gradient(self, logits_BC: Tensor, rows_B: Tensor) -> tuple[Tensor, Tensor]:
        targets_BC = self.probabilities_NC.index_select(0, rows_B)
        return _softmax_cross_entropy(logits_BC, targets_BC, 1 / len(rows_B))


@dataclass(frozen=True, slots=True)
class Divergence:
    """``T² · KL(teacher ‖ student)`` of outputs softened by T, mean over rows (Hinton et al. 2015).

    The gradient is ``T · (student − teacher)`` of the softened probabilities (their equation 2, times T²).

    Attributes:
        teacher_NC: Logarithms of the teacher's softened probabilities.
    """

    teacher_NC: Tensor
    temperature: float

    def __call__(self, logits_BC: Tensor, rows_B: Tensor) -> Tensor:
        student_BC = functional.log_softmax(logits_BC / self.temperature, dim=1)
        return self.temperature**2 * _divergence(student_BC, self.teacher_NC[rows_B])

    def gradient(self, logits_BC: Tensor, rows_B: Tensor) -> tuple[Tensor, Tensor]:
        student_BC = _log_softmax(logits_BC / self.temperature)
        teacher_BC = _beside(self.teacher_NC[rows_B], logits_BC)
        shares_BC = teacher_BC.exp()
        misfit = _over_rows(shares_BC * (teacher_BC - student_BC)) * (self.temperature**2 / len(rows_B))
        return misfit, (student_BC.exp() - shares_BC).mul_(self.temperature / len(rows_B))


@dataclass(frozen=True, slots=True)
class SquaredError:
    """Mean squared error of standardised targets; outputs (B, 1)."""

    values_N: Tensor

    def __call__(self, outputs_B1: Tensor, rows_B: Tensor) -> Tensor:
        return functional.mse_loss(outputs_B1.squeeze(1), self.values_N[rows_B])

    def gradient(self, outputs_B1: Tensor, rows_B: Tensor) -> tuple[Tensor, Tensor]:
        errors_B1 = outputs_B1 - _beside(self.values_N[rows_B, None], outputs_B1)
        loss = _over_rows(errors_B1.square()) / len(rows_B)
        return loss, errors_B1.mul_(2 / len(rows_B))


@dataclass(frozen=True, slots=True)
class Blend:
    """``share · first + (1 − share) · second``."""

    share: float
    first: Objective
    second: Objective

    def __call__(self, outputs_BC: Tensor, rows_B: Tensor) -> Tensor:
        return self._mixed(self.first(outputs_BC, rows_B), self.second(outputs_BC, rows_B))

    def gradient(self, outputs_BC: Tensor, rows_B: Tensor) -> tuple[Tensor, Tensor]:
        first, first_BC = self.first.gradient(outputs_BC, rows_B)
        second, second_BC = self.second.gradient(outputs_BC, rows_B)
        return self._mixed(first, second), self._mixed(first_BC, second_BC)

    def _mixed(self, first: Tensor, second: Tensor) -> Tensor:
        return self.share * first + (1 - self.share) * second


def cross_entropy(
    classes_N: Tensor, n_classes: int, weights_C: Tensor | None = None, label_smoothing: float = 0.0
) -> Objective:
    targets_CC = (1 - label_smoothing) * torch.eye(n_classes) + label_smoothing / n_classes
    return CrossEntropy(classes_N, weights_C, label_smoothing, targets_CC.to(classes_N.device))


def soft_cross_entropy(probabilities_NC: Tensor) -> Objective:
    return SoftCrossEntropy(probabilities_NC)


def squared_error(values_N: Tensor) -> Objective:
    return SquaredError(values_N)


def distillation_divergence(teacher_logits_NC: Tensor, temperature: float) -> Objective:
    """The divergence from a teacher, whose softened probabilities are computed here, once for all rows."""
    return Divergence(functional.log_softmax(teacher_logits_NC / temperature, dim=1), temperature)


def blend(share: float, first: Objective, second: Objective) -> Objective:
    """The blend of two objectives; a part of weight 0 is not computed."""
    if share in (0.0, 1.0):
        return first if share else second
    return Blend(share, first, second)


def balanced_weights(classes_N: np.ndarray, n_classes: int) -> Tensor:
    """Weights (C,) inverse to class frequency, mean 1 over the rows (King and Zeng 2001).

    Classes without rows get weight 0.
    """
    counts_C = np.bincount(classes_N, minlength=n_classes)
    weights_C = np.zeros(n_classes)
    seen = counts_C > 0
    weights_C[seen] = len(classes_N) / (seen.sum() * counts_C[seen])
    return torch.as_tensor(weights_C, dtype=torch.float32)


def _softmax_cross_entropy(
    logits_BC: Tensor, targets_BC: Tensor, share_B1: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Sum over the rows of ``−share Σ t log p``, ``p = softmax(z)``; by z ``share (p − t)`` (Bishop 2006)."""
    logs_BC = _log_softmax(logits_BC)
    shares_BC = _beside(targets_BC * share_B1, logs_BC)
    if isinstance(share_B1, Tensor):
        share_B1 = _beside(share_B1, logs_BC)
    loss = -_over_rows(shares_BC * logs_BC)
    return loss, logs_BC.exp_().mul_(share_B1).sub_(shares_BC)


def _log_softmax(outputs: Tensor) -> Tensor:
    """Over the last axis; of K networks PyTorch takes a tenth of the time over the first, copies included."""
    if outputs.dim() == 2:
        return torch.log_softmax(outputs, dim=1)
    return torch.log_softmax(outputs.movedim(2, 0).contiguous(), dim=0).movedim(0, 2).contiguous()


def _beside(of_rows_BC: Tensor, outputs: Tensor) -> Tensor:
    """What holds for the rows, in as many dimensions as the outputs: (B, 1, C) beside those of K networks."""
    return of_rows_BC if outputs.dim() == 2 else of_rows_BC.unsqueeze(1)


def _over_rows(of_outputs: Tensor) -> Tensor:
    """The sum over rows and outputs: a scalar, or (K,)."""
    return of_outputs.sum() if of_outputs.dim() == 2 else of_outputs.sum((0, 2))


def _divergence(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    return functional.kl_div(student_BC, teacher_BC, reduction="batchmean", log_target=True)
