"""Predictions over HTTP (contract, section 7)."""

import asyncio
import io
import json
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from core.bundles import Bundle
from core.exchange import ARROW, CSV, JSON, PARQUET, TABLES, ModelReference, write_arrow
from core.prediction import Predictor
from deployments import calls
from deployments.settings import PredictorSettings
from tests.deployments.local import (
    PREDICT,
    PROBLEM,
    RUNS,
    LocalHandle,
    failed,
    local_service,
    settings_in,
    strict_json,
    trained,
    upload,
)

pytestmark = pytest.mark.anyio

ROWS = [
    {"length": 1.5, "width": 0.4, "colour": "red"},
    {"length": 3.25, "width": 1.9, "colour": "blue"},
    {"length": 2, "width": 1, "colour": "green"},
]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


@pytest.fixture(scope="module")
async def client(tmp_path_factory, connect):
    async with connect(local_service(settings_in(tmp_path_factory.mktemp("service")))) as client:
        yield client


@pytest.fixture(scope="module")
async def run_id(client):
    answer = await trained(client, await upload(client), epochs=20, save_model=True, model_id="m")
    return answer["run_id"]


@pytest.fixture(scope="module")
async def regression(client):
    return (await trained(client, await upload(client), target_column="length", epochs=20))["run_id"]


@pytest.fixture(scope="module")
async def expected(client, run_id):
    """What the bundle itself says of the rows."""
    bundle = Bundle.from_bytes((await client.get(f"{RUNS}/{run_id}/bundle")).content)
    model = Predictor(bundle)
    return model.predict(model.encode(COLUMNS).features)


def table_of(rows):
    return pa.Table.from_pylist(rows)


def written(table, media_type):
    sink = io.BytesIO()
    if media_type == CSV:
        pyarrow.csv.write_csv(table, sink)
    elif media_type == PARQUET:
        pyarrow.parquet.write_table(table, sink)
    else:
        return write_arrow(table)
    return sink.getvalue()


def read(content, media_type):
    source = io.BytesIO(content)
    if media_type == CSV:
        return pyarrow.csv.read_csv(source)
    return (
        pyarrow.parquet.read_table(source) if media_type == PARQUET else pa.ipc.open_stream(source).read_all()
    )


def send_table(client, rows, media_type, accept=None, **ids):
    headers = {"content-type": media_type} | ({"accept": accept} if accept else {})
    return client.post(PREDICT, params=ids, content=written(table_of(rows), media_type), headers=headers)


def answer_of(response):
    assert response.status_code == 200, response.text
    body = strict_json(response.content)
    assert body.keys() == {"predictions", "classes", "probabilities", "warnings"}
    return body


# ── Intervals ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
async def with_interval(client):
    fields = {
        "target_column": "length",
        "exclude_columns": ["kind"],
        "epochs": 5,
        "interval": 0.5,
        "importance": True,
    }
    answer = await trained(client, await upload(client), **fields)
    return answer["run_id"], answer["metrics"]["details"]


async def test_intervals_are_answered_where_they_are_asked_for(client, with_interval):
    run_id, details = with_interval
    radius = details["interval"]["radius"]
    assert [row["column"] for row in details["importance"]["columns"]]
    body = {"run_id": run_id, "rows": ROWS}
    plain = answer_of(await client.post(PREDICT, json=body))
    expected = [[value - radius, value + radius] for value in plain["predictions"]]
    for answer in (
        await client.post(PREDICT, json=body | {"intervals": True}),
        await client.post(PREDICT, json=body, params={"intervals": True}),
        await send_table(client, ROWS, ARROW, JSON, run_id=run_id, intervals=True),
    ):
        assert answer.status_code == 200, answer.text
        assert answer.json() == plain | {"intervals": expected}


@pytest.mark.parametrize("media_type", TABLES)
async def test_intervals_are_two_columns_of_a_table(client, with_interval, media_type):
    response = await send_table(client, ROWS, media_type, run_id=with_interval[0], intervals=True)
    table = read(response.content, media_type)
    assert table.column_names == ["prediction", "low", "high"]
    middle = (np.array(table["low"]) + np.array(table["high"])) / 2
    np.testing.assert_allclose(middle, np.array(table["prediction"]), rtol=1e-9)


