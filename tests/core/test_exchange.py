import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DatasetError, MalformedBodyError, PredictionInputError, RequestError, SchemaError
from core.exchange import (
    ARROW,
    CSV,
    JSON,
    NESTING,
    PARQUET,
    TABLES,
    choose_media_type,
    columns_of,
    parse_json,
    parse_predict_body,
    read_columns,
    reference,
    write_arrow,
    write_predictions,
)
from core.prediction import Predictor


def body(**fields):
    return parse_predict_body(json.dumps({"run_id": "r", **fields}).encode())


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"{'a': 1}", b'{"a": 1} x', b"\xff\xfe", b'"\\ud800"'],
)
def test_what_is_not_json_is_a_malformed_body(text):
    with pytest.raises(MalformedBodyError, match="must be JSON") as caught:
        parse_json(text)
    assert len(caught.value.message) < 120


def nested(depth):
    return b"[" * depth + b"]" * depth


def test_depth_of_json_is_bounded_and_the_bound_is_named():
    parse_json(nested(NESTING))
    for text in (nested(NESTING + 2), b"[" * 100_000, b'{"a":' * 5_000):
        with pytest.raises(MalformedBodyError, match=f"nested at most {NESTING} deep"):
            parse_json(text)


@pytest.mark.parametrize("text", [b"NaN", b"[-Infinity]", b'{"rows": [{"a": NaN}]}'])
def test_nan_and_infinity_are_not_json(text):
    with pytest.raises(MalformedBodyError, match="NaN and Infinity are not JSON"):
        parse_json(text)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_json_is_read_as_the_standard_library_reads_it(value):
    text = json.dumps(value)
    assert parse_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    ("fields", "location"),
    [
        ({"run_id": "r"}, ("body",)),
        ({"rows": []}, ("body",)),
        ({"run_id": "r", "model_id": "m", "rows": []}, ("body",)),
        ({"run_id": "r", "rows": [], "columns": {}}, ("body",)),
        ({"run_id": "", "rows": []}, ("body", "run_id")),
        ({"run_id": 1, "rows": []}, ("body", "run_id")),
        ({"run_id": "r", "rows": [1]}, ("body", "rows", 0)),
        ({"run_id": "r", "rows": {}}, ("body", "rows")),
        ({"run_id": "r", "columns": {"a": 1}}, ("body", "columns", "a")),
        ({"run_id": "r", "rows": [], "extra": 1}, ("body", "extra")),
        ([], ("body",)),
    ],
)
def test_a_body_that_does_not_fit_the_schema_is_refused_by_place(fields, location):
    with pytest.raises(SchemaError) as caught:
        parse_predict_body(json.dumps(fields).encode())
    violations = caught.value.details["violations"]
    assert violations[0]["loc"] == location
    assert violations[0].keys() == {"type", "loc", "msg", "input"}


def test_exactly_one_model_is_referred_to():
    assert reference("r", None).kind == "run_id"
    assert (reference(None, "m").kind, reference(None, "m").name) == ("model_id", "m")
    for pair in ((None, None), ("r", "m")):
        with pytest.raises(SchemaError, match="one of run_id and model_id"):
            reference(*pair)


def test_rows_become_the_needed_columns_in_order():
    found = columns_of(body(rows=[{"a": 1, "b": "x", "c": 0}, {"b": None, "a": 2.5}]), ["a", "b"])
    assert found == {"a": [1, 2.5], "b": ["x", None]}


def test_columns_are_taken_as_they_are_without_those_not_needed():
    assert columns_of(body(columns={"a": [1], "c": [1, 2]}), ["a", "b"]) == {"a": [1]}


def test_a_row_that_lacks_a_column_is_named_by_its_index():
    with pytest.raises(PredictionInputError, match="Row 2 lacks column 'b'") as caught:
        columns_of(body(rows=[{"a": 1, "b": 2}, {"a": 1, "b": 2}, {"a": 1}]), ["a", "b"])
    assert caught.value.details == {"row": 2, "column": "b"}


