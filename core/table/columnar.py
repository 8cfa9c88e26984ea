"""Parquet and Arrow files, whose types come with them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from core.errors import DatasetError
from core.table.columns import (
    Limits,
    Opener,
    TableInfo,
    Tally,
    check_has_rows,
    check_names,
    conformed,
    conformed_schema,
    first_rows,
    selection,
    table_of,
)

_BATCH_ROWS = 1 << 16
_FILE_MARK = b"ARROW1"


@dataclass(frozen=True, slots=True)
class ParquetReader:
    def read(self, open_file: Opener, columns: Sequence[str] | None, limits: Limits) -> pa.Table:
        with open_file() as file, _damaged("Parquet"):
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            limits.check_columns(len(parquet.schema_arrow))
            limits.check_rows(parquet.metadata.num_rows)
            names = _readable_names(parquet.schema_arrow, columns)
            check_has_rows(parquet.metadata.num_rows)
            table = parquet.read(columns=names, use_threads=True).select(names)
            return table_of(_validated(table.to_batches()))

    def inspect(self, open_file: Opener, limits: Limits) -> TableInfo:
        with open_file() as file, _damaged("Parquet"):
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            limits.check_columns(len(parquet.schema_arrow))
            limits.check_rows(parquet.metadata.num_rows)
            names = _readable_names(parquet.schema_arrow, None)
            check_has_rows(parquet.metadata.num_rows)
            return _described(parquet.iter_batches(_BATCH_ROWS, columns=names), parquet.schema_arrow, limits)

    def preview(self, open_file: Opener, rows: int) -> pa.Table:
        with open_file() as file, _damaged("Parquet"):
            parquet = pq.ParquetFile(file)
            names = _readable_names(parquet.schema_arrow, None)
            batches = parquet.iter_batches(min(max(rows, 1), _BATCH_ROWS), columns=names)
            return table_of(first_rows(_validated(batches), rows))


@dataclass(frozen=True, slots=True)
class ArrowReader:
    """Reads the IPC file format, which is Feather 2 as well, and the IPC stream format."""

    def read(self, open_file: Opener, columns: Sequence[str] | None, limits: Limits) -> pa.Table:
        with open_file() as file, _damaged("Arrow"):
            schema = _open_ipc(file).schema
            limits.check_columns(len(schema))
            names = _readable_names(schema, columns)
            return table_of(_validated(limits.bounded(_ipc_batches(file, names))))

    def inspect(self, open_file: Opener, limits: Limits) -> TableInfo:
        with open_file() as file, _damaged("Arrow"):
            schema = _open_ipc(file).schema
            limits.check_columns(len(schema))
            names = _readable_names(schema, None)
            return _described(_ipc_batches(file, names), schema, limits)

    def preview(self, open_file: Opener, rows: int) -> pa.Table:
        with open_file() as file, _damaged("Arrow"):
            names = _readable_names(_open_ipc(file).schema, None)
            return table_of(first_rows(_validated(_ipc_batches(file, names)), rows))


def _readable_names(schema: pa.Schema, columns: Sequence[str] | None) -> list[str]:
    check_names(schema.names)
    names = selection(schema.names, columns)
    conformed_schema(pa.schema([schema.field(name) for name in names]))
    return names


def _described(batches: Iterator[pa.RecordBatch], schema: pa.Schema, limits: Limits) -> TableInfo:
    tally = Tally(limits)
    for batch in _validated(batches):
        tally.add(batch)
    return tally.info(conformed_schema(schema))


def _validated(batches: Iterator[pa.RecordBatch] | list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Check offsets, indices and UTF-8, which Arrow believes unseen: a forged offset reads foreign memory."""
    for batch in batches:
        batch.validate(full=True)
        yield conformed(batch)


def _open_ipc(
    file: pa.NativeFile, options: ipc.IpcReadOptions | None = None
) -> ipc.RecordBatchFileReader | ipc.RecordBatchStreamReader:
    file.seek(0)
    is_file = file.read(len(_FILE_MARK)) == _FILE_MARK
    file.seek(0)
    return ipc.open_file(file, options=options) if is_file else ipc.open_stream(file, options=options)


def _ipc_batches(file: pa.NativeFile, names: list[str]) -> Iterator[pa.RecordBatch]:
    all_names = _open_ipc(file).schema.names
    reader = _open_ipc(file, ipc.IpcReadOptions(included_fields=[all_names.index(name) for name in names]))
    if isinstance(reader, ipc.RecordBatchStreamReader):
        batches = iter(reader)
    else:
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
    for batch in batches:
        yield batch.select(names)


@contextmanager
def _damaged(kind: str) -> Iterator[None]:
    """Turn what Arrow says of a file that it cannot read into an error without any of its content."""
    message = (
        f"The file must be a whole {kind} file and it is damaged or another kind; write and send it anew."
    )
    try:
        yield
    except pa.ArrowException:
        raise DatasetError(message) from None
    except UnicodeDecodeError:
        raise DatasetError(message) from None
    except OSError as error:
        # Arrow reports damage as OSError too, but only the operating system sets errno
        if error.errno is not None:
            raise
        raise DatasetError(message) from None
