"""What a table must be whatever file it came from: its names, its types, its size."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from core.errors import DatasetError, DatasetTooLargeError

Opener = Callable[[], pa.NativeFile]
DType = Literal["integer", "float", "boolean", "string", "date"]

NULL_STRINGS = ("", "NA", "N/A", "null", "NULL", "NaN", "nan", "#N/A", "None")
_SHOWN_NAME_LENGTH = 30

_NUMBERS_OR_NOTHING = (pa.types.is_null, pa.types.is_integer, pa.types.is_floating)
_NUMBER_WITH_POINT = r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER_WITH_COMMA = r"[0-9]{1,3}(?:[.][0-9]{3})+,[0-9]+|[0-9]*,[0-9]+"
_NUMBER = rf"^\s*[+-]?(?:{_NUMBER_WITH_POINT}|{_NUMBER_WITH_COMMA})(?:[eE][+-]?[0-9]+)?\s*$"


@dataclass(frozen=True, slots=True)
class ColumnInfo:
    name: str
    dtype: str
    null_count: int


@dataclass(frozen=True, slots=True)
class TableInfo:
    rows: int
    columns: tuple[ColumnInfo, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest table that is let in; ``None`` is no limit."""

    rows: int | None = None
    columns: int | None = None

    def check_rows(self, rows: int) -> None:
        if self.rows is not None and rows > self.rows:
            message = f"A table may have {self.rows} rows and this one has {rows} or more; send fewer."
            raise DatasetTooLargeError(message, rows=rows, max_rows=self.rows)

    def check_columns(self, columns: int) -> None:
        if self.columns is not None and columns > self.columns:
            message = f"A table may have {self.columns} columns and this one has {columns}; send fewer."
            raise DatasetTooLargeError(message, columns=columns, max_columns=self.columns)

    def bounded(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The batches, up to the first that exceeds the rows."""
        rows = 0
        for batch in batches:
            rows += batch.num_rows
            self.check_rows(rows)
            yield batch


class Tally:
    """Counts rows and nulls of the batches that pass through it, and keeps nothing of them.

    Raises:
        DatasetTooLargeError: At the first batch that exceeds the limits.
    """

    def __init__(self, limits: Limits) -> None:
        self.rows = 0
        self._limits = limits
        self._values: dict[str, int] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        self._limits.check_rows(self.rows)
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            self._values[name] = self._values.get(name, 0) + len(column) - column.null_count

    def info(self, schema: pa.Schema) -> TableInfo:
        check_has_rows(self.rows)
        return TableInfo(
            self.rows,
            tuple(
                ColumnInfo(field.name, dtype_of(field), self.rows - self._values.get(field.name, 0))
                for field in schema
            ),
        )


def shown(name: str) -> str:
    """A column name in quotes, short enough for a message."""
    cut = name if len(name) <= _SHOWN_NAME_LENGTH else name[: _SHOWN_NAME_LENGTH - 1] + "…"
    return f'"{cut}"'


def check_names(names: Sequence[str], *, line: int | None = None) -> None:
    """Refuse a table without columns, and blank or duplicate column names."""
    where = {} if line is None else {"line": line}
    at = "" if line is None else f"Line {line}: "
    if not names:
        raise DatasetError("A table must have a column and this one has none; add columns.", **where)
    for position, name in enumerate(names, start=1):
        if not name.strip():
            message = f"{at}Every column needs a name and column {position} has none; name it in the header."
            raise DatasetError(message, column=name, position=position, **where)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        listed = ", ".join(shown(name) for name in twice[:3]) + (" …" if len(twice) > 3 else "")
        message = f"{at}Column names must differ; rename the duplicates of {listed}."
        raise DatasetError(message, column=twice[0], **where)


def check_has_rows(rows: int) -> None:
    if rows == 0:
        raise DatasetError("A table must have rows and this one has none after its header; add rows of data.")


def selection(names: Sequence[str], columns: Sequence[str] | None) -> list[str]:
    """The columns to read, in the order asked for."""
    if columns is None:
        return list(names)
    if not columns:
        raise DatasetError("columns must name at least one column and is empty; leave it out to read all.")
    known = set(names)
    for name in columns:
        if name not in known:
            message = f"The table has no column {shown(name)} among its {len(names)}; correct the name."
            raise DatasetError(message, column=name)
    return list(dict.fromkeys(columns))


def dtype_of(field: pa.Field) -> DType:
    """The name that users see for a column's type.

    Raises:
        DatasetError: Values of this type cannot be learnt from.
    """
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "float"
    if pa.types.is_boolean(kind):
        return "boolean"
    if _is_text(kind) or pa.types.is_null(kind):
        return "string"
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return "date"
    advice = "write it as a number" if _is_time(kind) else "split it into plain columns"
    message = f"Column {shown(field.name)} holds {_plain_kind(kind)} values; {advice} or drop it."
    raise DatasetError(message, column=field.name)


def conformed_schema(schema: pa.Schema) -> pa.Schema:
    """The same columns as ``read_table`` returns them."""
    return pa.schema([pa.field(field.name, _conformed_type(field)) for field in schema])


def conformed(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Convert a batch to ``conformed_schema``; columns that already fit are not copied."""
    schema = conformed_schema(batch.schema)
    columns = [_conformed(column, field.type) for column, field in zip(batch.columns, schema, strict=True)]
    fields = [pa.field(field.name, column.type) for field, column in zip(schema, columns, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def table_of(batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """Gather batches of one schema; a column then shares one dictionary among its chunks.

    Raises:
        DatasetError: There are no rows.
    """
    parts = [batch for batch in batches if batch.num_rows]
    check_has_rows(len(parts))
    names = parts[0].schema.names
    columns = [pa.chunked_array([part.column(index) for part in parts]) for index in range(len(names))]
    parts.clear()
    # one column at a time, so that only one is ever held twice
    for index, column in enumerate(columns):
        if pa.types.is_dictionary(column.type):
            columns[index] = column.unify_dictionaries()
    return pa.Table.from_arrays(columns, names=names)


def first_rows(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Pass on the first ``rows`` rows and ask for nothing after them; at least one row."""
    left = max(rows, 1)
    for batch in batches:
        yield batch.slice(0, left)
        left -= batch.num_rows
        if left <= 0:
            return


class DecimalCommaWatch:
    """Finds text columns that are numbers written with a decimal comma, by looking at every batch.

    Such a column would be learnt as categories without a word, which is why it is refused.
    """

    def __init__(self) -> None:
        self._commas: dict[str, bool] = {}
        self._text: set[str] = set()

    def add(self, batch: pa.RecordBatch) -> None:
        for field, column in zip(batch.schema, batch.columns, strict=True):
            kind = field.type
            if field.name in self._text or any(test(kind) for test in _NUMBERS_OR_NOTHING):
                continue
            values = column.dictionary if pa.types.is_dictionary(kind) else column
            if not _is_text(values.type) or not _all_true(pc.match_substring_regex(values, _NUMBER)):
                self._text.add(field.name)
            elif not self._commas.get(field.name, False):
                self._commas[field.name] = _any_true(pc.match_substring(values, ","))

    def suspect(self) -> str | None:
        """The first column that is all numbers, some of them with a comma."""
        found = (name for name, commas in self._commas.items() if commas and name not in self._text)
        return next(found, None)


def decimal_comma_error(column: str, line: int | None) -> DatasetError:
    where = "" if line is None else f" in line {line}"
    message = f"Numbers need a decimal point; column {shown(column)} has a comma{where}. Write 1.5, not 1,5."
    return DatasetError(message, column=column, line=line)


def _conformed_type(field: pa.Field) -> pa.DataType:
    dtype = dtype_of(field)
    kind = field.type
    if dtype == "string":
        plain = pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type)
        return kind if plain else pa.string()
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_decimal(kind):
        return pa.float64()
    return pa.float32() if pa.types.is_float16(kind) else kind


def _conformed(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(column.type) and column.type != kind:
        column = column.dictionary_decode()
    if pa.types.is_dictionary(column.type) and column.dictionary.null_count:
        # nulls belong to the indices: a null among the categories would be counted as a value
        column = pc.dictionary_encode(column.dictionary_decode())
    return column if column.type == kind else column.cast(kind)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_time(kind) or pa.types.is_duration(kind) or pa.types.is_interval(kind))


def _plain_kind(kind: pa.DataType) -> str:
    if _is_time(kind):
        return "duration" if pa.types.is_duration(kind) else "time"
    if pa.types.is_struct(kind) or pa.types.is_map(kind) or pa.types.is_union(kind):
        return "nested"
    return "list" if pa.types.is_nested(kind) else "binary"


def _all_true(values: pa.Array) -> bool:
    return bool(pc.all(values, min_count=0).as_py())


def _any_true(values: pa.Array) -> bool:
    return bool(pc.any(values, min_count=0).as_py())
