"""The store, whichever its backend: names are checked before anything is touched, failures translated."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import pyarrow as pa

from core.errors import RequestError, StorageError
from core.paths import check_name, is_name
from core.resilience import Breaker
from core.storage.bucket import Bucket
from core.storage.failures import storage_error
from core.storage.folder import Folder
from core.storage.objects import ObjectStat, Writer


class Storage:
    """Objects by name, under a root that no name can leave.

    Names are segments of letters, digits, ``.``, ``_``, ``-`` (each at most 128 long and starting with a
    letter or digit) joined by ``/``, 512 characters in all. Every method raises ``RequestError`` for another
    name before anything is touched, and ``StorageError`` (details: operation, name, reason) when the backend
    fails.

    Thread-safe and picklable: a copy connects anew. Nothing is cached, so a change made elsewhere is seen by
    the next call. A folder must be one file system, with hard links for ``exclusive``; a bucket must have
    conditional writes (``If-None-Match``), as AWS S3 and MinIO do.

    Args:
        url: ``s3://bucket/prefix``, ``file:///folder``, or a folder relative to the working directory of now,
            with or without ``file://``. Nothing is created before the first write.
        options: For S3: what ``s3fs.S3FileSystem`` takes (``endpoint_url``, ``key``, ``secret`` …).

    Raises:
        StorageError: The URL has another scheme or no bucket, s3fs is missing, or a folder is given options.
    """

    def __init__(self, url: str, options: Mapping[str, object] | None = None) -> None:
        scheme, location = url.split("://", 1) if "://" in url else ("file", url)
        given = dict(options or {})
        self._backend: Folder | Bucket
        if scheme == "s3":
            self._backend = Bucket(location, given)
            self._arguments = (url, given)
        elif scheme != "file":
            raise StorageError("a storage URL must be file://folder or s3://bucket/prefix")
        elif given:
            raise StorageError("storage options must be empty for file:// storage", options=sorted(given))
        else:
            self._backend = Folder(location)
            self._arguments = (f"file://{self._backend.root}", {})

    def __reduce__(self) -> tuple[type["Storage"], tuple[str, dict[str, object]]]:
        return Storage, self._arguments

    @property
    def breaker(self) -> Breaker | None:
        """Spares a bucket that keeps failing, with CircuitOpenError from every method; a folder has none."""
        return self._backend.breaker

    def read(self, name: str) -> bytes:
        """
        Raises:
            FileNotFoundError: There is no such object.
        """
        with self._guarded("read", name, FileNotFoundError):
            return self._backend.read(name)

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes ``start`` up to, without, ``end``; fewer where the object ends before.

        Raises:
            FileNotFoundError: There is no such object.
            RequestError: Not 0 <= start <= end.
        """
        if not 0 <= start <= end:
            raise RequestError("a byte range must have 0 <= start <= end", start=start, end=end)
        with self._guarded("read", name, FileNotFoundError):
            return self._backend.read_range(name, start, end)

    def write(self, name: str, data: bytes | memoryview, *, exclusive: bool = False) -> None:
        """Creates or replaces an object.

        Args:
            name: Where to.
            data: All of the content.
            exclusive: Create only: of several writers, also in other processes, one succeeds.

        Raises:
            FileExistsError: ``exclusive``, and there is such an object.
        """
        with self._guarded("write", name, *([FileExistsError] if exclusive else [])):
            self._backend.write(name, data, exclusive)

    @contextmanager
    def writer(self, name: str) -> Iterator[Writer]:
        """Streams content in constant memory; the object appears, or is replaced, when the block ends well.

        An exception of any kind leaves nothing behind and passes through unchanged.
        """
        with self._guarded("write", name):
            upload = self._backend.upload(name)
        try:
            yield Writer(upload, lambda: self._guarded("write", name))
            with self._guarded("write", name):
                upload.commit()
        finally:
            with suppress(*self._backend.failures):  # sweep() gets what this could not
                upload.discard()

    def open_native(self, name: str) -> pa.NativeFile:
        """A seekable file for pyarrow's readers, to be closed by the caller.

        Raises:
            FileNotFoundError: There is no such object.
        """
        with self._guarded("read", name, FileNotFoundError):
            return self._backend.open_native(name, lambda: self._guarded("read", name))

    def exists(self, name: str) -> bool:
        """False for a folder."""
        try:
            self.stat(name)
        except FileNotFoundError:
            return False
        return True

    def stat(self, name: str) -> ObjectStat:
        """
        Raises:
            FileNotFoundError: There is no such object.
        """
        with self._guarded("look up", name, FileNotFoundError):
            return self._backend.stat(name)

    def names(self, folder: str, suffix: str = "") -> list[str]:
        """Full names of the objects in a folder and the folders below, sorted.

        Unfinished content, and what lies there under a name that is none, is left out.

        Args:
            folder: Without a slash at the end; "" means the whole store. Need not exist.
            suffix: How the names end.
        """
        with self._guarded("list", folder, root_allowed=True):
            found = self._backend.names(folder)
        return sorted(name for name in found if name.endswith(suffix) and is_name(name))

    def delete(self, name: str) -> bool:
        """False when absent. Of two at once, both may be told True on S3."""
        with self._guarded("delete", name):
            return self._backend.delete(name)

    def delete_folder(self, folder: str) -> bool:
        """Deletes all objects below, at one instant in a folder, one after the other on S3.

        Returns:
            False when there were none.
        """
        with self._guarded("delete", folder):
            return self._backend.delete_folder(folder)

    def copy(self, source: str, target: str, *, exclusive: bool = False) -> None:
        """Atomic as ``write`` is; within the server on S3.

        Raises:
            FileNotFoundError: There is no source.
            FileExistsError: ``exclusive``, and there is a target.
        """
        check_name(target)
        self.stat(source)
        with self._guarded("copy", target, *([FileExistsError] if exclusive else [])):
            if exclusive or source != target:
                self._backend.copy(source, target, exclusive)

    def move(self, source: str, target: str) -> None:
        """Replaces the target. Two steps on S3: both names exist for a moment, never neither.

        Raises:
            FileNotFoundError: There is no source.
        """
        check_name(target)
        self.stat(source)
        with self._guarded("move", target):
            if source != target:
                self._backend.move(source, target)

    def sweep(self, older_than_s: float, now: float) -> int:
        """Removes what writers that died left unfinished and untouched for ``older_than_s`` seconds.

        On S3 the age is that of the upload's beginning: choose more than the longest upload takes.

        Args:
            older_than_s: Least age in seconds.
            now: Unix seconds.

        Returns:
            The number of leftovers removed.
        """
        with self._guarded("sweep", "", root_allowed=True):
            return self._backend.sweep(now - older_than_s)

    @contextmanager
    def _guarded(
        self, operation: str, name: str, *answers: type[OSError], root_allowed: bool = False
    ) -> Iterator[None]:
        if name or not root_allowed:
            check_name(name)
        try:
            yield
        except self._backend.failures as error:
            if isinstance(error, FileNotFoundError) and FileNotFoundError in answers:
                raise FileNotFoundError(f"{name} is not in storage") from None
            if isinstance(error, FileExistsError) and FileExistsError in answers:
                raise FileExistsError(f"{name} is already in storage") from None
            raise storage_error(error, operation, name) from error
