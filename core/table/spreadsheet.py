"""XLSX through openpyxl, row by row.

A file of a few kilobytes can unpack to gigabytes and claim a billion cells that are not there: its declared
sizes are checked before anything is unpacked, and nothing is believed of the dimensions that it states.
"""

import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import reduce
from typing import TypeAlias
from xml.etree.ElementTree import ParseError

import openpyxl
import pyarrow as pa
from openpyxl.utils.exceptions import InvalidFileException

from core.errors import DatasetError, DatasetTooLargeError
from core.table.columns import (
    NULL_STRINGS,
    DecimalCommaWatch,
    Limits,
    Opener,
    TableInfo,
    Tally,
    check_has_rows,
    check_names,
    conformed,
    decimal_comma_error,
    first_rows,
    selection,
    shown,
    table_of,
)

_CHUNK_ROWS = 4096
_MAX_ROWS, _MAX_COLUMNS = 1_048_576, 16_384  # of the format itself
_MARGIN_COLUMNS = 16
_MAX_HELD_BYTES = 256 << 20
_MAX_UNPACKED_BYTES = 4 << 30
_MAX_RATIO, _RATIO_FROM_BYTES = 100, 64 << 20  # sheets pack about 20 : 1, deflate ends at 1032 : 1
_ERROR_VALUES = {"#NULL!", "#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!"}
_NULLS = frozenset(NULL_STRINGS)

_Value: TypeAlias = bool | int | float | str | datetime | date | time | timedelta | None
_Row: TypeAlias = tuple[int, tuple[_Value, ...]]


@dataclass(frozen=True, slots=True)
class SpreadsheetReader:
    """Reads one sheet: its first row that is not empty is the header; empty rows are left out.

    Formulas count by the values that were saved with them.
    """

    sheet_name: str | None = None

    def read(self, open_file: Opener, columns: Sequence[str] | None, limits: Limits) -> pa.Table:
        sheet = _Sheet.of(open_file, self.sheet_name, limits)
        names = selection(sheet.names, columns)
        batches = [batch.select(names) for batch in limits.bounded(sheet.checked_batches())]
        schema = _joined_schema(batches)
        mixed = frozenset(field.name for field in schema if _was_narrower(batches, field))
        if mixed:
            batches = [batch.select(names) for batch in sheet.batches(mixed)]
        return table_of(conformed(batch.cast(schema)) for batch in batches)

    def inspect(self, open_file: Opener, limits: Limits) -> TableInfo:
        sheet = _Sheet.of(open_file, self.sheet_name, limits)
        tally = Tally(limits)
        schema = None
        for batch in sheet.checked_batches():
            tally.add(batch)
            schema = batch.schema if schema is None else _joined(schema, batch.schema)
        return tally.info(schema or pa.schema([]))

    def preview(self, open_file: Opener, rows: int) -> pa.Table:
        sheet = _Sheet.of(open_file, self.sheet_name)
        batches = list(first_rows(sheet.batches(chunk_rows=max(rows, 1)), rows))
        schema = _joined_schema(batches)
        return table_of(conformed(batch.cast(schema)) for batch in batches)


