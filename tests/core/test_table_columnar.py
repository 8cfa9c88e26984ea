"""Parquet and Arrow: types that are kept, converted and refused, and damage."""

import datetime as dt
import io
from decimal import Decimal

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from core.errors import DatasetError, DatasetTooLargeError
from core.table import inspect_table, preview_table, read_table

KINDS = ["parquet", "arrow file", "arrow stream"]


def written(table, kind):
    sink = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, sink, row_group_size=1000)
    else:
        new = ipc.new_file if kind == "arrow file" else ipc.new_stream
        with new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)
    return sink.getvalue()


def opener(content):
    return lambda: pa.BufferReader(content)


def read(content, kind, **options):
    return read_table(opener(content), kind.split()[0], **options)


def failure(content, kind):
    with pytest.raises(DatasetError) as reading:
        read(content, kind)
    with pytest.raises(DatasetError) as inspecting:
        inspect_table(opener(content), kind.split()[0])
    assert inspecting.value.message == reading.value.message
    assert len(reading.value.message) <= 100
    return reading.value


MOMENT = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
COLUMNS = {
    "small": (pa.array([1, None], pa.int8()), pa.int8(), "integer"),
    "unsigned": (pa.array([1, 2], pa.uint64()), pa.uint64(), "integer"),
    "single": (pa.array([1.5, None], pa.float32()), pa.float32(), "float"),
    "half": (pa.array([1.5, None], pa.float16()), pa.float32(), "float"),
    "decimal": (pa.array([Decimal("1.25"), None]), pa.float64(), "float"),
    "boolean": (pa.array([True, None]), pa.bool_(), "boolean"),
    "large": (pa.array(["x", None], pa.large_string()), pa.string(), "string"),
    "category": (
        pa.array(["x", None]).dictionary_encode(),
        pa.dictionary(pa.int32(), pa.string()),
        "string",
    ),
    "codes": (pa.array([7, None]).dictionary_encode(), pa.int64(), "integer"),
    "nothing": (pa.nulls(2), pa.string(), "string"),
    "day": (pa.array([dt.date(2024, 1, 1), None]), pa.date32(), "date"),
    "moment": (pa.array([MOMENT, None], pa.timestamp("us", "UTC")), pa.timestamp("us", "UTC"), "date"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_is_kept_or_converted_and_described_alike(name, kind):
    given, expected, dtype = COLUMNS[name]
    content = written(pa.table({name: given, "other": [1, 2]}), kind)
    table = read(content, kind)
    (column, _) = inspect_table(opener(content), kind.split()[0]).columns
    assert table.schema.field(name).type == expected
    assert [None if v is None else float(v) if name == "decimal" else v for v in given.to_pylist()] == table[
        name
    ].to_pylist()
    assert (column.name, column.dtype, column.null_count) == (name, dtype, table[name].null_count)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1], None]),
        pa.array([{"a": 1}, None]),
        pa.array([b"x", None]),
        pa.array([dt.time(1), None]),
    ],
    ids=["list", "struct", "binary", "time"],
)
def test_a_column_that_cannot_be_learnt_from_is_named_and_may_be_left_out(column, kind):
    content = written(pa.table({"a": [1, 2], "odd": column}), kind)
    error = failure(content, kind)
    assert error.details["column"] == "odd"
    assert '"odd"' in error.message
    assert read(content, kind, columns=["a"]).to_pydict() == {"a": [1, 2]}


def test_durations_are_refused():
    content = written(pa.table({"a": pa.array([1], pa.duration("s"))}), "arrow file")
    assert "duration" in failure(content, "arrow file").message


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_all_groups_come_in_order_and_chosen_columns_as_asked(kind):
    content = written(pa.table({"a": range(5000), "b": ["x", "y"] * 2500, "a.b": range(5000)}), kind)
    assert read(content, kind, columns=["a.b", "a"]).schema.names == ["a.b", "a"]
    assert read(content, kind)["a"].to_pylist() == list(range(5000))
    assert inspect_table(opener(content), kind.split()[0]).rows == 5000
    with pytest.raises(DatasetError, match='"z"'):
        read(content, kind, columns=["z"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_preview_is_the_first_rows(kind):
    content = written(pa.table({"a": range(5000)}), kind)
    assert preview_table(opener(content), kind.split()[0], 1500)["a"].to_pylist() == list(range(1500))


@pytest.mark.parametrize("kind", KINDS)
def test_tables_without_rows_or_with_bad_names_are_refused(kind):
    assert "rows" in failure(written(pa.table({"a": pa.array([], pa.int64())}), kind), kind).message
    assert "duplicates" in failure(written(pa.table([[1], [2]], names=["a", "a"]), kind), kind).message
    assert "name" in failure(written(pa.table({" ": [1]}), kind), kind).message


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused(kind):
    content = written(pa.table({"a": range(5000), "b": [f"text {i}" for i in range(5000)]}), kind)
    name = "Parquet" if kind == "parquet" else "Arrow"
    for damaged in (b"", b"PK\x03\x04 else", content[: len(content) // 2], content[:-9]):
        if kind == "arrow stream" and damaged == content[:-9]:
            continue  # only its end mark is missing there
        assert name in failure(damaged, kind).message


@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_byte_escapes_as_another_error(kind):
    content = written(pa.table({"a": range(50), "b": [f"text {i}" for i in range(50)]}), kind)
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 0x40
        try:
            read(bytes(damaged), kind)
        except DatasetError:
            continue


def test_offsets_that_point_outside_are_refused():
    sink = io.BytesIO()
    with ipc.new_stream(sink, pa.schema({"a": pa.string()})) as writer:
        writer.write_batch(pa.record_batch({"a": ["abc"]}))
    content = sink.getvalue().replace(b"\0\0\0\0\3\0\0\0", b"\0\0\0\0\xff\xff\xff\x7f")
    assert content != sink.getvalue()
    failure(content, "arrow stream")


def test_text_that_is_not_utf8_is_refused():
    content = written(pa.table({"a": ["abcdef"]}), "arrow stream").replace(b"abcdef", b"abc\xffef")
    failure(content, "arrow stream")


@pytest.mark.parametrize("function", [inspect_table, read_table])
@pytest.mark.parametrize("kind", KINDS)
def test_limits_name_both_numbers(kind, function):
    content = opener(written(pa.table({"a": range(50), "b": range(50), "c": range(50)}), kind))
    with pytest.raises(DatasetTooLargeError, match=r"2 columns.*3"):
        function(content, kind.split()[0], max_columns=2)
    with pytest.raises(DatasetTooLargeError, match=r"49 rows.*50"):
        function(content, kind.split()[0], max_rows=49)


def test_errors_of_the_operating_system_are_not_called_damage(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_table(lambda: pa.OSFile(str(tmp_path / "absent")), "parquet")
