"""JSON Lines, read in chunks of whole lines; a column's type is joined over all of them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as json

from core.errors import DatasetError
from core.table.columns import (
    Limits,
    Opener,
    TableInfo,
    Tally,
    check_names,
    conformed,
    dtype_of,
    first_rows,
    selection,
    table_of,
)
from core.table.locate import json_fault
from core.table.text import TextSource

_BLANK_LINE = re.compile(rb"^[ \t\r]*\n", re.MULTILINE)
_NO_OBJECT = re.compile(rb"\n[ \t\r]*[^ \t\r\n{]")
_CHUNK_BYTES = 1 << 20  # also the longest line
_MAX_DEPTH = 100
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"')
_DEPTH = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


@dataclass(frozen=True, slots=True)
class JsonLinesReader:
    """Reads one object a line; names that a line lacks are null there."""

    def read(self, open_file: Opener, columns: Sequence[str] | None, limits: Limits) -> pa.Table:
        def table(schema: pa.Schema) -> pa.Table:
            batches = _batches(open_file, _chosen(schema, columns), every=columns is None)
            return table_of(limits.bounded(batches))

        try:
            schema = _schema(open_file, rows=1, limits=limits)
            if columns is not None and not set(columns) <= set(schema.names):
                raise pa.ArrowInvalid("a column that is named further on")
            return table(schema)
        except pa.ArrowInvalid:
            return table(_schema(open_file, limits=limits))

    def inspect(self, open_file: Opener, limits: Limits) -> TableInfo:
        tally = Tally(limits)
        schema = _schema(open_file, tally=tally, limits=limits)
        return tally.info(schema)

    def preview(self, open_file: Opener, rows: int) -> pa.Table:
        schema = _schema(open_file, rows=rows)
        return table_of(first_rows(_batches(open_file, schema, every=False), rows))


def _schema(
    open_file: Opener, *, rows: int | None = None, tally: Tally | None = None, limits: Limits | None = None
) -> pa.Schema:
    """Join the types of all chunks, or of as many as have the first ``rows`` rows."""
    types: dict[str, pa.DataType] = {}
    read = 0
    for chunk in _chunks(open_file):
        try:
            batch = _parsed(chunk, json.ParseOptions())
        except (pa.ArrowInvalid, UnicodeDecodeError):
            raise _fault(open_file) from None
        for field in batch.schema:
            kind = _joined(types.get(field.name, pa.null()), field.type)
            if kind is None:
                raise _fault(open_file)
            types[field.name] = kind
        (limits or Limits()).check_columns(len(types))
        if tally is not None:
            tally.add(batch)
        read += batch.num_rows
        if rows is not None and read >= rows:
            break
    if read == 0:
        raise _fault(open_file)
    check_names(list(types))
    return pa.schema(types)


def _batches(open_file: Opener, schema: pa.Schema, *, every: bool) -> Iterator[pa.RecordBatch]:
    """Read with these types.

    Raises:
        pyarrow.ArrowInvalid: A chunk is not as the schema says; ``every``: or has further columns.
    """
    options = json.ParseOptions(
        explicit_schema=schema, unexpected_field_behavior="error" if every else "ignore"
    )
    for chunk in _chunks(open_file):
        yield conformed(_parsed(chunk, options))


def _parsed(chunk: bytes, options: json.ParseOptions) -> pa.RecordBatch:
    """Parse whole lines; what Arrow lets pass and JSON Lines does not allow is refused like the rest."""
    if _NO_OBJECT.search(b"\n" + chunk):  # Arrow takes null for a row, and null in front ends the process
        raise pa.ArrowInvalid("a line that is no object")
    table = json.read_json(pa.BufferReader(chunk), json.ReadOptions(block_size=len(chunk) + 1), options)
    columns = [column.combine_chunks() for column in table.columns]
    batch = pa.RecordBatch.from_arrays(columns, names=table.schema.names)
    batch.validate(full=True)
    for column in batch.columns:
        if pa.types.is_floating(column.type) and not pc.all(pc.is_finite(column), min_count=0).as_py():
            raise pa.ArrowInvalid("NaN or Infinity")
    lines = chunk.count(b"\n") + (not chunk.endswith(b"\n")) - len(_BLANK_LINE.findall(chunk))
    if batch.num_rows != lines:
        raise pa.ArrowInvalid("objects and lines differ")
    return batch


def _chunks(open_file: Opener) -> Iterator[bytes]:
    with TextSource(open_file) as text:
        rest = b""
        while data := text.read(_CHUNK_BYTES):
            cut = data.rfind(b"\n") + 1
            if cut == 0 and len(rest) + len(data) > 2 * _CHUNK_BYTES:
                raise _fault(open_file)
            if cut == 0:
                rest += data
                continue
            chunk, rest = rest + data[:cut], data[cut:]
            if not chunk.isspace():
                yield _shallow(chunk)
        if rest.strip():
            yield _shallow(rest)


def _shallow(chunk: bytes) -> bytes:
    """Arrow parses recursively: a line of 300,000 open brackets ends the process, not only the request."""
    if chunk.count(b"[") + chunk.count(b"{") > chunk.count(b"\n") + _MAX_DEPTH:
        for line in chunk.split(b"\n"):
            steps = (_DEPTH[byte] for byte in _STRING.sub(b"", line) if byte in _DEPTH)
            if max(accumulate(steps), default=0) > _MAX_DEPTH:
                message = "Every line must be a flat JSON object and one is nested deeply; flatten it."
                raise DatasetError(message)
    return chunk


def _joined(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    kinds = {first, second} - {pa.null()}
    if len(kinds) < 2:
        return next(iter(kinds), pa.null())
    if kinds == {pa.int64(), pa.float64()}:
        return pa.float64()
    if kinds == {pa.timestamp("s"), pa.string()}:
        return pa.string()
    return first if pa.types.is_nested(first) else None


def _chosen(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    fields = [schema.field(name) for name in selection(schema.names, columns)]
    for field in fields:
        dtype_of(field)
    return pa.schema(fields)


def _fault(open_file: Opener) -> DatasetError:
    message = f"Every line must be a flat JSON object of less than {_CHUNK_BYTES >> 20} MiB; check the file."
    return json_fault(open_file) or DatasetError(message)
