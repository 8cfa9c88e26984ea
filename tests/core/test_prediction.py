import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from core.contract.modes import ALLOWED_TRAINING_MODES
from core.errors import PredictionInputError
from core.prediction import Prediction, Predictor, as_prediction, softmax


def columns_of(table):
    return {name: table[name] for name in table.column_names if name != "y"}


@given(
    arrays.arrays(
        np.float32, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=st.floats(-1e6, 1e6, width=32)
    )
)
def test_softmax_gives_probabilities_whatever_the_logits(logits):
    found = softmax(logits)
    assert found.dtype == np.float32
    assert (found >= 0).all()
    # six float32 terms
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert (found.max(axis=1) == found[np.arange(len(logits)), logits.argmax(axis=1)]).all()


def test_softmax_is_that_of_the_definition():
    logits = np.log(np.array([[1.0, 2.0, 5.0], [3.0, 3.0, 3.0]]))
    np.testing.assert_allclose(softmax(logits), [[1 / 8, 2 / 8, 5 / 8], [1 / 3, 1 / 3, 1 / 3]], rtol=1e-12)


@pytest.mark.parametrize("mode", ALLOWED_TRAINING_MODES)
def test_a_class_is_the_most_probable_and_has_the_label_s_own_type(engine, mode):
    finished = engine.trained("number", mode)
    predictor = Predictor(finished.bundle)
    prediction = predictor.predict(predictor.encode(columns_of(finished.table)).features)
    assert prediction.probabilities.shape == (120, 2)
    assert prediction.probabilities.dtype == np.float32
    np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1, atol=1e-6)
    labels = prediction.labels()
    assert {type(label) for label in labels} == {int}
    assert labels == [(3, 7)[index] for index in prediction.probabilities.argmax(axis=1)]


def test_a_temperature_divides_the_logits(engine):
    bundle = engine.trained("five", "calibrated_classifier").bundle
    predictor = Predictor(bundle)
    features = np.ones((2, bundle.encoder.width), np.float32)
    expected = softmax(predictor.outputs(features) / np.float32(bundle.temperature))
    assert np.array_equal(predictor.predict(features).probabilities, expected)


def test_values_of_a_regression_are_in_the_target_s_units(engine):
    bundle = engine.trained("value").bundle
    outputs = np.array([[0.0], [1.0]], np.float32)
    found = as_prediction(bundle, outputs)
    assert found.values.tolist() == [bundle.target_mean, bundle.target_mean + bundle.target_std]
    assert (found.probabilities, found.classes) == (None, None)
    assert [type(value) for value in found.labels()] == [float, float]


@pytest.mark.parametrize("target", ["five", "value"])
def test_no_rows_have_no_predictions(engine, target):
    predictor = Predictor(engine.trained(target).bundle)
    names = [column.name for column in predictor.bundle.encoder.columns]
    prediction = predictor.predict(predictor.encode({name: [] for name in names}).features)
    assert prediction.labels() == []
    assert target == "value" or prediction.probabilities.shape == (0, 5)


@pytest.mark.parametrize("mode", ALLOWED_TRAINING_MODES)
def test_a_row_is_predicted_the_same_whatever_stands_beside_it(engine, mode):
    finished = engine.trained("five", mode)
    predictor = Predictor(finished.bundle)
    features = predictor.encode(columns_of(finished.table)).features
    together = predictor.predict(features).probabilities
    alone = np.concatenate([predictor.predict(features[i : i + 1]).probabilities for i in range(20)])
    # float32 products of another shape may be summed in another order
    np.testing.assert_allclose(together[:20], alone, rtol=0, atol=1e-6)


def test_json_rows_and_arrow_columns_are_predicted_the_same(engine):
    finished = engine.trained("five")
    predictor = Predictor(finished.bundle)
    table = columns_of(finished.table)
    lists = {
        name: [value.isoformat() if name == "day" else value for value in column.to_pylist()]
        for name, column in table.items()
    }
    assert np.array_equal(predictor.encode(lists).features, predictor.encode(table).features)


def test_missing_columns_are_named(engine):
    predictor = Predictor(engine.trained("five").bundle)
    with pytest.raises(PredictionInputError, match="'z', 'colour'") as caught:
        predictor.encode({"x": [1.0], "flag": [True], "day": ["2024-01-01"]})
    assert caught.value.details == {"missing": ["z", "colour"]}


def test_unseen_categories_and_nulls_are_counted_and_used(engine):
    finished = engine.trained("five")
    predictor = Predictor(finished.bundle)
    row = {"x": [1.0], "z": [None], "colour": ["mauve"], "flag": [True], "day": [None]}
    encoded = predictor.encode(row)
    assert (encoded.unseen_counts, encoded.null_counts) == ({"colour": 1}, {"z": 1, "day": 1})
    assert np.isfinite(predictor.predict(encoded.features).probabilities).all()


def test_a_part_of_a_prediction_is_that_of_its_rows():
    whole = Prediction(np.arange(3), np.eye(3, dtype=np.float32), ("a", "b", "c"))
    part = whole.part(1, 3)
    assert part.labels() == ["b", "c"]
    assert part.probabilities.tolist() == [[0, 1, 0], [0, 0, 1]]
    assert Prediction(np.arange(3.0), None, None).part(0, 1).labels() == [0.0]


def test_extreme_inputs_give_finite_predictions(engine):
    for target in ("five", "value"):
        predictor = Predictor(engine.trained(target).bundle)
        row = {"x": [1e308, -1e308], "z": [1e-320, None], "colour": ["", "x" * 10_000]}
        row |= {"flag": [True, None], "day": ["0001-01-01", "9999-12-31"]}
        prediction = predictor.predict(predictor.encode(row).features)
        assert np.isfinite(prediction.values).all()
        assert pa.array(prediction.labels()).null_count == 0
