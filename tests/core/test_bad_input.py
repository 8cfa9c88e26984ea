"""Tables at the edge of what can be learned from: an exact answer or a clear error, never a silent NaN."""

import json

import numpy as np
import pyarrow as pa
import pytest

from core.errors import DatasetError
from core.prediction import Predictor

X = np.random.default_rng(0).normal(size=300)
LABELS = np.where(X > 0, "a", "b")


def spoiled(*values):
    column = X.copy()
    column[: len(values)] = values
    return column


MANY = 1_000_000
LEARNED = {
    "four rows": ({"x": [1.0, 2.0, 3.0, 4.0], "y": [1.5, 2.5, 3.5, 4.5]}, {}),
    "one class in most batches": (
        {"x": X[:40], "y": ["a"] * 38 + ["b"] * 2},
        {"batch_size": 2, "training_mode": "imbalance_aware"},
    ),
    "batches of two and one row left": (
        {"x": X[:42], "y": LABELS[:42]},
        {"batch_size": 2, "training_mode": "tabresnet"},
    ),
    "a constant feature": ({"x": X, "c": [3.0] * 300, "y": LABELS}, {}),
    "a class of one row": (
        {"x": X, "y": ["a"] * 150 + ["b"] * 149 + ["c"]},
        {"training_mode": "calibrated_classifier"},
    ),
    "infinite values": ({"x": spoiled(np.inf, -np.inf), "y": LABELS}, {}),
    "values at the end of float64": ({"x": spoiled(1e308, -1e308), "y": LABELS}, {}),
    "5,000 columns": ({f"x{i}": np.roll(X, i)[:100] for i in range(5000)} | {"y": LABELS[:100]}, {}),
    "a million categories": (
        {"c": np.arange(MANY).astype(str), "x": np.resize(X, MANY), "y": np.resize(LABELS, MANY)},
        {"epochs": 1, "early_stopping_patience": 0, "batch_size": 65_536},
    ),
    "a learning rate of 1": (
        {"x": X * 1e30, "y": X**3},
        {"learning_rate": 1.0, "training_mode": "tabresnet"},
    ),
}


@pytest.mark.parametrize("name", LEARNED)
def test_what_can_be_learned_from_has_finite_weights_metrics_and_predictions(engine, name):
    table, fields = LEARNED[name]
    bundle = engine.train(pa.table(table), **fields).bundle
    assert all(np.isfinite(array).all() for array in bundle.weights.values())
    json.dumps(bundle.metrics, allow_nan=False)
    predictor = Predictor(bundle)
    columns = {column: pa.array(values[:50]) for column, values in table.items() if column != "y"}
    prediction = predictor.predict(predictor.encode(columns).features)
    said = prediction.values if prediction.probabilities is None else prediction.probabilities
    assert np.isfinite(said).all()


REFUSED = {
    "one row": ({"x": [1.0], "y": ["a"]}, "needs values in at least 2 rows"),
    "fewer rows than parts": ({"x": [1.0, 2.0], "y": ["a", "b"]}, "too few for training, validation"),
    "one class": ({"x": X, "y": ["a"] * 300}, "must vary, however all 300 values are equal"),
    "constant features alone": ({"c": [3.0] * 300, "y": LABELS}, "None of the 1 feature columns is of use"),
    "a million classes": ({"x": np.resize(X, MANY), "y": np.arange(MANY).astype(str)}, "may have 1,000"),
    "an infinite target": ({"x": X, "y": spoiled(np.inf)}, "must be finite, however 1 values are infinite"),
    "a target beyond float32": ({"x": X, "y": spoiled(1e308)}, "too extreme to learn from"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_learned_from_is_refused_before_training(engine, name):
    table, message = REFUSED[name]
    with pytest.raises(DatasetError, match=message):
        next(engine.work(pa.table(table)))