async def test_intervals_of_a_model_without_them_are_400(client, run_id, regression):
    rows = [row | {"kind": "oak"} for row in ROWS]
    for name in (run_id, regression):
        response = await client.post(PREDICT, json={"run_id": name, "rows": rows, "intervals": True})
        failed(response, 400, "INVALID_PARAMETER")
        assert "The model has no intervals" in response.text


@pytest.mark.parametrize("given", ["yes", 1, None])
async def test_intervals_must_be_true_or_false(client, run_id, given):
    response = await client.post(PREDICT, json={"run_id": run_id, "rows": ROWS, "intervals": given})
    failed(response, 422, "SCHEMA_VIOLATION")


# ── Rows in, predictions out ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", [{"rows": ROWS}, {"columns": COLUMNS}], ids=["rows", "columns"])
@pytest.mark.parametrize("kind", ["run_id", "model_id"])
async def test_json_is_answered_in_input_order(client, run_id, expected, shape, kind):
    name = {"run_id": run_id, "model_id": "m"}[kind]
    body = answer_of(await client.post(PREDICT, json={kind: name} | shape))
    assert body["predictions"] == expected.labels()
    assert body["classes"] == ["ash", "oak"]
    assert np.array(body["probabilities"], np.float32).tolist() == expected.probabilities.tolist()
    assert body["warnings"] == []


@pytest.mark.parametrize("in_body", [False, True])
@pytest.mark.parametrize("kind", ["run_id", "model_id"])
async def test_model_of_a_json_body_may_be_named_in_the_query(client, run_id, expected, kind, in_body):
    ids = {kind: {"run_id": run_id, "model_id": "m"}[kind]}
    response = await client.post(PREDICT, params=ids, json={"rows": ROWS} | (ids if in_body else {}))
    assert answer_of(response)["predictions"] == expected.labels()


@pytest.mark.parametrize(
    "query", [{"run_id": "other"}, {"model_id": "m"}, {"run_id": "other", "model_id": "m"}]
)
async def test_body_and_query_that_name_different_models_are_422(client, run_id, query):
    response = await client.post(PREDICT, params=query, json={"run_id": run_id, "rows": ROWS})
    [violation] = failed(response, 422, "SCHEMA_VIOLATION")
    assert violation["loc"][0] == "query"
    assert "same run or model" in violation["msg"]


async def test_order_follows_the_rows(client, run_id, expected):
    body = answer_of(await client.post(PREDICT, json={"run_id": run_id, "rows": ROWS[::-1]}))
    assert body["predictions"] == expected.labels()[::-1]


@pytest.mark.parametrize("media_type", TABLES)
@pytest.mark.parametrize("kind", ["run_id", "model_id"])
async def test_table_is_answered_as_such_a_table(client, run_id, expected, media_type, kind):
    name = {"run_id": run_id, "model_id": "m"}[kind]
    response = await send_table(client, ROWS, media_type, **{kind: name})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].partition(";")[0] == media_type
    table = read(response.content, media_type)
    assert table.column_names == ["prediction", "probability_ash", "probability_oak"]
    assert table["prediction"].to_pylist() == expected.labels()
    assert np.allclose(table["probability_oak"], expected.probabilities[:, 1], atol=1e-6)
    assert "x-warnings" not in response.headers


@pytest.mark.parametrize("sent", [JSON, *TABLES])
@pytest.mark.parametrize("accept", [JSON, *TABLES])
async def test_answer_comes_in_the_accepted_type(client, run_id, expected, sent, accept):
    if sent == JSON:
        body = {"run_id": run_id, "rows": ROWS}
        response = await client.post(PREDICT, json=body, headers={"accept": accept})
    else:
        response = await send_table(client, ROWS, sent, accept=accept, run_id=run_id)
    assert response.headers["content-type"].partition(";")[0] == accept
    if accept == JSON:
        assert answer_of(response)["predictions"] == expected.labels()
    else:
        assert read(response.content, accept)["prediction"].to_pylist() == expected.labels()


