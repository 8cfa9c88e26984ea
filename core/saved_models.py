"""Models saved under a name: one bundle file each, whose header is the record of it."""

import json
from dataclasses import dataclass
from datetime import datetime

from core.bundles import header_length, read_header
from core.contract.fields import parse_model_id
from core.errors import BundleError, ModelExistsError, ModelNotFoundError, ParameterError
from core.paging import Page, paginate
from core.storage import Storage

FOLDER = "models"
FILE = "bundle.safetensors"
MAKER = "maker.json"


@dataclass(frozen=True, slots=True)
class SavedModel:
    """One saved model.

    Attributes:
        version: Changes when the file is replaced.
        header: The bundle's header (contract, section 10).
    """

    model_id: str
    size_bytes: int
    created_at: datetime
    version: str
    header: dict[str, object]


class ModelStore:
    """Saved models in storage: ``models/<model_id>/bundle.safetensors``."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def exists(self, model_id: str) -> bool:
        return self._storage.exists(model_path(model_id))

    def save(
        self, model_id: str, file: bytes | memoryview, *, overwrite: bool, run_id: str | None = None
    ) -> str:
        """Writes a bundle file whole or not at all.

        Args:
            run_id: Of a run that may be made a second time, for want of an answer; it may then replace its
                own model.

        Returns:
            Its path in storage.

        Raises:
            ModelExistsError: unless ``overwrite``; also when another writer was first.
        """
        path = model_path(model_id)
        replaces = overwrite or self.is_of(model_id, run_id)
        if run_id is not None and (replaces or not self.exists(model_id)):
            maker = {"run_id": run_id, "sha256": _sha256(bytes(file[: 8 + header_length(file)]))}
            self._storage.write(_maker_path(model_id), json.dumps(maker).encode())
        try:
            self._storage.write(path, file, exclusive=not replaces)
        except FileExistsError:
            raise exists_error(model_id) from None
        return path

    def is_of(self, model_id: str, run_id: str | None) -> bool:
        """Whether this run saved the model that is there, and said so."""
        try:
            maker = json.loads(self._storage.read(_maker_path(model_id)))
            sha256 = self.get(model_id).header["sha256"]
        except (FileNotFoundError, ModelNotFoundError, BundleError, ValueError):
            return False
        return run_id is not None and maker == {"run_id": run_id, "sha256": sha256}

    def read(self, model_id: str) -> bytes:
        """The bundle file; raises ModelNotFoundError."""
        try:
            return self._storage.read(_checked_path(model_id))
        except FileNotFoundError:
            raise _not_found(model_id) from None

    def version(self, model_id: str) -> str:
        """Raises ModelNotFoundError."""
        try:
            return self._storage.stat(_checked_path(model_id)).etag
        except FileNotFoundError:
            raise _not_found(model_id) from None

    def get(self, model_id: str) -> SavedModel:
        """Reads the header alone.

        Raises:
            ModelNotFoundError, BundleError
        """
        path = _checked_path(model_id)
        try:
            stat = self._storage.stat(path)
            start = self._storage.read_range(path, 0, 8)
            header = read_header(start + self._storage.read_range(path, 8, 8 + header_length(start)))
        except FileNotFoundError:
            raise _not_found(model_id) from None
        return SavedModel(model_id, stat.size_bytes, stat.modified_at, stat.etag, header)

    def page(self, limit: int, cursor: str | None) -> Page[SavedModel]:
        """Models by name. Files that are no bundles are passed over: something else put them there."""
        names = self._storage.names(FOLDER, f"/{FILE}")
        ids = sorted(name.removeprefix(f"{FOLDER}/").removesuffix(f"/{FILE}") for name in names)
        page = paginate(ids, str, limit, cursor)
        return Page(
            [model for model_id in page.data if (model := self._readable(model_id))], page.next_cursor
        )

    def delete(self, model_id: str) -> None:
        """Raises ModelNotFoundError."""
        if not self._storage.delete(_checked_path(model_id)):
            raise _not_found(model_id)
        self._storage.delete(_maker_path(model_id))

    def _readable(self, model_id: str) -> SavedModel | None:
        try:
            return self.get(model_id)
        except (BundleError, ModelNotFoundError):
            return None


def model_path(model_id: str) -> str:
    return f"{FOLDER}/{model_id}/{FILE}"


def _maker_path(model_id: str) -> str:
    """What says which run made the model: written before it, and true while the checksum is the model's."""
    return f"{FOLDER}/{model_id}/{MAKER}"


def _sha256(start: bytes) -> object:
    return read_header(start)["sha256"]


def exists_error(model_id: str) -> ModelExistsError:
    return ModelExistsError(
        f"Model {model_id!r:.36} already exists: choose another model_id or set overwrite", model_id=model_id
    )


def _checked_path(model_id: str) -> str:
    try:
        return model_path(parse_model_id(model_id))
    except ParameterError:
        raise _not_found(model_id) from None


def _not_found(model_id: str) -> ModelNotFoundError:
    return ModelNotFoundError(f"There is no model {model_id!r:.60}.", model_id=model_id[:128])
