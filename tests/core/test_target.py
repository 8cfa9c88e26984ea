import datetime
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DatasetError
from core.target import encode_target, infer_target


def column(values, kind=None):
    return pa.chunked_array([pa.array(values, kind)])


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["b", "a", "b"], ("a", "b")),
        ([True, False, True], (False, True)),
        ([3, 1, 3], (1, 3)),
        ([1.0, 0.0, 1.0], (0.0, 1.0)),
        ([0, 1, 2] * 5, (0, 1, 2)),
        (["é", "z", "Z"], ("Z", "z", "é")),
        ([10, 9] * 3, (9, 10)),
    ],
)
def test_labels_are_found_sorted_and_keep_their_type(values, classes):
    target = infer_target(column(values), "y", "auto")
    assert target.task == "classification"
    assert target.classes == classes
    assert [type(c) for c in target.classes] == [type(c) for c in classes]
    assert [target.classes[i] for i in target.values] == values
    assert target.values.dtype == np.int64
    json.dumps(target.classes)


@pytest.mark.parametrize(
    "values",
    [
        [0.5, 1.5],
        [1, 2, 3],  # three values, one row each
        ([0, 1, 2] * 5)[:-1],  # fewer than five rows for each
        [*range(21)] * 10,  # more than twenty values
        [0.0, 1.0, 2.5] * 20,
    ],
)
def test_other_numbers_are_a_regression(values):
    target = infer_target(column(values), "y", "auto")
    assert (target.task, target.classes) == ("regression", None)
    assert target.values.dtype == np.float64
    assert target.values.tolist() == [float(v) for v in values]


@given(st.lists(st.sampled_from(["x", "y", "zz", None]), min_size=2, max_size=30), st.data())
def test_text_means_the_same_plain_chunked_and_as_dictionary(values, data):
    cut = data.draw(st.integers(0, len(values)))
    chunked = pa.chunked_array([pa.array(values[:cut], pa.string()), pa.array(values[cut:], pa.string())])
    results = []
    for variant in (column(values, pa.string()), chunked, chunked.dictionary_encode()):
        try:
            target = infer_target(variant, "y", "auto")
            results.append((target.classes, target.values.tolist(), target.rows.tolist(), target.dropped))
        except DatasetError as error:
            results.append(error.message)
    assert results[0] == results[1] == results[2]


def test_unused_repeated_and_null_dictionary_entries_are_no_classes():
    encoded = pa.DictionaryArray.from_arrays(
        pa.array([0, 1, 2, 4, None], pa.int8()), pa.array(["b", "a", "b", "unused", None])
    )
    target = infer_target(pa.chunked_array([encoded]), "y", "auto")
    assert target.classes == ("a", "b")
    assert target.values.tolist() == [1, 0, 1]
    assert (target.rows.tolist(), target.dropped) == ([0, 1, 2], 2)


@pytest.mark.parametrize(
    "values",
    [[None, 2.5, float("nan"), 1.0], [None, 2, None, 1], [None, "b", None, "a"], [None, True, None, False]],
)
def test_rows_without_a_target_are_dropped_and_counted(values):
    target = infer_target(column(values), "y", "auto")
    assert (target.rows.tolist(), target.dropped) == ([1, 3], 2)
    assert len(target.values) == 2


@pytest.mark.parametrize(
    ("values", "task", "words"),
    [
        ([None, None], "auto", "no values"),
        (pa.array([None, None], pa.float64()), "regression", "no values"),
        ([float("nan")] * 3, "auto", "no values"),
        ([1, None, None], "auto", "at least 2 rows"),
        ([4, 4, 4], "regression", "all 3 values are equal"),
        (["a", "a"], "auto", "all 2 values are equal"),
        ([True, True], "classification", "all 2 values are equal"),
        (["a", "b"], "regression", "use classification"),
        ([1.0, float("inf"), 2.0], "regression", "1 values are infinite"),
        ([1.0, float("-inf")], "classification", "infinite"),
        ([i / 7 for i in range(1001)], "classification", "has 1,001; use regression"),
        ([*range(1001)], "classification", "1,001"),
        ([f"t{i}" for i in range(1001)], "auto", "1,001"),
        ([datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)], "auto", "dates"),
        ([datetime.datetime(2024, 1, 1), None], "regression", "dates"),
        ([[1], [2]], "auto", "list"),
    ],
)
def test_unfit_targets_are_refused_by_name(values, task, words):
    given_column = pa.chunked_array([values if isinstance(values, pa.Array) else pa.array(values)])
    with pytest.raises(DatasetError, match=words) as caught:
        infer_target(given_column, "price", task)
    assert "'price'" in caught.value.message
    assert caught.value.details["column"] == "price"


def test_a_thousand_classes_are_allowed():
    assert len(infer_target(column([*range(1000)]), "y", "classification").classes) == 1000


def test_booleans_may_be_regressed():
    assert infer_target(column([True, False]), "y", "regression").values.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("classes", "values", "indices"),
    [
        (("a", "b", "c"), ["c", "a", None], [2, 0]),
        ((1, 2, 3), [3.0, 1.0], [2, 0]),
        ((1.0, 2.0), [2, 1], [1, 0]),
        (("1", "2"), [2, 1], [1, 0]),
        ((1, 2), ["2", "1"], [1, 0]),
        ((False, True), [1, 0], [1, 0]),
        ((False, True), ["true", "false"], [1, 0]),
    ],
)
def test_a_student_gets_its_teachers_classes(classes, values, indices):
    target = encode_target(column(values), "y", "classification", classes)
    assert target.classes == classes
    assert target.values.tolist() == indices


def test_values_that_the_teacher_never_saw_are_counted_and_not_shown():
    with pytest.raises(DatasetError, match=r"classes 'a', 'b', however 2 values") as caught:
        encode_target(column(["a", "secret", "b", "hidden"]), "y", "classification", ("a", "b"))
    assert "secret" not in caught.value.message
    assert caught.value.details["unknown"] == 2


def test_a_students_regression_needs_numbers():
    target = encode_target(column([1, 2, None]), "y", "regression", None)
    assert target.values.tolist() == [1.0, 2.0]
    with pytest.raises(DatasetError, match="text"):
        encode_target(column(["1", "2"]), "y", "regression", None)