@pytest.mark.parametrize(
    "accept", ["*/*", "application/*", f"text/html, {JSON};q=0.9", PROBLEM, f"{JSON}, {PROBLEM}"]
)
async def test_what_accepts_json_among_others_gets_it(client, run_id, accept):
    response = await client.post(PREDICT, json={"run_id": run_id, "rows": ROWS}, headers={"accept": accept})
    answer_of(response)


async def test_type_that_cannot_be_written_is_400(client, run_id):
    body = {"run_id": run_id, "rows": ROWS}
    response = await client.post(PREDICT, json=body, headers={"accept": "image/png"})
    assert JSON in failed(response, 400, "INVALID_REQUEST")


@pytest.mark.parametrize("media_type", ["text/plain", "image/png", "x" * 500])
async def test_type_that_cannot_be_read_is_400(client, media_type):
    response = await client.post(PREDICT, content=b"{}", headers={"content-type": media_type})
    message = failed(response, 400, "INVALID_REQUEST")
    assert JSON in message
    assert len(message) < 100


@pytest.mark.parametrize(
    "media_type", ["application/x-www-form-urlencoded", "Application/JSON; charset=utf-8"]
)
async def test_json_is_read_as_curl_sends_it(client, run_id, media_type):
    content = json.dumps({"run_id": run_id, "rows": ROWS})
    answer_of(await client.post(PREDICT, content=content, headers={"content-type": media_type}))


async def test_regression_answers_numbers_in_the_units_of_the_target(client, regression):
    rows = [{"width": 0.4, "colour": "red", "kind": "ash"}, {"width": 1.9, "colour": "blue", "kind": "oak"}]
    body = answer_of(await client.post(PREDICT, json={"run_id": regression, "rows": rows}))
    assert (body["classes"], body["probabilities"]) == (None, None)
    assert all(0 < value < 6 for value in body["predictions"])  # lengths are 1 … 4
    response = await send_table(client, rows, PARQUET, run_id=regression)
    table = read(response.content, PARQUET)
    assert table.column_names == ["prediction"]
    assert table["prediction"].to_pylist() == body["predictions"]


@pytest.mark.parametrize(
    "shape", [{"rows": []}, {"columns": {"length": [], "width": [], "colour": []}}], ids=["rows", "columns"]
)
async def test_no_rows_give_no_predictions(client, run_id, shape):
    body = answer_of(await client.post(PREDICT, json={"run_id": run_id} | shape))
    assert (body["predictions"], body["probabilities"], body["warnings"]) == ([], [], [])


@pytest.mark.parametrize("media_type", TABLES)
async def test_table_without_rows_is_400_unlike_json_without_rows(client, run_id, media_type):
    content = written(table_of(ROWS).slice(0, 0), media_type)
    headers = {"content-type": media_type}
    response = await client.post(PREDICT, params={"run_id": run_id}, content=content, headers=headers)
    assert "must have rows" in failed(response, 400, "DATASET_INVALID_FORMAT")


async def test_columns_that_the_model_does_not_read_are_ignored(client, run_id, expected):
    rows = [row | {"note": {"any": ["thing"]}, "kind": None} for row in ROWS]
    body = answer_of(await client.post(PREDICT, json={"run_id": run_id, "rows": rows}))
    assert (body["predictions"], body["warnings"]) == (expected.labels(), [])
    columns = COLUMNS | {"note": [1]}
    answer_of(await client.post(PREDICT, json={"run_id": run_id, "columns": columns}))


async def test_unseen_categories_and_nulls_are_used_and_counted(client, run_id):
    rows = [
        *ROWS,
        {"length": None, "width": 1.0, "colour": "violet"},
        {"length": None, "width": None, "colour": "mauve"},
        {"length": 1.0, "width": 1.0, "colour": None},
    ]
    body = answer_of(await client.post(PREDICT, json={"run_id": run_id, "rows": rows}))
    assert len(body["predictions"]) == len(rows)
    assert sorted(body["warnings"]) == [
        "1 values of 'colour' are null",
        "1 values of 'width' are null",
        "2 values of 'colour' were not seen in training",
        "2 values of 'length' are null",
    ]
    response = await send_table(client, rows, CSV, run_id=run_id)
    assert sorted(json.loads(response.headers["x-warnings"])) == sorted(body["warnings"])


