"""JSON Lines: types joined over the file, and what a refusal says."""

import subprocess
import sys

import pyarrow as pa
import pytest

from core.errors import DatasetError, DatasetTooLargeError
from core.table import inspect_table, preview_table, read_table

CARD = "4111-1111"
MANY = 150_000  # beyond one chunk


def opener(data):
    content = data.encode() if isinstance(data, str) else data
    return lambda: pa.BufferReader(content)


def read(data, **options):
    return read_table(opener(data), "jsonl", **options)


def described(data):
    info = inspect_table(opener(data), "jsonl")
    return info.rows, {column.name: (column.dtype, column.null_count) for column in info.columns}


def failure(data, **options):
    with pytest.raises(DatasetError) as reading:
        read(data, **options)
    if not options:
        with pytest.raises(DatasetError) as inspecting:
            inspect_table(opener(data), "jsonl")
        assert inspecting.value.message == reading.value.message
    assert len(reading.value.message) <= 100
    assert CARD not in reading.value.message
    return reading.value


def test_each_kind_of_value_gets_its_type_and_absent_names_are_null():
    data = '{"i":1,"f":1,"b":true,"s":"NA","d":"2024-01-01"}\n{"i":2,"f":0.5}\n\n'
    table = read(data)
    assert table.schema.types == [pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.timestamp("s")]
    assert table["s"].to_pylist() == ["NA", None]
    assert described(data) == (
        2,
        {"i": ("integer", 0), "f": ("float", 0), "b": ("boolean", 1), "s": ("string", 1), "d": ("date", 1)},
    )


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf%s", None])
def test_encodings_do_not_change_the_table(content):
    line = '{"a":"é"}\n'
    data = content % line.encode() if content else line.encode("utf-16")
    assert read(data).to_pydict() == {"a": ["é"]}


@pytest.mark.parametrize(
    ("usual", "last", "dtype"),
    [
        ('"a":1', '"a":1.5', "float"),
        ('"a":null', '"a":1', "integer"),
        ('"a":null', '"a":"x"', "string"),
        ('"a":"2024-01-01"', '"a":"x"', "string"),
        ('"b":1', '"a":true', "boolean"),
        ('"a":1', '"a":99999999999999999999', "float"),
    ],
)
def test_the_last_of_many_chunks_decides_the_type(usual, last, dtype):
    data = f'{{{usual},"filler":"{"x" * 20}"}}\n' * MANY + f"{{{last}}}"
    table = read(data)
    rows, columns = described(data)
    assert rows == table.num_rows == MANY + 1
    assert columns["a"] == (dtype, table["a"].null_count)
    assert columns["filler"] == ("string", 1)
    if dtype == "string":
        assert table["a"][0].as_py() in (None, "2024-01-01")


def test_chosen_columns_come_in_order_even_where_they_begin_late():
    data = '{"a":1,"nested":[1]}\n' * MANY + '{"b":2}\n'
    assert read(data, columns=["b", "a"])["b"].null_count == MANY
    assert read(data, columns=["b", "a"]).schema.names == ["b", "a"]
    assert '"z"' in failure(data, columns=["z"]).message


@pytest.mark.parametrize("before", [0, MANY])
@pytest.mark.parametrize(
    ("line", "claim"),
    [
        ("[1, 2]", "object"),
        ("7", "object"),
        (f'{{"a": "{CARD}"', "valid JSON"),
        ('{"a": 1} {"a": 2}', "valid JSON"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "NaN"),
        ('{"a": 1e999}', "valid JSON"),
        (f'{{"a": "{CARD}"}}', 'Column "a" has a string'),
        ('{"a": true}', 'Column "a" has a boolean'),
        ('{"a": [1]}', "nested"),
        ('{"a": {"b": 1}}', "nested"),
        ('{"a": 1, "a": 2}', '"a" twice'),
        ('{"b": "\\ud800"}', "valid JSON"),
    ],
)
def test_a_line_at_fault_is_named(before, line, claim):
    error = failure('\n{"a": 1}\n' + '{"a": 1}\n' * before + line + "\n")
    assert error.details["line"] == before + 3
    assert claim in error.message


def test_bytes_that_are_not_utf8_are_named_by_line():
    assert failure(b'{"a":"x"}\n{"a":"\xff"}\n').details["line"] == 2
    assert failure(b'{"a":"x"}\n{"\xff":"y"}\n').details["line"] == 2


@pytest.mark.parametrize("data", ["", "\n \n"])
def test_an_empty_file_is_refused(data):
    assert "empty" in failure(data).message


def test_nested_columns_blank_names_and_objects_without_names_are_refused():
    assert failure('{"a": [1]}\n').details["column"] == "a"
    assert "name" in failure('{" ": 1}\n').message
    failure("{}\n")


def test_a_deeply_nested_line_is_refused_and_does_not_end_the_process():
    script = """
import pyarrow as pa
from core.errors import DatasetError
from core.table import inspect_table
line = b'{"a":' + b"[" * 300_000 + b"]" * 300_000 + b"}"
try:
    inspect_table(lambda: pa.BufferReader(line), "jsonl")
except DatasetError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


def test_brackets_inside_strings_are_not_nesting():
    data = '{"a":"' + "[" * 5000 + '\\"["}\n'
    assert read(data)["a"].to_pylist() == ["[" * 5000 + '"[']


@pytest.mark.parametrize("function", [inspect_table, read_table])
def test_limits_name_both_numbers(function):
    data = opener('{"a":1,"b":2,"c":3}\n' * 50)
    with pytest.raises(DatasetTooLargeError, match=r"2 columns.*3"):
        function(data, "jsonl", max_columns=2)
    with pytest.raises(DatasetTooLargeError, match=r"49 rows.*50"):
        function(data, "jsonl", max_rows=49)


def test_a_preview_is_the_first_rows():
    data = '{"a":1}\n' * MANY + "broken"
    assert preview_table(opener(data), "jsonl", 3).to_pydict() == {"a": [1, 1, 1]}


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ("null\n", 1),
        ('null{"a":1}\n', 1),
        (' \n\t null\n{"a":1}\n', 2),
        ('{"a":1}\nnull\n{"a":2}\n', 2),
        ('{"a":1}\n' * MANY + "null\n", MANY + 1),
    ],
)
def test_null_is_no_line(data, line):
    """Arrow makes a row of nulls of it; in front of a chunk it ended the process that read the upload."""
    assert failure(data).details["line"] == line
