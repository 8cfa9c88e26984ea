"""Uploading, listing, looking at and deleting datasets (contract, section 7)."""

import asyncio
import datetime as dt
import hashlib
import io
import json
import threading
from urllib.parse import quote

import openpyxl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from core.datasets import Incoming
from core.errors import StorageError
from core.exchange import write_arrow
from core.table import FORMATS
from deployments.routes.examples import EXAMPLE_CSV
from tests.deployments.local import (
    DATASETS,
    QUICK,
    TRAIN,
    failed,
    local_service,
    settings_in,
    stored_files,
    strict_json,
    upload,
)

pytestmark = pytest.mark.anyio

TABLE = pa.table(
    {
        "length": pa.array([1.5, None, 3.25, 4.0]),
        "count": [1, 2, 3, 4],
        "colour": ["red", "green", None, "blue"],
        "day": [dt.date(2024, 1, day) for day in (1, 2, 3, 4)],
    }
)
MEDIA_TYPES = {
    "csv": "text/csv; charset=utf-8",
    "tsv": "text/tab-separated-values",
    "parquet": "application/vnd.apache.parquet",
    "arrow": "application/vnd.apache.arrow.stream",
    "jsonl": "application/x-ndjson",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}


def content_of(table, kind):
    """The table as a file."""
    sink = io.BytesIO()
    if kind in ("csv", "tsv"):
        delimiter = {"csv": ",", "tsv": "\t"}[kind]
        pyarrow.csv.write_csv(table, sink, pyarrow.csv.WriteOptions(delimiter=delimiter))
    elif kind == "parquet":
        pyarrow.parquet.write_table(table, sink)
    elif kind == "arrow":
        return write_arrow(table)
    elif kind == "jsonl":
        return "".join(json.dumps(row, default=str) + "\n" for row in table.to_pylist()).encode()
    else:
        book = openpyxl.Workbook()
        for row in (table.column_names, *(list(row.values()) for row in table.to_pylist())):
            book.active.append(row)
        book.save(sink)
    return sink.getvalue()


def post(client, content, name=None, media_type=""):
    params = {} if name is None else {"name": name}
    return client.post(DATASETS, params=params, content=content, headers={"content-type": media_type})


def check_uploaded(response, content, kind):
    assert response.status_code == 201, response.text
    body = strict_json(response.content)
    assert body.keys() == {
        *("dataset_id", "name", "format", "bytes", "sha256", "rows", "columns", "created_at")
    }
    assert (body["format"], body["bytes"], body["rows"]) == (kind, len(content), 4)
    assert body["sha256"] == hashlib.sha256(content).hexdigest()
    columns = {column["name"]: column for column in body["columns"]}
    assert list(columns) == TABLE.column_names
    assert [column["null_count"] for column in columns.values()] == [1, 0, 1, 0]
    assert all(column["dtype"] for column in columns.values())
    return body


# ── Uploads ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_format_is_uploaded_here():
    assert MEDIA_TYPES.keys() == set(FORMATS)


@pytest.mark.parametrize("kind", FORMATS)
async def test_raw_body_is_read_by_its_media_type(client, kind):
    content = content_of(TABLE, kind)
    body = check_uploaded(await post(client, content, media_type=MEDIA_TYPES[kind]), content, kind)
    assert body["name"] is None


@pytest.mark.parametrize("kind", FORMATS)
async def test_raw_body_is_read_by_its_name(client, kind):
    content = content_of(TABLE, kind)
    body = check_uploaded(await post(client, content, f"Table.{kind.upper()}"), content, kind)
    assert body["name"] == f"Table.{kind.upper()}"


@pytest.mark.parametrize("kind", FORMATS)
async def test_form_is_read_by_the_name_of_its_file(client, kind):
    content = content_of(TABLE, kind)
    file = (f"table.{kind}", content, "application/octet-stream")
    body = check_uploaded(await client.post(DATASETS, files={"file": file}), content, kind)
    assert body["name"] == f"table.{kind}"


