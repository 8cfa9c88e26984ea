"""Uploaded tables: content-addressed, inspected once, immutable."""

import hashlib
import json
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final, Self

import pyarrow as pa

from core.contract import DataSource
from core.errors import DatasetNotFoundError, RequestError
from core.paging import Page, paginate
from core.storage import Storage
from core.table import Format, inspect_table, preview_table

UPLOADS: Final = "uploads"


@dataclass(frozen=True, slots=True)
class Dataset:
    """One uploaded table.

    Attributes:
        dataset_id: Format and SHA-256: the same content is the same dataset.
        columns: Name, dtype and null count of each.
    """

    dataset_id: str
    name: str | None
    format: Format
    bytes: int
    sha256: str
    rows: int
    columns: tuple[dict[str, object], ...]
    created_at: str

    @classmethod
    def from_json(cls, text: str) -> Self:
        fields = json.loads(text)
        return cls(**fields | {"columns": tuple(fields["columns"])})

    def to_dict(self) -> dict[str, object]:
        return asdict(self) | {"columns": list(self.columns)}


class DatasetCatalogue:
    """Datasets in storage: ``datasets/<id>/data.<format>`` and, written last, ``info.json``."""

    def __init__(self, storage: Storage, *, max_rows: int, max_columns: int) -> None:
        self._storage = storage
        self._max_rows, self._max_columns = max_rows, max_columns

    def incoming(self) -> "Incoming":
        return Incoming(self._storage)

    def add(self, incoming: "Incoming", format: Format, name: str | None) -> tuple[Dataset, bool]:  # noqa: A002
        """Reads the received table through once and files it.

        Returns:
            The dataset, and whether it is new.

        Raises:
            DatasetError: if it cannot be read; nothing is kept.
        """
        try:
            dataset_id = f"{format}-{incoming.sha256[:32]}"
            if self._storage.exists(_info(dataset_id)):
                return self.get(dataset_id), False
            table = inspect_table(
                lambda: self._storage.open_native(incoming.name),
                format,
                max_rows=self._max_rows,
                max_columns=self._max_columns,
            )
            dataset = Dataset(
                dataset_id=dataset_id,
                name=name,
                format=format,
                bytes=incoming.bytes,
                sha256=incoming.sha256,
                rows=table.rows,
                columns=tuple(asdict(column) for column in table.columns),
                created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            )
            self._storage.move(incoming.name, _data(dataset_id, format))
            self._storage.write(_info(dataset_id), json.dumps(dataset.to_dict()).encode())
        finally:
            self._storage.delete(incoming.name)
        return dataset, True

    def get(self, dataset_id: str) -> Dataset:
        """Raises DatasetNotFoundError."""
        try:
            return Dataset.from_json(self._storage.read(_info(dataset_id)).decode())
        except (FileNotFoundError, RequestError):
            raise DatasetNotFoundError(
                f"There is no dataset {dataset_id!r:.45}: upload it to /api/v1/datasets.",
                dataset_id=dataset_id[:128],
            ) from None

    def source(self, dataset_id: str) -> DataSource:
        """Where the rows of a dataset lie; raises DatasetNotFoundError."""
        dataset = self.get(dataset_id)
        return DataSource(
            "dataset",
            _data(dataset_id, dataset.format),
            dataset.format,
            dataset_id,
            max_rows=self._max_rows,
            max_columns=self._max_columns,
        )

    def preview(self, dataset_id: str, rows: int) -> pa.Table:
        """The first rows; raises DatasetNotFoundError."""
        source = self.source(dataset_id)
        return preview_table(
            lambda: self._storage.open_native(source.location), self.get(dataset_id).format, rows
        )

    def page(self, limit: int, cursor: str | None) -> Page[Dataset]:
        """Datasets by id."""
        ids = [name.split("/")[1] for name in self._storage.names("datasets", "/info.json")]
        page = paginate(ids, str, limit, cursor)
        return Page(
            [found for dataset_id in page.data if (found := self._readable(dataset_id))], page.next_cursor
        )

    def _readable(self, dataset_id: str) -> Dataset | None:
        """None for what was deleted meanwhile or is damaged: neither may spoil a whole page."""
        try:
            return self.get(dataset_id)
        except (DatasetNotFoundError, ValueError, KeyError, TypeError):
            return None

    def sweep(self, older_than_s: float, now: float) -> None:
        """Removes uploads that a dead process left unfinished.

        Args:
            older_than_s: More seconds than the longest upload takes.
            now: Unix seconds.
        """
        self._storage.sweep(older_than_s, now)
        for name in self._storage.names(UPLOADS):
            with suppress(FileNotFoundError):  # it was filed meanwhile
                if now - self._storage.stat(name).modified_at.timestamp() > older_than_s:
                    self._storage.delete(name)

    def delete(self, dataset_id: str) -> None:
        """Raises DatasetNotFoundError."""
        dataset = self.get(dataset_id)
        self._storage.delete(_info(dataset_id))
        self._storage.delete(_data(dataset_id, dataset.format))


class Incoming:
    """An upload on its way into storage: chunks go straight through, hashed and counted."""

    def __init__(self, storage: Storage) -> None:
        self.name = f"{UPLOADS}/{uuid.uuid4()}"
        self.bytes = 0
        self._hash = hashlib.sha256()
        self._context = storage.writer(self.name)

    def __enter__(self) -> Self:
        self._writer = self._context.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._context.__exit__(*raised)  # type: ignore[arg-type]

    def write(self, chunk: bytes) -> None:
        self._writer.write(chunk)
        self._hash.update(chunk)
        self.bytes += len(chunk)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def _info(dataset_id: str) -> str:
    return f"datasets/{dataset_id}/info.json"


def _data(dataset_id: str, format: Format) -> str:  # noqa: A002
    return f"datasets/{dataset_id}/data.{format}"
