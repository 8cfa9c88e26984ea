"""CSV and TSV through Arrow's streaming reader, with the types of whole columns.

Arrow infers types from the first block of a stream and fails at what does not fit later on. Reading starts
with these types all the same: they nearly always hold. If they do not, every block's types are joined in a
survey of the file, and reading starts again with types that hold for all of it. ``pyarrow.csv.read_csv``
infers from whole columns by itself, but keeps the parsed text until it is done: 457 MB for a table of 157.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import pyarrow.csv as csv

from core.errors import DatasetError, DatasetTooLargeError
from core.table.columns import (
    NULL_STRINGS,
    DecimalCommaWatch,
    Limits,
    Opener,
    TableInfo,
    Tally,
    check_names,
    conformed,
    decimal_comma_error,
    first_rows,
    selection,
    table_of,
)
from core.table.locate import delimited_fault, field_line
from core.table.text import TextSource

_BLOCK_BYTES = 1 << 20  # also the longest row; 4 MiB was no faster and held 36 MB more
_SMALL_BLOCK_BYTES = 1 << 17  # Arrow reads 32 blocks ahead, which is all that an inspection holds
_MAX_CATEGORIES = 1000
_MAX_ATTEMPTS = 8
_CONVERSION = re.compile(r"In CSV column #(\d+): CSV conversion error to (?!string: invalid UTF8)")

Types = dict[str, pa.DataType]
Result = TypeVar("Result")


class _UnexpectedTypeError(Exception):
    """A value does not fit the type that its column had so far."""

    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


@dataclass(frozen=True, slots=True)
class DelimitedReader:
    """Reads delimited text; ``delimiter`` is told by the header if it is ``None``."""

    delimiter: str | None

    def read(self, open_file: Opener, columns: Sequence[str] | None, limits: Limits) -> pa.Table:
        source = _Source.of(open_file, self.delimiter, limits)
        return source.chosen(columns).settle(lambda batches: table_of(limits.bounded(batches)))

    def inspect(self, open_file: Opener, limits: Limits) -> TableInfo:
        source = _Source.of(open_file, self.delimiter, limits)

        def describe(batches: Iterator[pa.RecordBatch]) -> TableInfo:
            tally = Tally(limits)
            schema = pa.schema([])
            for batch in batches:
                tally.add(batch)
                schema = batch.schema
            return tally.info(schema)

        return source.settle_in_small_blocks(describe)

    def preview(self, open_file: Opener, rows: int) -> pa.Table:
        def first(batches: Iterator[pa.RecordBatch]) -> pa.Table:
            return table_of(first_rows(batches, rows))

        return _Source.of(open_file, self.delimiter).settle_in_small_blocks(first, rows=rows)


@dataclass(frozen=True, slots=True)
class _Source:
    """A delimited file whose header has been read, and the types of its first block."""

    open_file: Opener
    delimiter: str
    names: tuple[str, ...]
    types: Types

    @classmethod
    def of(cls, open_file: Opener, delimiter: str | None, limits: Limits | None = None) -> "_Source":
        delimiter = delimiter or _delimiter_of(open_file)
        # one byte more than a block: then the block ends with its last whole row, not inside the next one
        with TextSource(open_file, tail=b"\n", limit=_BLOCK_BYTES + 1) as text:
            try:
                options = _convert_options({}, infer=True)
                schema = _open_csv(text, delimiter, options, threads=False).schema
                names = schema.names
            except (pa.ArrowInvalid, UnicodeDecodeError):
                raise _fault(open_file, delimiter) from None
        (limits or Limits()).check_columns(len(names))
        check_names(names, line=1)
        return cls(
            open_file, delimiter, tuple(names), {field.name: _readable(field.type) for field in schema}
        )

    def chosen(self, columns: Sequence[str] | None) -> "_Source":
        types = {name: self.types[name] for name in selection(self.names, columns)}
        return _Source(self.open_file, self.delimiter, self.names, types)

    def settle(
        self,
        consume: Callable[[Iterator[pa.RecordBatch]], Result],
        *,
        block_bytes: int = _BLOCK_BYTES,
        rows: int | None = None,
    ) -> Result:
        """Feed the table to ``consume``; again from the start when a column proves to be of a wider type."""
        types = self.types
        for attempt in range(_MAX_ATTEMPTS):
            try:
                return consume(self._checked(types, block_bytes))
            except _UnexpectedTypeError as error:
                surprise = error.column
            # what a survey cannot know: 0x1F is an integer to Arrow, but 0x1F beside 1.5 is no float
            types = self._survey(types, rows) if attempt == 0 else types | {surprise: pa.string()}
        return consume(self._checked(dict.fromkeys(types, pa.string()), block_bytes))

    def settle_in_small_blocks(
        self, consume: Callable[[Iterator[pa.RecordBatch]], Result], *, rows: int | None = None
    ) -> Result:
        """``settle`` with an eighth of the memory; a row too long for a small block may fit the usual one."""
        try:
            return self.settle(consume, block_bytes=_SMALL_BLOCK_BYTES, rows=rows)
        except DatasetTooLargeError:
            raise
        except DatasetError:
            return self.settle(consume, rows=rows)

    def _checked(self, types: Types, block_bytes: int) -> Iterator[pa.RecordBatch]:
        watch = DecimalCommaWatch()
        for batch in self._batches(types, block_bytes):
            watch.add(batch)
            yield conformed(batch)
        column = watch.suspect()
        if column is not None:
            line = field_line(self.open_file, self.delimiter, column, lambda text: "," in text)
            raise decimal_comma_error(column, line)

    def _batches(self, types: Types, block_bytes: int = _BLOCK_BYTES) -> Iterator[pa.RecordBatch]:
        """Stream the rows with these types.

        A row of nulls is appended to the file and taken off again: a quote that nothing closes swallows it,
        and Arrow says nothing about such a quote.
        """
        tail = "\n" + self.delimiter.join(["NA"] * len(self.names)) + "\n"
        held, failure = None, None
        with TextSource(self.open_file, tail=tail.encode()) as text:
            try:
                options = _convert_options(types)
                for batch in _open_csv(text, self.delimiter, options, block_bytes=block_bytes):
                    if held is not None:
                        yield held
                    held = batch if batch.num_rows else held
            except pa.ArrowInvalid as error:
                failure = str(error)
        if failure is not None:
            if held is not None:
                yield held  # whoever has enough of the table now never meets the fault behind it
            raise self._translated(failure)
        if held is None or any(column[-1].is_valid for column in held.columns):
            raise _fault(self.open_file, self.delimiter)
        yield held.slice(0, held.num_rows - 1)

    def _translated(self, message: str) -> Exception:
        conversion = _CONVERSION.match(message)
        if conversion is None:
            return _fault(self.open_file, self.delimiter)
        return _UnexpectedTypeError(self.names[int(conversion[1])])

    def _survey(self, types: Types, rows: int | None) -> Types:
        """Join the types of all blocks, each inferred on its own, of the columns that may turn out wider."""
        narrow = {name: kind for name, kind in types.items() if not _is_text(kind)}
        batches = self._batches(dict.fromkeys(narrow, pa.string()))
        for batch in batches if rows is None else first_rows(batches, rows):
            for field in _inferred(batch):
                narrow[field.name] = _joined(narrow[field.name], _readable(field.type))
        return types | narrow


def _open_csv(
    text: TextSource,
    delimiter: str,
    options: csv.ConvertOptions,
    *,
    threads: bool = True,
    block_bytes: int = _BLOCK_BYTES,
) -> csv.CSVStreamingReader:
    return csv.open_csv(
        pa.PythonFile(text, "r"),
        csv.ReadOptions(block_size=block_bytes, use_threads=threads),
        csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        options,
    )


def _convert_options(types: Types, *, infer: bool = False) -> csv.ConvertOptions:
    return csv.ConvertOptions(
        column_types=types,
        include_columns=None if infer else list(types),
        null_values=list(NULL_STRINGS),
        strings_can_be_null=True,
        # not 0 and 1, which Arrow takes too: a column of them is of integers, whatever block it begins in
        true_values=["true", "True", "TRUE"],
        false_values=["false", "False", "FALSE"],
        auto_dict_encode=infer,
        auto_dict_max_cardinality=_MAX_CATEGORIES,
    )


def _inferred(batch: pa.RecordBatch) -> pa.Schema:
    """The types that Arrow's own converters find in one batch of text."""
    sink = pa.BufferOutputStream()
    csv.write_csv(batch, sink)
    text = sink.getvalue()
    options = _convert_options({}, infer=True)
    return csv.read_csv(
        pa.BufferReader(text),
        csv.ReadOptions(block_size=text.size + 1),
        csv.ParseOptions(newlines_in_values=True),
        options,
    ).schema