@pytest.mark.parametrize("kind", FORMATS)
async def test_uploaded_table_is_previewed_as_json(client, kind):
    uploaded = await post(client, content_of(TABLE, kind), media_type=MEDIA_TYPES[kind])
    response = await client.get(f"{DATASETS}/{uploaded.json()['dataset_id']}/preview", params={"rows": 3})
    body = strict_json(response.content)
    assert body["columns"] == TABLE.column_names
    assert [row[:3] for row in body["rows"]] == [[1.5, 1, "red"], [None, 2, "green"], [3.25, 3, None]]
    assert all(row[3].startswith(f"2024-01-0{day}") for day, row in enumerate(body["rows"], 1))


async def test_form_may_give_another_name_in_the_query(client):
    files = {"file": ("upload.bin", EXAMPLE_CSV)}
    response = await client.post(DATASETS, params={"name": "trees.csv"}, files=files)
    assert (response.status_code, response.json()["name"]) == (201, "trees.csv")


async def test_same_content_is_the_same_dataset_however_it_comes(client, settings):
    first = await post(client, EXAMPLE_CSV, "a.csv")
    again = [
        await post(client, EXAMPLE_CSV, "a.csv"),
        await post(client, EXAMPLE_CSV, "b.csv"),
        await client.post(DATASETS, files={"file": ("c.csv", EXAMPLE_CSV)}),
    ]
    assert first.status_code == 201
    assert {response.status_code for response in again} == {200}
    assert all(response.json() == first.json() for response in again)
    assert len((await client.get(DATASETS)).json()["data"]) == 1
    assert not any(name.startswith("uploads/") for name in stored_files(settings))


async def test_same_content_sent_twice_at_once_is_one_dataset(client, settings):
    responses = await asyncio.gather(*(post(client, EXAMPLE_CSV, "a.csv") for _ in range(4)))
    assert {response.status_code for response in responses} <= {200, 201}
    assert len({response.json()["dataset_id"] for response in responses}) == 1
    dataset_id = responses[0].json()["dataset_id"]
    assert stored_files(settings) == {f"datasets/{dataset_id}/{name}" for name in ("data.csv", "info.json")}
    assert (await client.get(f"{DATASETS}/{dataset_id}/preview")).status_code == 200


async def test_same_bytes_in_another_format_are_another_dataset(client):
    ids = {(await post(client, "a\n1\n2\n", name)).json()["dataset_id"] for name in ("a.csv", "a.tsv")}
    assert len(ids) == 2


# ── Refusals ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "media_type"),
    [(None, ""), (None, "application/json"), ("table.xls", ""), ("table", "image/png")],
)
async def test_unsupported_format_is_400_with_the_supported_ones(client, settings, name, media_type):
    message = failed(await post(client, EXAMPLE_CSV, name, media_type), 400, "DATASET_INVALID_FORMAT")
    assert "CSV, TSV, Parquet, Arrow, JSON Lines or XLSX" in message
    assert stored_files(settings) == set()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "a,b\n1,2\n3,4\n5,6,7\n", "Line 4"),
        ("a.csv", "a,a\n1,2\n", '"a"'),
        ("a.csv", "a,\n1,2\n", "column 2"),
        ("a.csv", b"a,b\n1,2\n3,\xff\xfe\n", "line 3"),
        ("a.csv", "", ""),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "line 2"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "line 2"),
        ("a.parquet", b"PAR1 but not really", ""),
        ("a.arrow", b"ARROW1\0\0 but not really", ""),
        ("a.xlsx", b"PK\3\4 but not really", ""),
        ("a.xlsx", EXAMPLE_CSV, ""),
    ],
)
async def test_unreadable_table_is_400_and_not_kept(client, settings, tmp_path, name, content, says):
    message = failed(await post(client, content, name), 400, "DATASET_INVALID_FORMAT")
    assert says in message
    assert str(tmp_path) not in message
    assert stored_files(settings) == set()