def test_a_column_that_the_first_row_lacks_is_left_for_the_encoder_to_name():
    assert columns_of(body(rows=[{"a": 1}, {"a": 1, "b": 2}]), ["a", "b"]) == {"a": [1, 1]}


def test_no_rows_are_empty_columns():
    assert columns_of(body(rows=[]), ["a", "b"]) == {"a": [], "b": []}


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(PredictionInputError, match="same number of values"):
        columns_of(body(columns={"a": [1], "b": [1, 2]}), ["a", "b"])


TABLE = pa.table({"a": [1, 2], "b": ["x", None]})


def written(media_type):
    sink = io.BytesIO()
    if media_type == PARQUET:
        pa.parquet.write_table(TABLE, sink)
        return sink.getvalue()
    return write_arrow(TABLE) if media_type == ARROW else b"a,b\n1,x\n2,\n"


@pytest.mark.parametrize("media_type", TABLES)
def test_tables_are_read_as_columns(media_type):
    found = read_columns(memoryview(written(media_type)), media_type)
    assert {name: column.to_pylist() for name, column in found.items()} == {"a": [1, 2], "b": ["x", None]}


@pytest.mark.parametrize("media_type", TABLES)
def test_a_table_that_cannot_be_read_is_a_dataset_error(media_type):
    with pytest.raises(DatasetError):
        read_columns(memoryview(b'a,b\n"'), media_type)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, CSV),
        ("", CSV),
        ("*/*", CSV),
        ("application/*", CSV),
        ("application/problem+json", CSV),
        (JSON, JSON),
        (f"text/html, {PARQUET};q=0.9, {JSON}", PARQUET),
        ("Application/JSON", JSON),
        (ARROW, ARROW),
    ],
)
def test_the_first_accepted_type_that_can_be_written_is_chosen(accept, expected):
    assert choose_media_type(accept, CSV) == expected


@pytest.mark.parametrize("accept", ["text/html", "image/png, text/html"])
def test_types_that_cannot_be_written_are_refused(accept):
    with pytest.raises(RequestError, match="Accept must name application/json or a table") as caught:
        choose_media_type(accept, CSV)
    assert caught.value.details["allowed"] == [JSON, *TABLES]
    assert len(caught.value.message) < 100


def read_back(data, media_type):
    """Column names and columns, read by something else than this module where there is something."""
    if media_type == CSV:
        header, *rows = csv.reader(io.StringIO(bytes(data).decode(), newline=""))
        return header, [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in header]
    table = (
        pa.parquet.read_table(pa.BufferReader(data))
        if media_type == PARQUET
        else pa.ipc.open_stream(pa.BufferReader(data)).read_all()
    )
    return table.column_names, [column.to_pylist() for column in table.columns]


AWKWARD = ["a,b", 'quo"te', "new\nline", "ünïcode 漢字 😀", " padded ", "=1+1", "tab\t", "\r\n", "'", ";"]
PROBABILITIES = np.random.default_rng(0).dirichlet(np.ones(len(AWKWARD)), 12).astype(np.float32)


@pytest.mark.parametrize("media_type", TABLES)
def test_awkward_class_names_survive_every_table(media_type):
    labels = [AWKWARD[index] for index in PROBABILITIES.argmax(axis=1)] + AWKWARD
    probabilities = np.concatenate([PROBABILITIES, np.eye(len(AWKWARD), dtype=np.float32)])
    data = write_predictions(labels, AWKWARD, probabilities, [], media_type)
    names, columns = read_back(data, media_type)
    assert names == ["prediction", *(f"probability_{label}" for label in AWKWARD)]
    assert columns[0] == labels
    found = np.array(columns[1:], dtype=np.float64).T
    # CSV writes the shortest decimals that name the same float32
    assert np.array_equal(found.astype(np.float32), probabilities)


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1),
        min_size=2,
        max_size=4,
        unique=True,
    )
)
def test_any_class_names_survive_csv(classes):
    probabilities = np.eye(len(classes), dtype=np.float32)
    names, columns = read_back(write_predictions(classes, classes, probabilities, [], CSV), CSV)
    assert names == ["prediction", *(f"probability_{label}" for label in classes)]
    assert columns[0] == classes