async def test_malformed_date_or_boolean_is_named_by_row_however_it_is_sent(client):
    table = "day,size,kind\n" + "".join(
        f"{i % 28 + 1}/0{i % 9 + 1}/2024,{i},{'ab'[i % 2]}\n" for i in range(60)
    )
    run = await trained(client, await upload(client, table), date_columns=["day"])
    ids = {"run_id": run["run_id"]}
    for wrong, wanted in (
        (
            {"day": ["1/02/2024", "soon", None], "size": [1, 2, 3]},
            "Row 1: column 'day' needs a date like 31/01/2024",
        ),
        ({"day": ["1/02/2024"] * 3, "size": [None, True, False]}, "Row 1: column 'size' needs a number"),
    ):
        rows = [dict(zip(wrong, values, strict=True)) for values in zip(*wrong.values(), strict=True)]
        answers = [
            await client.post(PREDICT, json=ids | {"rows": rows}),
            await client.post(PREDICT, json=ids | {"columns": wrong}),
            *[await send_table(client, rows, media_type, **ids) for media_type in TABLES],
        ]
        for answer in answers:
            assert failed(answer, 422, "SCHEMA_MISMATCH").startswith(wanted)


async def test_large_body_is_answered_whole(client, run_id, expected):
    count = 20_000
    body = answer_of(await client.post(PREDICT, json={"run_id": run_id, "rows": ROWS[:2] * (count // 2)}))
    assert body["predictions"] == expected.labels()[:2] * (count // 2)


# ── Input that does not fit ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ({"rows": [{"width": 1.0}]}, ["length", "colour"]),
        ({"rows": [{}]}, ["length", "width", "colour"]),
        ({"columns": {"width": [1.0]}}, ["length", "colour"]),
        ({"columns": {}}, ["length", "width", "colour"]),
    ],
)
async def test_missing_columns_are_422_and_named(client, run_id, shape, names):
    response = await client.post(PREDICT, json={"run_id": run_id} | shape)
    message = failed(response, 422, "SCHEMA_MISMATCH")
    assert all(repr(name) in message for name in names)


@pytest.mark.parametrize("media_type", TABLES)
async def test_columns_missing_from_a_table_are_422_and_named(client, run_id, media_type):
    rows = [{"length": 1.0, "width": 1.0}]
    message = failed(await send_table(client, rows, media_type, run_id=run_id), 422, "SCHEMA_MISMATCH")
    assert "'colour'" in message


async def test_column_missing_from_one_row_is_422_with_its_index(client, run_id):
    rows = [*ROWS, {"length": 1.0, "colour": "red"}]
    response = await client.post(PREDICT, json={"run_id": run_id, "rows": rows})
    message = failed(response, 422, "SCHEMA_MISMATCH")
    assert "3" in message
    assert "'width'" in message


@pytest.mark.parametrize("value", ["long", [1.0], {"value": 1}, "1,5"])
@pytest.mark.parametrize("shape", ["rows", "columns"])
async def test_malformed_value_is_422_with_index_and_column(client, run_id, value, shape):
    rows = [*ROWS, ROWS[0] | {"length": value}]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    body = {"run_id": run_id, shape: rows if shape == "rows" else columns}
    message = failed(await client.post(PREDICT, json=body), 422, "SCHEMA_MISMATCH")
    assert "3" in message
    assert "length" in message


@pytest.mark.parametrize("value", [10**30, 1e308, -(2**63), "x" * 5000, "\u2028"])
@pytest.mark.parametrize("column", ["length", "colour"])
async def test_extreme_values_are_used_or_refused_but_break_nothing(client, run_id, column, value):
    response = await client.post(PREDICT, json={"run_id": run_id, "rows": [ROWS[0] | {column: value}]})
    if response.status_code == 200:
        assert len(answer_of(response)["predictions"]) == 1
    else:
        assert len(failed(response, 422, "SCHEMA_MISMATCH")) < 300


async def test_columns_of_different_lengths_are_422(client, run_id):
    body = {"run_id": run_id, "columns": COLUMNS | {"width": [1.0]}}
    assert "width" in failed(await client.post(PREDICT, json=body), 422, "SCHEMA_MISMATCH")


async def test_malformed_row_spoils_no_other_request_of_its_batch(client, run_id, expected):
    bodies = [{"run_id": run_id, "rows": ROWS} for _ in range(10)]
    bodies[4] = {"run_id": run_id, "rows": [ROWS[0] | {"length": "long"}]}
    responses = await asyncio.gather(*(client.post(PREDICT, json=body) for body in bodies))
    failed(responses.pop(4), 422, "SCHEMA_MISMATCH")
    assert all(answer_of(response)["predictions"] == expected.labels() for response in responses)


SCHEMA_ERRORS = {
    "no model": {"rows": ROWS},
    "two models": {"run_id": "x", "model_id": "m", "rows": ROWS},
    "no rows": {"run_id": "x"},
    "rows and columns": {"run_id": "x", "rows": ROWS, "columns": COLUMNS},
    "blank run": {"run_id": "", "rows": ROWS},
    "extra field": {"run_id": "x", "rows": ROWS, "explain": True},
    "rows no list": {"run_id": "x", "rows": ROWS[0]},
    "row no object": {"run_id": "x", "rows": [[1, 2]]},
    "columns no lists": {"run_id": "x", "columns": {"length": 1}},
    "run no text": {"run_id": 7, "rows": ROWS},
    "list": [ROWS],
    "text": "rows",
    "null": None,
}


@pytest.mark.parametrize("body", SCHEMA_ERRORS.values(), ids=SCHEMA_ERRORS)
async def test_body_that_does_not_fit_the_schema_is_422_as_an_array(client, body):
    content = json.dumps(body)
    response = await client.post(PREDICT, content=content, headers={"content-type": JSON})
    violations = failed(response, 422, "SCHEMA_VIOLATION")
    assert violations
    assert all(violation.keys() == {"type", "loc", "msg", "input"} for violation in violations)
    assert all(violation["loc"][0] == "body" for violation in violations)


@pytest.mark.parametrize("ids", [{}, {"run_id": "x", "model_id": "m"}])
async def test_table_needs_one_model_in_the_query(client, ids):
    [violation] = failed(await send_table(client, ROWS, CSV, **ids), 422, "SCHEMA_VIOLATION")
    assert violation["loc"][0] == "query"


async def test_schema_errors_of_many_rows_stay_short(client):
    body = {"run_id": "x", "rows": ["secret"] * 50_000}
    response = await client.post(PREDICT, json=body)
    failed(response, 422, "SCHEMA_VIOLATION")
    assert len(response.content) < 50_000


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b'{"rows": NaN}', b"[" * 100_000, b'{"run_id": "x", "rows": [{"a": Infinity}]}'],
)
async def test_malformed_json_is_400(client, content):
    response = await client.post(PREDICT, content=content, headers={"content-type": JSON})
    assert failed(response, 400, "MALFORMED_BODY").startswith(
        ("The body must be JSON", "The body must be nested")
    )


@pytest.mark.parametrize(
    ("media_type", "content"),
    [(CSV, b"a,b\n1,2,3\n"), (CSV, b"\xff\xff"), (PARQUET, b"PAR1"), (ARROW, b"ARROW1"), (ARROW, b"")],
)
async def test_unreadable_table_is_400(client, run_id, media_type, content):
    headers = {"content-type": media_type}
    response = await client.post(PREDICT, params={"run_id": run_id}, content=content, headers=headers)
    failed(response, 400, "DATASET_INVALID_FORMAT")


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ({"run_id": "never-known"}, "RUN_NOT_FOUND"),
        ({"run_id": "../../x" * 1000}, "RUN_NOT_FOUND"),
        ({"model_id": "unknown"}, "MODEL_NOT_FOUND"),
        ({"model_id": "../../x"}, "MODEL_NOT_FOUND"),
        ({"model_id": "\0"}, "MODEL_NOT_FOUND"),
    ],
)
async def test_unknown_model_is_404(client, reference, code):
    response = await client.post(PREDICT, json=reference | {"rows": ROWS})
    assert len(failed(response, 404, code)) < 200