@pytest.mark.parametrize(
    "body",
    [
        {"data": {"file": "a,b\n1,2\n"}},
        {"files": {"table": ("a.csv", "a,b\n1,2\n")}},
        {"content": b"no parts at all", "headers": {"content-type": "multipart/form-data; boundary=x"}},
        {"content": b"no boundary", "headers": {"content-type": "multipart/form-data"}},
        {"files": [("file", ("a.csv", "a\n1\n")), ("file", ("b.csv", "a\n2\n"))]},
    ],
    ids=["no file", "another part", "no parts", "no boundary", "two files"],
)
async def test_form_without_its_one_file_is_400(client, settings, body):
    if "data" in body:
        body = {"content": b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\na,b\r\n--x--\r\n'}
        body["headers"] = {"content-type": "multipart/form-data; boundary=x"}
    failed(await client.post(DATASETS, **body), 400, "MALFORMED_BODY")
    assert stored_files(settings) == set()


async def test_preview_shows_dates_that_python_cannot_say(client):
    table = pa.table({"when": pa.array([-(2**62), 0], pa.timestamp("s"))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    dataset = (await post(client, sink.getvalue().to_pybytes(), "when.arrows")).json()
    preview = await client.get(f"{DATASETS}/{dataset['dataset_id']}/preview")
    assert preview.json()["rows"] == [[-(2**62)], [0]]


async def test_name_that_is_too_long_is_422(client):
    [violation] = failed(await post(client, EXAMPLE_CSV, "x" * 252 + ".csv"), 422, "SCHEMA_VIOLATION")
    assert violation["loc"] == ["query", "name"]


async def chunks(count, chunk=b"1,2,3\n" * 10, counted=None):
    for number in range(count):
        if counted is not None:
            counted.append(number)
        yield chunk


@pytest.fixture
async def small(tmp_path, connect):
    """A client of a service that takes 1000 bytes, 50 rows and 5 columns."""
    limits = {"body_bytes": 1000, "rows": 50, "columns": 5}
    async with connect(local_service(settings_in(tmp_path, limits=limits))) as client:
        yield client


async def test_announced_body_that_is_too_large_is_413_and_not_read(small, settings):
    counted = []
    headers = {"content-type": "text/csv", "content-length": "1001"}
    response = await small.post(DATASETS, content=chunks(20, counted=counted), headers=headers)
    assert "1000" in failed(response, 413, "PAYLOAD_TOO_LARGE")
    assert counted == []


@pytest.mark.parametrize("headers", [{}, {"content-length": "10"}, {"content-length": "x"}])
async def test_body_is_counted_whatever_it_announces(small, settings, headers):
    counted = []
    response = await small.post(
        DATASETS, content=chunks(10_000, counted=counted), headers={"content-type": "text/csv"} | headers
    )
    failed(response, 413, "PAYLOAD_TOO_LARGE")
    assert len(counted) < 50
    assert stored_files(settings) == set()


async def test_form_that_is_too_large_is_413(small, settings):
    async def form():
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
        async for chunk in chunks(1000):
            yield chunk

    headers = {"content-type": "multipart/form-data; boundary=x"}
    failed(await small.post(DATASETS, content=form(), headers=headers), 413, "PAYLOAD_TOO_LARGE")
    assert stored_files(settings) == set()


async def test_body_of_exactly_the_limit_is_taken(small):
    content = b"a,b\n" + b"1,2\n" * 40
    exact = content + b"1," + b"x" * (1000 - len(content) - 3) + b"\n"
    assert len(exact) == 1000
    assert (await post(small, exact, "a.csv")).status_code == 201
    failed(await post(small, exact + b"\n", "a.csv"), 413, "PAYLOAD_TOO_LARGE")


@pytest.mark.parametrize(
    ("content", "says"), [("a\n" + "1\n" * 51, "50"), ("a,b,c,d,e,f\n1,2,3,4,5,6\n", "5")]
)
async def test_table_with_too_many_rows_or_columns_is_413(small, settings, content, says):
    assert says in failed(await post(small, content, "a.csv"), 413, "DATASET_TOO_LARGE")
    assert stored_files(settings) == set()


# ── Listing, preview, deletion ──────────────────────────────────────────────────────────────────────────────


async def walk(client, route, limit):
    """Every page of a listing."""
    cursor = None
    while True:
        response = await client.get(route, params={"limit": limit} | ({"cursor": cursor} if cursor else {}))
        page = strict_json(response.content)
        assert page.keys() == {"data", "has_more", "next_cursor"}
        assert page["has_more"] == (page["next_cursor"] is not None)
        yield page["data"]
        cursor = page["next_cursor"]
        if cursor is None:
            return


async def test_pages_show_every_dataset_once(client):
    ids = {await upload(client, f"a\n{number}\n", f"{number}.csv") for number in range(5)}
    pages = [page async for page in walk(client, DATASETS, 2)]
    assert [len(page) for page in pages] == [2, 2, 1]
    shown = [item["dataset_id"] for page in pages for item in page]
    assert len(shown) == 5
    assert set(shown) == ids
    assert pages[0][0] == (await client.get(f"{DATASETS}/{shown[0]}")).json()


async def test_page_of_no_datasets_is_empty(client):
    assert (await client.get(DATASETS)).json() == {"data": [], "has_more": False, "next_cursor": None}


@pytest.mark.parametrize("limit", ["0", "101", "-1", "many", "1.5", ""])
async def test_limit_out_of_range_is_422_as_an_array(client, limit):
    [violation] = failed(await client.get(DATASETS, params={"limit": limit}), 422, "SCHEMA_VIOLATION")
    assert violation.keys() == {"type", "loc", "msg", "input"}
    assert violation["loc"] == ["query", "limit"]


@pytest.mark.parametrize("cursor", ["x", "AAAA", "bnVsbA", "W10", "WzEuNV0", "é", "W05hTl0"])
async def test_foreign_cursor_is_400(client, cursor):
    await upload(client)
    assert "cursor" in failed(await client.get(DATASETS, params={"cursor": cursor}), 400, "INVALID_REQUEST")


async def test_preview_is_valid_json_whatever_the_values(client):
    table = pa.table(
        {
            "number": pa.array([float("nan"), float("inf"), None]),
            "moment": pa.array([1, 2, None], pa.timestamp("ns")),
            "zoned": pa.array([1, 2, None], pa.timestamp("us", tz="Europe/Zurich")),
            "day": pa.array([0, 1, None], pa.date32()),
            "flag": [True, False, None],
            "text": pa.array(["\u2028", "\"'<>", None]).dictionary_encode(),
            "small": pa.array([1.5, float("nan"), None], pa.float32()),
            "large": pa.array([2**63, 1, None], pa.uint64()),
            "blank": pa.nulls(3),
        }
    )
    uploaded = await post(client, content_of(table, "parquet"), "odd.parquet")
    assert uploaded.status_code == 201, uploaded.text
    response = await client.get(f"{DATASETS}/{uploaded.json()['dataset_id']}/preview")
    body = strict_json(response.content)
    rows = [dict(zip(body["columns"], row, strict=True)) for row in body["rows"]]
    assert body["columns"] == table.column_names
    assert rows[0]["number"] is None
    assert rows[0]["day"] == "1970-01-01"
    assert rows[0]["moment"].startswith("1970-01-01T00:00:00")
    assert rows[0]["zoned"].startswith("1970-01-01T")
    assert (rows[0]["flag"], rows[1]["flag"], rows[0]["text"]) == (True, False, "\u2028")
    assert rows[1]["small"] is None
    assert set(rows[2].values()) == {None}


@pytest.mark.parametrize("rows", ["0", "1001", "x"])
async def test_preview_of_too_many_rows_is_422(client, rows):
    response = await client.get(f"{DATASETS}/{await upload(client)}/preview", params={"rows": rows})
    [violation] = failed(response, 422, "SCHEMA_VIOLATION")
    assert violation["loc"] == ["query", "rows"]


async def test_preview_shows_ten_rows_or_as_many_as_there_are(client):
    dataset_id = await upload(client)
    route = f"{DATASETS}/{dataset_id}/preview"
    assert len((await client.get(route)).json()["rows"]) == 10
    assert len((await client.get(route, params={"rows": 1000})).json()["rows"]) == 60


async def test_deleted_dataset_is_gone_for_everybody(client, settings):
    dataset_id = await upload(client)
    response = await client.delete(f"{DATASETS}/{dataset_id}")
    assert (response.status_code, response.content) == (204, b"")
    assert stored_files(settings) == set()
    for gone in (
        await client.get(f"{DATASETS}/{dataset_id}"),
        await client.get(f"{DATASETS}/{dataset_id}/preview"),
        await client.delete(f"{DATASETS}/{dataset_id}"),
    ):
        assert dataset_id in failed(gone, 404, "DATASET_NOT_FOUND")
    failed(await client.post(TRAIN, json=QUICK | {"dataset_id": dataset_id}), 400, "DATASET_NOT_FOUND")
    assert (await client.get(DATASETS)).json()["data"] == []


async def test_deleted_dataset_can_be_uploaded_again(client):
    dataset_id = await upload(client)
    await client.delete(f"{DATASETS}/{dataset_id}")
    assert (await post(client, EXAMPLE_CSV, "trees.csv")).status_code == 201


@pytest.mark.parametrize(
    "dataset_id", ["unknown", "csv-0", ".hidden", "a b", "ü", "x" * 200, "'\"<script>", "%00"]
)
@pytest.mark.parametrize("ending", ["", "/preview"])
async def test_unknown_dataset_is_404(client, dataset_id, ending):
    message = failed(await client.get(f"{DATASETS}/{quote(dataset_id)}{ending}"), 404, "DATASET_NOT_FOUND")
    assert len(message) < 150


@pytest.mark.parametrize("dataset_id", ["..%2F..%2Fmodels%2Fx", "..%2f..%2f..%2fetc%2fpasswd"])
async def test_path_in_place_of_an_id_is_404(client, dataset_id):
    failed(await client.get(f"{DATASETS}/{dataset_id}"), 404, "NOT_FOUND")


@pytest.mark.parametrize("fails", [False, True])
async def test_storage_is_never_waited_for_on_the_loop(client, service, monkeypatch, fails):
    used = []

    def noting(name):
        call = getattr(Incoming, name)

        def noted(*arguments):
            used.append((name, threading.get_ident()))
            if fails and name == "write":
                raise StorageError
            return call(*arguments)

        return noted

    for name in ("__enter__", "write", "__exit__"):
        monkeypatch.setattr(Incoming, name, noting(name))
    body = {"content": b"a,b\n1,2\n", "headers": {"content-type": "text/csv"}}
    assert (await client.post(DATASETS, **body)).status_code == (500 if fails else 201)
    assert [name for name, _ in used] == ["__enter__", "write", "__exit__"]
    assert threading.get_ident() not in {thread for _, thread in used}


async def test_upload_that_is_cancelled_while_it_is_filed_leaves_nothing_half(client, settings, monkeypatch):
    loop, leaving, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    leave = Incoming.__exit__

    def slowly(*arguments):
        loop.call_soon_threadsafe(leaving.set)
        assert go_on.wait(10)
        leave(*arguments)

    monkeypatch.setattr(Incoming, "__exit__", slowly)
    sending = asyncio.create_task(upload(client))
    await leaving.wait()
    sending.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert {name.split("/")[0] for name in stored_files(settings)} == {"datasets"}
    assert len(stored_files(settings)) == 2