@dataclass(frozen=True, slots=True)
class _Sheet:
    """A sheet whose header has been read."""

    open_file: Opener
    sheet_name: str | None
    header_row: int
    names: list[str]

    @classmethod
    def of(cls, open_file: Opener, sheet_name: str | None, limits: Limits | None = None) -> "_Sheet":
        number, cells = next(_rows(open_file, sheet_name, _MAX_COLUMNS), (1, ()))
        width = max((index for index, cell in enumerate(cells, start=1) if cell is not None), default=0)
        names = ["" if cell is None else _text(cell) for cell in cells[:width]]
        (limits or Limits()).check_columns(width)
        check_names(names, line=number)
        return cls(open_file, sheet_name, number, names)

    def batches(
        self, text_columns: frozenset[str] = frozenset(), chunk_rows: int = _CHUNK_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Read chunks, each with the types of its own values, except ``text_columns``, which are strings."""
        chunk: list[_Row] = []
        for row in self._data_rows():
            chunk.append(row)
            if len(chunk) == chunk_rows:
                yield self._batch(chunk, text_columns)
                chunk = []
        if chunk:
            yield self._batch(chunk, text_columns)

    def checked_batches(self) -> Iterator[pa.RecordBatch]:
        watch = DecimalCommaWatch()
        for batch in self.batches():
            watch.add(batch)
            yield batch
        column = watch.suspect()
        if column is not None:
            raise decimal_comma_error(column, self._comma_row(self.names.index(column)))

    def _comma_row(self, index: int) -> int | None:
        values = ((number, cells[index]) for number, cells in self._data_rows())
        return next((number for number, value in values if isinstance(value, str) and "," in value), None)

    def _data_rows(self) -> Iterator[_Row]:
        width = len(self.names)
        for number, cells in _rows(self.open_file, self.sheet_name, width + _MARGIN_COLUMNS):
            if number <= self.header_row:
                continue
            if any(cell is not None for cell in cells[width:]):
                message = f"Every column needs a name; row {number} has values right of the header's {width}."
                raise DatasetError(message, line=number)
            yield number, cells[:width]

    def _batch(self, rows: list[_Row], text_columns: frozenset[str]) -> pa.RecordBatch:
        numbers = [number for number, _ in rows]
        arrays = [
            _array(name, list(values), numbers, as_text=name in text_columns)
            for name, values in zip(self.names, zip(*(cells for _, cells in rows), strict=True), strict=True)
        ]
        return pa.RecordBatch.from_arrays(arrays, names=self.names)


def _array(name: str, values: list[_Value], numbers: list[int], *, as_text: bool) -> pa.Array:
    for number, value in zip(numbers, values, strict=True):
        _check_value(name, number, value)
    values = [None if isinstance(value, str) and value in _NULLS else value for value in values]
    kinds = {type(value) for value in values} - {type(None)}
    if not kinds:
        return pa.nulls(len(values))
    if not as_text and kinds <= {datetime, date}:
        return pa.array(values, pa.timestamp("us"))
    if not as_text and kinds <= {int, float}:
        return _number_array(values, pa.float64() if float in kinds else pa.int64())
    if not as_text and kinds == {bool}:
        return pa.array(values, pa.bool_())
    return pa.array([None if value is None else _text(value) for value in values], pa.string())


def _number_array(values: list[_Value], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except (OverflowError, pa.ArrowInvalid):
        # beyond 64 bits, and integers beyond 2**53 beside floats
        return pa.array([None if value is None else float(str(value)) for value in values], pa.float64())


def _check_value(name: str, number: int, value: _Value) -> None:
    if isinstance(value, str) and value in _ERROR_VALUES:
        message = f"Column {shown(name)} has a formula error in row {number}; correct or empty the cell."
        raise DatasetError(message, line=number, column=name)
    if isinstance(value, time | timedelta):
        message = f"Column {shown(name)} has a time or duration in row {number}; write it as a number."
        raise DatasetError(message, line=number, column=name)


def _text(value: object) -> str:
    return value if isinstance(value, str) else str(value)


def _joined_schema(batches: Sequence[pa.RecordBatch]) -> pa.Schema:
    check_has_rows(len(batches))
    return reduce(_joined, (batch.schema for batch in batches))


def _joined(first: pa.Schema, second: pa.Schema) -> pa.Schema:
    return pa.schema(
        [
            pa.field(one.name, _joined_type(one.type, other.type))
            for one, other in zip(first, second, strict=True)
        ]
    )


def _joined_type(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    kinds = {first, second} - {pa.null()}
    if len(kinds) < 2:
        return next(iter(kinds), pa.null())
    return pa.float64() if kinds == {pa.int64(), pa.float64()} else pa.string()


def _was_narrower(batches: Sequence[pa.RecordBatch], field: pa.Field) -> bool:
    """Whether values were converted that must now be read again, as the text that they were."""
    kinds = {batch.schema.field(field.name).type for batch in batches}
    return bool(pa.types.is_string(field.type) and kinds - {pa.null(), pa.string()})


def _rows(open_file: Opener, sheet_name: str | None, width: int) -> Iterator[_Row]:
    """The rows that are not empty, with their numbers, ``width`` cells each."""
    with open_file() as file, _damaged():
        _check_sizes(file)
        workbook = openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)
        sheets = {sheet.title: sheet for sheet in workbook.worksheets}
        if sheet_name is not None and sheet_name not in sheets:
            raise _unknown_sheet_error(sheet_name, list(sheets))
        sheet = sheets[sheet_name] if sheet_name is not None else workbook.worksheets[0]
        sheet.reset_dimensions()
        rows = sheet.iter_rows(max_row=_MAX_ROWS, max_col=width, values_only=True)
        for number, cells in enumerate(rows, start=1):
            if any(cell is not None for cell in cells):
                yield number, cells


def _unknown_sheet_error(sheet_name: str, sheets: list[str]) -> DatasetError:
    listed = ", ".join(shown(name) for name in sheets[:5]) + (" …" if len(sheets) > 5 else "")
    message = f"The workbook has no sheet {shown(sheet_name)}; choose one of {listed}."
    return DatasetError(message, sheet_name=sheet_name, sheets=sheets)


def _check_sizes(file: pa.NativeFile) -> None:
    """Refuse a file that unpacks to more than sheets plausibly hold; zipfile stops at these sizes."""
    packed = file.seek(0, 2)
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    file.seek(0)
    unpacked = sum(member.file_size for member in members)
    held = sum(member.file_size for member in members if "worksheets/" not in member.filename)
    limit = min(_MAX_UNPACKED_BYTES, max(_RATIO_FROM_BYTES, _MAX_RATIO * packed))
    if unpacked > limit or held > _MAX_HELD_BYTES:
        size, most = (unpacked, limit) if unpacked > limit else (held, _MAX_HELD_BYTES)
        message = f"This XLSX unpacks to {size >> 20} MiB and may to {most >> 20}; send it as CSV."
        raise DatasetTooLargeError(message, unpacked_bytes=size, max_unpacked_bytes=most)


@contextmanager
def _damaged() -> Iterator[None]:
    """Turn the many ways in which openpyxl fails at a file into one error without any of its content."""
    message = "The file must be a whole XLSX workbook and it is damaged or another kind; save it again."
    try:
        yield
    except (
        InvalidFileException,
        zipfile.BadZipFile,
        zlib.error,
        ParseError,
        struct.error,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
    ):
        raise DatasetError(message) from None