async def test_unknown_model_of_a_table_is_404(client):
    failed(await send_table(client, ROWS, CSV, model_id="unknown"), 404, "MODEL_NOT_FOUND")


class Lasting:
    """A predictor that answers late, and counts what it is asked."""

    def __init__(self):
        self.asked = 0

    async def predict(self, call):
        self.asked += 1
        await asyncio.Event().wait()


async def test_failure_of_the_computation_is_a_500_and_not_computed_again(client, run_id, monkeypatch):
    computed = []

    def broken(self, features):
        computed.append(len(features))
        raise ZeroDivisionError("of the network")

    monkeypatch.setattr(Predictor, "predict", broken)
    failed(await client.post(PREDICT, json={"run_id": run_id, "rows": ROWS}), 500, "SYSTEM_ERROR")
    assert computed == [len(ROWS)]


async def test_any_failure_of_a_predictor_that_is_not_ours_is_a_500_at_once(service, connect, monkeypatch):
    asked = []

    async def broken(call):
        asked.append(call)
        raise KeyError("of the cache")

    monkeypatch.setattr(service._predictor._target, "predict", broken)
    async with connect(service) as client:
        failed(await client.post(PREDICT, json={"run_id": "r", "rows": ROWS}), 500, "SYSTEM_ERROR")
    assert len(asked) == 1