def _readable(kind: pa.DataType) -> pa.DataType:
    """A column of times is text, as CSV does not say that it is more; so is one that will not decode."""
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.string() if pa.types.is_time(values) or pa.types.is_binary(values) else kind


def _joined(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """The narrowest type that holds the values of both.

    >>> _joined(pa.int64(), pa.float64())
    DataType(double)
    >>> _joined(pa.int64(), pa.bool_())
    DataType(string)
    """
    kinds = {first, second} - {pa.null()}
    if len(kinds) < 2:
        return next(iter(kinds), pa.null())
    if kinds == {pa.int64(), pa.float64()}:
        return pa.float64()
    if kinds <= {pa.date32(), pa.timestamp("s"), pa.timestamp("ns")}:
        return pa.timestamp("ns" if pa.timestamp("ns") in kinds else "s")
    if kinds == {pa.timestamp("s", "UTC"), pa.timestamp("ns", "UTC")}:
        return pa.timestamp("ns", "UTC")
    return pa.string()


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_dictionary(kind))


def _delimiter_of(open_file: Opener) -> str:
    with TextSource(open_file) as text:
        head = b""
        while len(head) < _BLOCK_BYTES and b"\n" not in head.lstrip() and (more := text.read(1 << 16)):
            head += more
    lines = head.strip(b"\r\n").splitlines()
    header = re.sub(rb'"[^"]*"', b"", lines[0]) if lines else b""
    if b"," in header:
        return ","
    return max(",;\t|", key=lambda delimiter: header.count(delimiter.encode()))


def _fault(open_file: Opener, delimiter: str) -> DatasetError:
    message = f"The file is no readable table, or a row exceeds {_BLOCK_BYTES >> 20} MiB; check its quotes."
    return delimited_fault(open_file, delimiter) or DatasetError(message)
