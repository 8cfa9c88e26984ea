"""What holds for tables of every format."""

import ast
from pathlib import Path

import pyarrow as pa
import pytest

import core.table
from core.errors import DatasetError
from core.table import FORMATS, format_of, inspect_table, read_table


@pytest.mark.parametrize(
    ("name", "media_type", "expected"),
    [
        ("a.csv", None, "csv"),
        ("A.CSV", None, "csv"),
        ("a.b.tsv", None, "tsv"),
        ("a.tab", None, "tsv"),
        ("a.parquet", "text/csv", "parquet"),
        ("a.pq", None, "parquet"),
        ("a.arrow", None, "arrow"),
        ("a.feather", None, "arrow"),
        ("a.ipc", None, "arrow"),
        ("a.arrows", None, "arrow"),
        ("dir.csv/a.jsonl", None, "jsonl"),
        ("a.ndjson", None, "jsonl"),
        ("a.xlsx", None, "xlsx"),
        (None, "text/csv; charset=utf-8", "csv"),
        ("a", "Text/Tab-Separated-Values", "tsv"),
        ("a.dat", "application/vnd.apache.parquet", "parquet"),
        (None, "application/x-parquet", "parquet"),
        (None, "application/vnd.apache.arrow.stream", "arrow"),
        (None, "application/vnd.apache.arrow.file", "arrow"),
        (None, "application/x-ndjson", "jsonl"),
        (None, "application/jsonl", "jsonl"),
        (None, "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", "xlsx"),
    ],
)
def test_the_ending_decides_the_format_before_the_media_type(name, media_type, expected):
    assert format_of(name, media_type) == expected


@pytest.mark.parametrize("name", [None, "", "a", "a.xls", "csv", "a.csv.gz"])
def test_an_unknown_format_is_refused_with_those_supported(name):
    with pytest.raises(DatasetError, match="CSV, TSV, Parquet, Arrow, JSON Lines or XLSX") as caught:
        format_of(name, "application/octet-stream")
    assert len(caught.value.message) <= 100


@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_of_nothing_readable_are_refused_in_every_format(kind):
    for content in (b"", b"\0" * 100, b"\xff" * 100):
        for function in (read_table, inspect_table):
            with pytest.raises(DatasetError):
                function(lambda content=content: pa.BufferReader(content), kind)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "xlsx"])
def test_a_sheet_name_is_refused_where_there_are_no_sheets(kind):
    with pytest.raises(DatasetError, match=kind.upper()):
        read_table(lambda: pa.BufferReader(b"a\n1\n"), kind, sheet_name="S")


def test_reading_needs_neither_torch_nor_ray_nor_a_web_framework():
    imported = set()
    for path in Path(core.table.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.partition(".")[0] for name in names}
            imported |= {name for name in names if name.startswith("core.")}
    assert not imported & {"torch", "ray", "starlette", "fastapi"}
    assert all(
        name.startswith(("core.table", "core.errors")) for name in imported if name.startswith("core.")
    )