@pytest.mark.parametrize("media_type", [PARQUET, ARROW])
@pytest.mark.parametrize("classes", [(False, True), (3, 7), (0.5, 1.5), ("no", "yes")])
def test_labels_keep_their_type_in_typed_tables(media_type, classes):
    labels = [classes[1], classes[0]]
    data = write_predictions(labels, classes, np.eye(2, dtype=np.float32), [], media_type)
    names, columns = read_back(data, media_type)
    assert columns[0] == labels
    assert [type(value) for value in columns[0]] == [type(label) for label in labels]
    assert names[1:] == [f"probability_{label}" for label in classes]


@pytest.mark.parametrize("media_type", TABLES)
def test_values_of_a_regression_are_one_column(media_type):
    values = np.array([1.5, -2e300, 1 / 3])
    names, (column,) = read_back(write_predictions(values, None, None, [], media_type), media_type)
    assert names == ["prediction"]
    assert [float(value) for value in column] == values.tolist()


@pytest.mark.parametrize("media_type", TABLES)
@pytest.mark.parametrize("classes", [None, ("no", "yes")])
def test_no_predictions_are_a_table_without_rows(media_type, classes):
    probabilities = np.zeros((0, 2), np.float32) if classes else None
    values = [] if classes else np.zeros(0)
    names, columns = read_back(write_predictions(values, classes, probabilities, [], media_type), media_type)
    assert names == ["prediction", *(f"probability_{label}" for label in classes or ())]
    assert not any(columns)


def test_json_answers_have_the_contract_s_shape():
    probabilities = np.array([[0.25, 0.75]], np.float32)
    answer = json.loads(bytes(write_predictions(["ü"], ("a", "ü"), probabilities, ["2 nulls"], JSON)))
    assert answer == {
        "predictions": ["ü"],
        "classes": ["a", "ü"],
        "probabilities": [[0.25, 0.75]],
        "warnings": ["2 nulls"],
    }
    answer = json.loads(bytes(write_predictions([1.5], None, None, [], JSON)))
    assert answer == {"predictions": [1.5], "classes": None, "probabilities": None, "warnings": []}


@pytest.mark.parametrize("media_type", [JSON, *TABLES])
def test_intervals_are_written_beside_the_values(media_type):
    values, intervals = np.array([1.5, -2e300]), np.array([[1.0, 2.0], [-3e300, 1 / 3]])
    data = write_predictions(values.tolist(), None, None, [], media_type, intervals)
    if media_type == JSON:
        assert json.loads(bytes(data))["intervals"] == intervals.tolist()
        return
    names, columns = read_back(data, media_type)
    assert names == ["prediction", "low", "high"]
    assert [[float(value) for value in column] for column in columns[1:]] == intervals.T.tolist()


@pytest.mark.parametrize("media_type", [JSON, *TABLES])
def test_a_bundle_s_predictions_are_the_same_in_every_format(engine, media_type):
    finished = engine.trained("number")
    predictor = Predictor(finished.bundle)
    columns = {name: finished.table[name] for name in finished.table.column_names}
    prediction = predictor.predict(predictor.encode(columns).features)
    labels = prediction.labels()
    data = write_predictions(labels, prediction.classes, prediction.probabilities, [], media_type)
    if media_type == JSON:
        answer = json.loads(bytes(data))
        found, probabilities = answer["predictions"], answer["probabilities"]
    else:
        _, (found, *by_class) = read_back(data, media_type)
        probabilities = np.array(by_class, np.float64).T
    assert [int(value) for value in found] == labels
    assert np.array_equal(np.array(probabilities).astype(np.float32), prediction.probabilities)
