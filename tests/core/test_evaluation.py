"""What a run says of itself beside its one number."""

import json

import numpy as np
import pytest
import sklearn.metrics

from core.evaluation import MOST_LISTED, by_class
from core.prediction import Prediction, Predictor
from core.splits import split_rows
from core.target import infer_target


def predicted_of(finished, rows):
    predictor = Predictor(finished.bundle)
    columns = {name: finished.table[name].take(rows) for name in finished.table.column_names if name != "y"}
    return predictor.predict(predictor.encode(columns).features).values


@pytest.mark.parametrize("target", ["flag", "number", "five"])
def test_details_of_a_run_are_those_of_scikit_learn_on_the_test_rows(engine, target):
    finished = engine.trained(target)
    found = finished.bundle.metrics["details"]
    truth = infer_target(finished.table["y"], "y", "auto")
    split = split_rows(120, test_size=0.2, validation_size=0.1, seed=42, strata=truth.values)
    y, predicted = truth.values[split.test], predicted_of(finished, split.test)
    labels = range(len(truth.classes))
    expected = sklearn.metrics.precision_recall_fscore_support(
        y, predicted, labels=labels, zero_division=np.nan
    )
    assert [row["class"] for row in found["per_class"]] == list(truth.classes)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        told = np.array([row[name] for row in found["per_class"]], float)  # None is NaN
        np.testing.assert_allclose(told, values, rtol=1e-12)
    assert found["confusion_matrix"] == sklearn.metrics.confusion_matrix(y, predicted, labels=labels).tolist()
    assert found["classes_left_out"] == 0


def test_regression_has_no_classes_to_tell_of(engine):
    assert engine.trained("value").bundle.metrics["details"] == {}


def test_of_many_classes_those_with_most_rows_are_told_in_their_order():
    rng = np.random.default_rng(0)
    count = MOST_LISTED + 20
    truth = np.repeat(np.arange(count), rng.permutation(count) + 1)
    predicted = rng.integers(0, count, len(truth))
    classes = tuple(f"c{index:03}" for index in range(count))
    found = by_class(Prediction(predicted, None, classes), truth)
    support = np.bincount(truth)
    told = np.flatnonzero(support > 20)  # each number of rows comes once
    assert len(told) == MOST_LISTED
    assert [row["class"] for row in found["per_class"]] == [classes[index] for index in told]
    assert [row["support"] for row in found["per_class"]] == support[told].tolist()
    whole = sklearn.metrics.confusion_matrix(truth, predicted, labels=range(count))
    assert found["confusion_matrix"] == whole[np.ix_(told, told)].tolist()
    assert found["classes_left_out"] == 20
    recalls = sklearn.metrics.recall_score(truth, predicted, labels=told, average=None, zero_division=np.nan)
    np.testing.assert_allclose([row["recall"] for row in found["per_class"]], recalls, rtol=1e-12)


def test_what_is_undefined_is_null():
    found = by_class(Prediction(np.array([0, 0]), None, ("a", "b", "c")), np.array([0, 1]))
    rows = [tuple(row.values()) for row in found["per_class"]]
    assert rows == [("a", 0.5, 1.0, 2 / 3, 1), ("b", None, 0.0, 0.0, 1), ("c", None, None, None, 0)]
    json.dumps(found, allow_nan=False)