async def test_predictor_that_takes_too_long_is_asked_once(service, connect, monkeypatch):
    service._predictor = LocalHandle(lasting := Lasting())
    monkeypatch.setattr("deployments.ingress.answer_of", partial(calls.answer_of, timeout_s=0.01))
    async with connect(service) as client:
        failed(await client.post(PREDICT, json={"run_id": "r", "rows": ROWS}), 503, "SERVICE_UNAVAILABLE")
    assert lasting.asked == 1


async def test_saved_model_that_is_replaced_in_a_full_cache_is_used(tmp_path, connect):
    settings = settings_in(tmp_path, predictor=PredictorSettings(cache_bytes=1))
    service = local_service(settings)
    cache = service._predictor._target._cache
    async with connect(service) as client:
        dataset_id = await upload(client)
        await trained(client, dataset_id, save_model=True, model_id="a")
        assert (await client.post(PREDICT, json={"model_id": "a", "rows": ROWS})).status_code == 200
        cache[ModelReference("model_id", "b")] = cache[ModelReference("model_id", "a")]
        await trained(client, dataset_id, save_model=True, model_id="a", overwrite=True, hidden_dim=64)
        assert (await client.post(PREDICT, json={"model_id": "a", "rows": ROWS})).status_code == 200
    assert list(cache) == [ModelReference("model_id", "a")]


async def test_python_handle_answers_what_http_sends(tmp_path, connect):
    service = local_service(settings_in(tmp_path))
    async with connect(service) as client:
        run_id = (await trained(client, await upload(client)))["run_id"]
        for payload in (
            {"run_id": run_id, "rows": ROWS},
            {"run_id": "unknown", "rows": ROWS},
            {"run_id": run_id, "rows": [{}]},
            {"rows": ROWS},
        ):
            response = await client.post(PREDICT, json=payload)
            assert await service.predict(payload) == (response.status_code, response.json())


async def test_more_rows_or_columns_than_one_request_may_bring_are_413(tmp_path, connect):
    settings = settings_in(tmp_path, limits={"predict_rows": 3})
    async with connect(local_service(settings)) as client:
        run_id = (await trained(client, await upload(client)))["run_id"]
        row = {"length": 2.0, "width": 1.0, "colour": "red"}
        rows = [row] * 4
        assert (await client.post(PREDICT, json={"run_id": run_id, "rows": rows[:3]})).status_code == 200
        message = failed(
            await client.post(PREDICT, json={"run_id": run_id, "rows": rows}), 413, "DATASET_TOO_LARGE"
        )
        assert "3 rows, got 4" in message
