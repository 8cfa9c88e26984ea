import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.losses import (
    balanced_weights,
    blend,
    cross_entropy,
    distillation_divergence,
    soft_cross_entropy,
    squared_error,
)

# Double precision throughout, so that 1e-12 leaves room for nothing but the order of a few additions.
EXACT = 1e-12


def softmax(logits, temperature=1.0):
    exponents = np.exp(logits / temperature - (logits / temperature).max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


@pytest.fixture
def logits():
    return np.random.default_rng(1).normal(0, 2, (6, 3))


@pytest.fixture
def teacher():
    return np.random.default_rng(2).normal(0, 2, (9, 3))


CLASSES = np.array([2, 0, 0, 1, 2, 2, 1, 0, 0])
ROWS = np.array([8, 0, 3, 3, 5, 1])


def value(objective, outputs):
    return float(objective(torch.tensor(outputs), torch.tensor(ROWS)))


def test_cross_entropy_of_even_logits_is_the_log_of_the_class_count():
    objective = cross_entropy(torch.tensor(CLASSES), 3)
    assert value(objective, np.zeros((6, 3))) == pytest.approx(np.log(3), abs=EXACT)


def test_cross_entropy_is_the_mean_negative_log_likelihood_of_the_batch_rows(logits):
    likelihoods = softmax(logits)[np.arange(6), CLASSES[ROWS]]
    objective = cross_entropy(torch.tensor(CLASSES), 3)
    assert value(objective, logits) == pytest.approx(-np.log(likelihoods).mean(), abs=EXACT)


def test_weighted_cross_entropy_is_a_weighted_mean(logits):
    weights = np.array([0.5, 3.0, 1.25])
    losses = -np.log(softmax(logits)[np.arange(6), CLASSES[ROWS]])
    objective = cross_entropy(torch.tensor(CLASSES), 3, torch.tensor(weights))
    expected = np.average(losses, weights=weights[CLASSES[ROWS]])
    assert value(objective, logits) == pytest.approx(expected, abs=EXACT)


def test_smoothing_mixes_the_true_label_with_the_uniform_distribution(logits):
    smoothed = 0.95 * np.eye(3)[CLASSES[ROWS]] + 0.05 / 3
    expected = -(smoothed * np.log(softmax(logits))).sum(axis=1).mean()
    objective = cross_entropy(torch.tensor(CLASSES), 3, label_smoothing=0.05)
    assert value(objective, logits) == pytest.approx(expected, abs=EXACT)


def test_soft_cross_entropy_to_certain_probabilities_is_cross_entropy(logits):
    certain = torch.tensor(np.eye(3)[CLASSES])
    hard = value(cross_entropy(torch.tensor(CLASSES), 3), logits)
    assert value(soft_cross_entropy(certain), logits) == pytest.approx(hard, abs=EXACT)


def test_soft_cross_entropy_exceeds_the_entropy_by_the_divergence(logits, teacher):
    soft, student = softmax(teacher), softmax(logits)
    divergence = (soft[ROWS] * np.log(soft[ROWS] / student)).sum(axis=1).mean()
    entropy = -(soft[ROWS] * np.log(soft[ROWS])).sum(axis=1).mean()
    found = value(soft_cross_entropy(torch.tensor(soft)), logits)
    assert found == pytest.approx(entropy + divergence, abs=EXACT)


def test_squared_error_is_the_mean_over_the_batch_rows():
    targets, outputs = np.arange(9.0), np.array([[8.5], [0.0], [5.0], [3.0], [5.0], [1.0]])
    expected = (0.5**2 + 2**2) / 6
    assert value(squared_error(torch.tensor(targets)), outputs) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 2.5, 20.0])
def test_divergence_is_that_of_the_softened_outputs_times_the_squared_temperature(
    logits, teacher, temperature
):
    soft, student = softmax(teacher, temperature)[ROWS], softmax(logits, temperature)
    expected = temperature**2 * (soft * np.log(soft / student)).sum(axis=1).mean()
    objective = distillation_divergence(torch.tensor(teacher), temperature)
    # relative, for at T = 0.1 logarithms of 1e-40 are summed
    assert value(objective, logits) == pytest.approx(expected, rel=1e-10, abs=EXACT)


