import json
import math

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from core import metrics

# Sums of at most 40 terms in float64: the two implementations differ by their order of addition only.
TOLERANCE = 1e-12


@st.composite
def judged(draw, ties=True):
    """Labels and probabilities; a grid of few values makes ties common."""
    n_classes, n = draw(st.integers(2, 5)), draw(st.integers(1, 40))
    y = draw(arrays(np.int64, n, elements=st.integers(0, n_classes - 1)))
    cells = st.integers(0, 4) if ties else st.floats(0, 1).map(lambda x: x + 1e-3)
    weights = draw(arrays(np.float64, (n, n_classes), elements=cells)) + (0.0 if not ties else 1e-9)
    return y, weights / weights.sum(axis=1, keepdims=True), n_classes


@given(judged())
def test_accuracy_and_f1_are_those_of_scikit_learn(case):
    y, probabilities, _ = case
    predicted = probabilities.argmax(axis=1)
    assert metrics.accuracy(y, predicted) == pytest.approx(
        reference.accuracy_score(y, predicted), abs=TOLERANCE
    )
    expected = reference.f1_score(y, predicted, average="macro", zero_division=0)
    assert metrics.f1_macro(y, predicted) == pytest.approx(expected, abs=TOLERANCE)


@given(judged() | judged(ties=False))
def test_roc_auc_is_that_of_scikit_learn_or_none(case):
    y, probabilities, n_classes = case
    if len(set(y.tolist())) < n_classes:
        assert metrics.roc_auc(y, probabilities) is None
        return
    if n_classes == 2:
        expected = reference.roc_auc_score(y, probabilities[:, 1])
    else:
        expected = reference.roc_auc_score(y, probabilities, multi_class="ovr", average="macro")
    assert metrics.roc_auc(y, probabilities) == pytest.approx(expected, abs=TOLERANCE)


def test_roc_auc_counts_a_tie_as_half():
    assert metrics.roc_auc(np.array([0, 1]), np.full((2, 2), 0.5)) == 0.5


@given(judged(), st.sampled_from([np.float64, np.float32]))
def test_log_loss_is_that_of_scikit_learn(case, dtype):
    y, probabilities, n_classes = case
    probabilities = np.where(probabilities < 1e-6, 0, probabilities).astype(
        dtype
    )  # exact zeros need the clip
    expected = reference.log_loss(y, probabilities, labels=range(n_classes))
    # scikit-learn sums float32 probabilities in float32
    tolerance = TOLERANCE if dtype == np.float64 else 1e-5
    assert metrics.log_loss(y, probabilities) == pytest.approx(expected, rel=tolerance, abs=tolerance)


@given(judged() | judged(ties=False))
def test_ece_is_the_loop_of_its_definition(case):
    y, probabilities, _ = case
    expected = 0.0
    for m in range(1, 16):
        rows = [
            i
            for i, p in enumerate(probabilities)
            if (m - 1) / 15 < p.max() <= m / 15 or (m == 15 and p.max() > 1)  # a sum may round above 1
        ]
        if rows:
            hits = np.mean([probabilities[i].argmax() == y[i] for i in rows])
            expected += len(rows) / len(y) * abs(hits - np.mean([probabilities[i].max() for i in rows]))
    assert metrics.ece(y, probabilities) == pytest.approx(expected, abs=TOLERANCE)


def test_ece_is_zero_where_confidence_equals_accuracy():
    y = np.array([0, 0, 0, 1])
    assert metrics.ece(y, np.tile([0.75, 0.25], (4, 1))) == 0


VALUES = st.floats(-1e6, 1e6).map(lambda x: round(x, 3))


@given(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=40))
def test_regression_metrics_are_those_of_scikit_learn(pairs):
    y, prediction = np.array(pairs).T
    ours = metrics.regression_metrics(y, prediction)
    assert ours["rmse"] == pytest.approx(reference.root_mean_squared_error(y, prediction), rel=1e-12)
    assert ours["mae"] == pytest.approx(reference.mean_absolute_error(y, prediction), rel=1e-12)
    assert ours["r2"] == pytest.approx(reference.r2_score(y, prediction), rel=1e-9, abs=1e-12)


def test_r2_of_a_single_row_is_undefined():
    assert metrics.r2(np.array([1.0]), np.array([2.0])) is None


@pytest.mark.parametrize(("prediction", "expected"), [(3.0, 1.0), (4.0, 0.0)])
def test_r2_of_a_constant_target_is_one_or_zero(prediction, expected):
    assert metrics.r2(np.full(5, 3.0), np.full(5, prediction)) == expected


def test_float32_predictions_are_judged_in_float64():
    y, prediction = np.full(3, 16_777_217.0), np.full(3, 16_777_216.0, np.float32)
    assert metrics.rmse(y, prediction) == 1


@given(judged())
def test_classification_metrics_are_finite_json(case):
    y, probabilities, n_classes = case
    found = metrics.classification_metrics(y, probabilities, n_classes)
    assert list(found) == ["accuracy", "f1_macro", "roc_auc", "log_loss", "ece"]
    assert all(value is None or math.isfinite(value) for value in found.values())
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_probabilities_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"must be \(2, 3\)"):
        metrics.classification_metrics(np.array([0, 1]), np.full((2, 2), 0.5), 3)


# ── By class ────────────────────────────────────────────────────────────────────────────────────────────────

LABELS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


@given(LABELS)
def test_scores_of_each_class_and_the_confusion_matrix_are_those_of_scikit_learn(pairs):
    y, predicted = np.array(pairs).T
    found = metrics.confusion_matrix(y, predicted, 5)
    assert np.array_equal(found, reference.confusion_matrix(y, predicted, labels=range(5)))
    *expected, support = reference.precision_recall_fscore_support(
        y, predicted, labels=range(5), zero_division=np.nan
    )
    np.testing.assert_allclose(metrics.precision_recall_f1(found), np.stack(expected, axis=1), rtol=1e-12)
    assert np.array_equal(found.sum(axis=1), support)
