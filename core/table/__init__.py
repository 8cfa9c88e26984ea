"""Tables: what Stillhouse reads, and the checks that every table passes before anybody trains on it.

``read_table``, ``inspect_table`` and ``preview_table`` accept and refuse the same files for the same reasons.
Columns that a caller leaves out through ``columns`` are neither converted nor checked.
"""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal, Protocol, get_args

import pyarrow as pa

from core.errors import DatasetError
from core.table.columnar import ArrowReader, ParquetReader
from core.table.columns import ColumnInfo, DType, Limits, Opener, TableInfo
from core.table.delimited import DelimitedReader
from core.table.jsonlines import JsonLinesReader
from core.table.spreadsheet import SpreadsheetReader

Format = Literal["csv", "tsv", "parquet", "arrow", "jsonl", "xlsx"]
FORMATS: tuple[Format, ...] = get_args(Format)

__all__ = [
    "FORMATS",
    "ColumnInfo",
    "DType",
    "Format",
    "Opener",
    "TableInfo",
    "format_of",
    "inspect_table",
    "preview_table",
    "read_table",
]

_BY_ENDING: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".xlsx": "xlsx",
}
_BY_MEDIA_TYPE: dict[str, Format] = {
    "text/csv": "csv",
    "text/tab-separated-values": "tsv",
    "application/vnd.apache.parquet": "parquet",
    "application/x-parquet": "parquet",
    "application/vnd.apache.arrow.stream": "arrow",
    "application/vnd.apache.arrow.file": "arrow",
    "application/x-ndjson": "jsonl",
    "application/jsonl": "jsonl",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
}


class _Reader(Protocol):
    def read(self, open_file: Opener, columns: Sequence[str] | None, limits: Limits) -> pa.Table: ...

    def inspect(self, open_file: Opener, limits: Limits) -> TableInfo: ...

    def preview(self, open_file: Opener, rows: int) -> pa.Table: ...


def format_of(name: str | None, media_type: str | None) -> Format:
    """Tell a table's format by the ending of its name, else by its media type.

    >>> format_of("Wine.CSV", "application/octet-stream")
    'csv'
    >>> format_of(None, "text/csv; charset=utf-8")
    'csv'

    Raises:
        DatasetError: Neither is a known one.
    """
    ending = PurePosixPath(name or "").suffix.lower()
    media = (media_type or "").partition(";")[0].strip().lower()
    found = _BY_ENDING.get(ending) or _BY_MEDIA_TYPE.get(media)
    if found is None:
        raise DatasetError(
            "A table must be CSV, TSV, Parquet, Arrow, JSON Lines or XLSX; name it data.csv, say."
        )
    return found


def read_table(
    open_file: Opener,
    format: Format,  # noqa: A002
    *,
    sheet_name: str | None = None,
    columns: Sequence[str] | None = None,
    max_rows: int | None = None,
    max_columns: int | None = None,
) -> pa.Table:
    """Read a whole table into memory.

    Args:
        open_file: Opens the same bytes anew at each call; called more than once where types must be settled.
        format: How the bytes are to be read.
        sheet_name: A sheet of an XLSX file; its first sheet if left out.
        columns: The columns to read, in this order; all if left out.

    Returns:
        Columns of integers, floats, booleans, strings (plain or dictionary-encoded, one dictionary a column),
        dates and timestamps, chunked as the file was. A column without any value is a string column.

    Raises:
        DatasetTooLargeError: It has more than ``max_rows`` or ``max_columns``; reading ends there.
        DatasetError: The file is not such a table; ``details`` hold ``line`` and ``column`` where known.
    """
    return _reader(format, sheet_name).read(open_file, columns, Limits(rows=max_rows, columns=max_columns))


def inspect_table(
    open_file: Opener,
    format: Format,  # noqa: A002
    *,
    max_rows: int | None = None,
    max_columns: int | None = None,
) -> TableInfo:
    """Validate a whole table and describe it, holding only a few blocks of it at a time.

    Raises:
        DatasetTooLargeError: It has more than ``max_rows`` or ``max_columns``; reading ends there.
        DatasetError: As ``read_table`` would.
    """
    return _reader(format, None).inspect(open_file, Limits(rows=max_rows, columns=max_columns))


def preview_table(open_file: Opener, format: Format, rows: int) -> pa.Table:  # noqa: A002
    """Read the first ``rows`` rows, with types as the beginning of the file has them.

    What follows is neither validated nor considered: types can differ from those of the whole table.
    """
    return _reader(format, None).preview(open_file, rows)


def _reader(kind: Format, sheet_name: str | None) -> _Reader:
    if sheet_name is not None and kind != "xlsx":
        raise DatasetError(f"Only XLSX has sheets, and this table is {kind.upper()}; leave out sheet_name.")
    match kind:
        case "csv" | "tsv":
            return DelimitedReader("\t" if kind == "tsv" else None)
        case "parquet":
            return ParquetReader()
        case "arrow":
            return ArrowReader()
        case "jsonl":
            return JsonLinesReader()
        case "xlsx":
            return SpreadsheetReader(sheet_name)