@pytest.mark.parametrize("temperature", [0.5, 2.5, 20.0])
def test_gradient_of_the_divergence_is_the_temperature_times_the_difference_of_probabilities(
    logits, teacher, temperature
):
    """Hinton et al. 2015, equation 2, times T², mean over rows."""
    student = torch.tensor(logits, requires_grad=True)
    distillation_divergence(torch.tensor(teacher), temperature)(student, torch.tensor(ROWS)).backward()
    expected = temperature * (softmax(logits, temperature) - softmax(teacher, temperature)[ROWS]) / len(ROWS)
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=0, atol=EXACT)


def objectives(teacher, dtype=torch.double):
    classes, given = torch.tensor(CLASSES), torch.tensor(teacher, dtype=dtype)
    hard = cross_entropy(classes, 3)
    divergence = distillation_divergence(given, 2.5)
    return {
        "hard": hard,
        "weighted": cross_entropy(classes, 3, torch.tensor([0.5, 3.0, 1.25], dtype=dtype)),
        "smoothed": cross_entropy(classes, 3, label_smoothing=0.05),
        "soft": soft_cross_entropy(given.softmax(1)),
        "divergence": divergence,
        "blend": blend(0.3, hard, divergence),
        "squared": squared_error(given[:, 0]),
        "squared blend": blend(0.3, squared_error(given[:, 0]), squared_error(given[:, 1])),
    }


every_objective = pytest.mark.parametrize("name", objectives(np.zeros((9, 3))))


@every_objective
def test_gradients_agree_with_finite_differences(name, logits, teacher):
    objective = objectives(teacher)[name]
    outputs = torch.tensor(logits[:, :1] if "squared" in name else logits, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: objective(x, torch.tensor(ROWS)), (outputs,))


@every_objective
@settings(deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 12), spread=st.sampled_from([0.0, 1.0, 30.0]))
def test_loss_and_gradient_in_closed_form_are_those_of_autograd(in_double, name, seed, rows, spread):
    rng = np.random.default_rng(seed)
    objective = in_double(objectives(rng.normal(0, 2, (9, 3)))[name])
    picked = torch.tensor(rng.integers(0, 9, rows))
    outputs = torch.tensor(
        spread * rng.normal(size=(rows, 1 if "squared" in name else 3)), requires_grad=True
    )
    expected = objective(outputs, picked)
    expected.backward()
    loss, gradient = objective.gradient(outputs.detach(), picked)
    # the targets of a smoothed label are float32
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient, outputs.grad, rtol=1e-6, atol=1e-8)


def test_divergence_vanishes_with_its_gradient_where_the_student_equals_the_teacher(teacher):
    student = torch.tensor(teacher[ROWS], requires_grad=True)
    loss = distillation_divergence(torch.tensor(teacher), 2.5)(student, torch.tensor(ROWS))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=EXACT)
    assert student.grad.abs().max() < EXACT


def test_divergence_ignores_a_shift_of_the_logits(logits, teacher):
    shifted = distillation_divergence(torch.tensor(teacher + 1000.0), 2.5)
    plain = distillation_divergence(torch.tensor(teacher), 2.5)
    # 1000 costs three of the sixteen digits
    assert value(shifted, logits - 500) == pytest.approx(value(plain, logits), abs=1e-9)


def test_blend_weighs_both_parts(logits):
    objective = blend(0.3, lambda *_: torch.tensor(2.0), lambda *_: torch.tensor(12.0))
    assert value(objective, logits) == pytest.approx(0.3 * 2 + 0.7 * 12)


@pytest.mark.parametrize(("share", "kept"), [(1.0, 0), (0.0, 1), (1, 0), (0, 1)])
def test_a_part_without_weight_is_not_computed(share, kept):
    def first(*_):
        return torch.tensor(1.0)

    def second(*_):
        return torch.tensor(float("nan"))

    assert blend(share, first, second) is (first, second)[kept]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_balanced_weights_give_every_class_the_same_total_and_the_rows_a_mean_of_one(classes):
    weights = balanced_weights(np.array(classes), 6).numpy()
    totals = np.bincount(classes, minlength=6) * weights
    seen = np.unique(classes)
    # float32 weights
    np.testing.assert_allclose(totals[seen], len(classes) / len(seen), rtol=1e-6)
    assert weights[classes].mean() == pytest.approx(1, rel=1e-6)


def test_classes_without_rows_weigh_nothing():
    assert balanced_weights(np.array([0, 0, 2]), 4).tolist() == [0.75, 0.0, 1.5, 0.0]
