"""One artefact store, a folder (``file://``) or a bucket (``s3://``): objects appear whole or not at all.

An object is never changed in place, only replaced, so whoever opened it goes on reading what was there.
"""

import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from uuid import uuid4

import fsspec
import pyarrow as pa

from core.errors import RequestError, StorageError
from core.paths import check_name, is_name, is_segment

_ATTEMPTS = 5  # at what only a race with another writer can make fail


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """``modified_at`` is UTC; ``etag`` is another one after the content was replaced."""

    name: str
    size_bytes: int
    modified_at: datetime
    etag: str


_Guard = Callable[[], AbstractContextManager[None]]


class _Upload(Protocol):
    """Content on its way: visible after ``commit``; ``discard`` is always called, and undoes what is not."""

    def write(self, chunk: bytes | memoryview) -> int: ...
    def commit(self) -> None: ...
    def discard(self) -> None: ...


class Writer:
    """Takes the content of one object, chunk by chunk; not thread-safe."""

    def __init__(self, upload: _Upload, guard: _Guard) -> None:
        self._upload = upload
        self._guard = guard

    def write(self, chunk: bytes | memoryview) -> int:
        with self._guard():
            return self._upload.write(chunk)


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
        scheme, separator, location = url.partition("://")
        self._backend: _Folder | _Bucket
        if separator and scheme == "s3":
            self._backend = _Bucket(location, dict(options or {}))
            self._arguments = (url, dict(options or {}))
        elif separator and scheme != "file":
            raise StorageError("a storage URL must be file://folder or s3://bucket/prefix")
        elif options:
            raise StorageError("storage options must be empty for file:// storage", options=sorted(options))
        else:
            self._backend = _Folder(location if separator else url)
            self._arguments = (f"file://{self._backend.root}", {})

    def __reduce__(self) -> tuple[type["Storage"], tuple[str, dict[str, object]]]:
        return Storage, self._arguments

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
            if isinstance(self._backend, _Folder):
                return pa.OSFile(str(self._backend.existing(name)))
            remote = self._backend.open(name)
            return pa.PythonFile(_RemoteFile(remote, lambda: self._guarded("read", name)), mode="r")

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
            raise StorageError(
                _advice(error, operation), operation=operation, name=name, reason=_reason(error)
            ) from error


def _advice(error: BaseException, operation: str) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Storage is full; delete what is not needed, then try again."
    return f"Storage failed to {operation} an object; try again, and tell the operator if it persists."


def _reason(error: BaseException) -> str:
    number = error.errno if isinstance(error, OSError) else None
    return _s3_code(error) or errno.errorcode.get(number or 0, type(error).__name__)


class _Folder:
    """Staged in a hidden folder of the root, flushed to the disk, then put in place by one system call."""

    failures: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, folder: str) -> None:
        self.root = Path(folder).resolve()
        self._staging = self.root / ".tmp"

    def existing(self, name: str) -> Path:
        path = self._path(name)
        if not path.is_file():
            raise FileNotFoundError(name)
        return path

    def read(self, name: str) -> bytes:
        return self.existing(name).read_bytes()

    def read_range(self, name: str, start: int, end: int) -> bytes:
        with self.existing(name).open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def write(self, name: str, data: bytes | memoryview, exclusive: bool) -> None:
        upload = self.upload(name, exclusive)
        try:
            upload.write(data)
            upload.commit()
        finally:
            upload.discard()

    def upload(self, name: str, exclusive: bool = False) -> "_FileUpload":
        target = self._path(name)
        return _FileUpload(self._staged(), target, os.link if exclusive else os.replace)

    def stat(self, name: str) -> ObjectStat:
        found = self.existing(name).stat()
        modified_at = datetime.fromtimestamp(found.st_mtime, UTC)
        # two versions are never the same inode at once: the new one is whole before the old one goes
        etag = f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"
        return ObjectStat(name, found.st_size, modified_at, etag)

    def names(self, folder: str) -> list[str]:
        top = self._path(folder) if folder else self.root
        return [path.relative_to(self.root).as_posix() for path in _regular_files(top)]

    def delete(self, name: str) -> bool:
        try:
            self._path(name).unlink()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return False
        return True

    def delete_folder(self, folder: str) -> bool:
        path = self._path(folder)
        held = any(_regular_files(path))
        if path.is_dir():
            trash = self._staged()
            with suppress(FileNotFoundError):
                path.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)
        return held

    def copy(self, source: str, target: str, exclusive: bool) -> None:
        with self.existing(source).open("rb") as content:
            upload = self.upload(target, exclusive)
            try:
                shutil.copyfileobj(content, upload)
                upload.commit()
            finally:
                upload.discard()

    def move(self, source: str, target: str) -> None:
        _place(self.existing(source), self._path(target), os.replace)

    def sweep(self, oldest_kept: float) -> int:
        leftovers = [path for path in _entries(self._staging) if _is_older(path, oldest_kept)]
        for path in leftovers:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return len(leftovers)

    def _staged(self) -> Path:
        self._staging.mkdir(parents=True, exist_ok=True)
        return self._staging / uuid4().hex

    def _path(self, name: str) -> Path:
        path = self.root / name
        try:
            inside = path.resolve().is_relative_to(self.root)
        except RuntimeError:  # a circle of links
            inside = False
        if not inside:
            raise RequestError("a stored name must not lead out of the store through a link", name=name)
        return path


class _FileUpload:
    def __init__(self, staged: Path, target: Path, put: Callable[[Path, Path], None]) -> None:
        self._staged = staged
        self._target = target
        self._put = put
        self._file: BinaryIO = staged.open("xb")

    def write(self, chunk: bytes | memoryview) -> int:
        return self._file.write(chunk)

    def commit(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        _place(self._staged, self._target, self._put)

    def discard(self) -> None:
        with suppress(OSError):  # closing flushes, which a full disk refuses once more
            self._file.close()
        self._staged.unlink(missing_ok=True)


def _place(staged: Path, target: Path, put: Callable[[Path, Path], None]) -> None:
    for _ in range(_ATTEMPTS):
        try:
            _make_folder(target.parent)
            put(staged, target)
            return _flush_folder(target.parent)
        except FileNotFoundError:  # delete_folder() took the folder away in between
            continue
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # an object has this name; not the answer to an exclusive write
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error


def _flush_folder(folder: Path) -> None:
    """Makes the new entry survive a loss of power."""
    with suppress(FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _regular_files(top: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(top, onerror=_raise_unless_absent):
        folders[:] = filter(is_segment, folders)  # not into the staging folder
        for file in files:
            path = Path(parent, file)
            if path.is_file() and not path.is_symlink():
                yield path


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _is_older(path: Path, oldest_kept: float) -> bool:
    try:
        return path.lstat().st_mtime < oldest_kept
    except FileNotFoundError:
        return False


_UPLOAD_PART_BYTES = 16 * 2**20  # times the 10 000 parts that S3 allows: objects up to 156 GiB
_COPY_PART_BYTES = 512 * 2**20
_READ_BLOCK_BYTES = 8 * 2**20
_WRITE_ID = "stillhouse-write-id"

_Answer = Mapping[str, Any]


class _Bucket:
    """Through s3fs for sessions, retries and the event loop; by S3's own calls, whose meaning is documented.

    s3fs's path methods also answer for prefixes ("directories"), ignore errors of bulk deletes and read large
    objects in parts that may belong to different versions.
    """

    def __init__(self, location: str, options: dict[str, object]) -> None:
        self._bucket, _, prefix = location.rstrip("/").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        if not self._bucket:
            raise StorageError("an s3:// storage URL must name a bucket: s3://bucket/prefix")
        try:
            self._fs = fsspec.filesystem("s3", **{**options, "use_listings_cache": False})
        except ImportError as error:
            raise StorageError("s3:// storage needs s3fs: pip install 'stillhouse[s3]'") from error
        self.failures = _s3_failures()

    def read(self, name: str) -> bytes:
        with self._checking_bucket():
            content: bytes = self._fs.cat_file(
                self._path(name), max_concurrency=1
            )  # one request, one version
        return content

    def read_range(self, name: str, start: int, end: int) -> bytes:
        if start == end:
            self._head(name)
            return b""
        try:
            with self._checking_bucket():
                content: bytes = self._fs.cat_file(self._path(name), start=start, end=end)
        except OSError as error:
            if _s3_code(error) != "InvalidRange":  # S3 refuses to begin behind the end
                raise
            return b""
        return content

    def open(self, name: str) -> BinaryIO:
        with self._checking_bucket():
            file: Any = self._fs.open(self._path(name), "rb", block_size=_READ_BLOCK_BYTES)
        if file.details["type"] != "file":
            raise FileNotFoundError(name)
        opened: BinaryIO = file
        return opened

    def write(self, name: str, data: bytes | memoryview, exclusive: bool) -> None:
        body = bytes(data)  # botocore takes no memoryview
        if not exclusive:
            self._fs.pipe_file(self._path(name), body)
            return
        self._create(
            name,
            lambda mark: self._fs.pipe_file(self._path(name), body, mode="create", Metadata=mark),
        )

    def upload(self, name: str) -> "_ObjectUpload":
        return _ObjectUpload(self._fs.open(self._path(name), "wb", block_size=_UPLOAD_PART_BYTES))

    def stat(self, name: str) -> ObjectStat:
        head = self._head(name)
        etag = head["ETag"].strip('"')
        return ObjectStat(name, head["ContentLength"], head["LastModified"].astimezone(UTC), etag)

    def names(self, folder: str) -> list[str]:
        return [key.removeprefix(self._prefix) for key in self._keys(folder)]

    def delete(self, name: str) -> bool:
        try:
            self._head(name)
        except FileNotFoundError:
            return False
        self._call("delete_object", Key=self._key(name))
        return True

    def delete_folder(self, folder: str) -> bool:
        keys = list(self._keys(folder))
        for start in range(0, len(keys), 1000):  # as many as one request may name
            objects = [{"Key": key} for key in keys[start : start + 1000]]
            answer = self._call("delete_objects", Delete={"Objects": objects, "Quiet": True})
            if answer.get("Errors"):
                raise OSError(errno.EIO, "some objects were not deleted")
        return bool(keys)

    def copy(self, source: str, target: str, exclusive: bool) -> None:
        if exclusive:
            self._create(target, lambda mark: self._copy(source, target, mark, {"IfNoneMatch": "*"}))
        else:
            self._copy(source, target, {}, {})

    def move(self, source: str, target: str) -> None:
        self._copy(source, target, {}, {})
        self._call("delete_object", Key=self._key(source))

    def sweep(self, oldest_kept: float) -> int:
        abandoned = [upload for upload in self._uploads() if upload["Initiated"].timestamp() < oldest_kept]
        for upload in abandoned:
            self._abort(upload["Key"], upload["UploadId"])
        return len(abandoned)

    def _create(self, name: str, put: Callable[[Mapping[str, str]], None]) -> None:
        """Runs a conditional put, whose ``mark`` tells our own object from another writer's.

        When the answer to a put is lost, the retry below us finds the object there and is refused: without
        the mark the winner would be told that it lost. S3 answers 409 when two puts collide, to be retried.
        """
        mark = {_WRITE_ID: uuid4().hex}
        for _ in range(_ATTEMPTS):
            try:
                return put(mark)
            except OSError as error:
                code = _s3_code(error)
                if code == "ConditionalRequestConflict":
                    continue
                if code not in ("PreconditionFailed", "412"):
                    raise
            with suppress(FileNotFoundError):  # deleted again meanwhile: try once more
                if self._head(name).get("Metadata", {}).get(_WRITE_ID) == mark[_WRITE_ID]:
                    return None
                raise FileExistsError(name)
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    def _copy(self, source: str, target: str, mark: Mapping[str, str], condition: Mapping[str, str]) -> None:
        """Conditions go through a multipart upload: other servers than AWS ignore them at CopyObject."""
        head = self._head(source)
        origin = {
            "CopySource": {"Bucket": self._bucket, "Key": self._key(source)},
            "CopySourceIfMatch": head["ETag"],
        }
        size_bytes: int = head["ContentLength"]
        if size_bytes > _COPY_PART_BYTES or (condition and size_bytes):
            self._copy_parts(self._key(target), origin, size_bytes, mark, condition)
        elif condition:  # a part cannot be empty
            self._call("put_object", Key=self._key(target), Body=b"", Metadata=mark, **condition)
        else:
            self._call("copy_object", Key=self._key(target), **origin)

    def _copy_parts(
        self,
        key: str,
        origin: Mapping[str, object],
        size_bytes: int,
        mark: Mapping[str, str],
        condition: Mapping[str, str],
    ) -> None:
        upload_id = self._call("create_multipart_upload", Key=key, Metadata=mark)["UploadId"]
        upload = {"Key": key, "UploadId": upload_id}
        try:
            parts = []
            for number, start in enumerate(range(0, size_bytes, _COPY_PART_BYTES), start=1):
                span = f"bytes={start}-{min(start + _COPY_PART_BYTES, size_bytes) - 1}"
                part = {"PartNumber": number}
                answer = self._call("upload_part_copy", **upload, **origin, **part, CopySourceRange=span)
                parts.append({**part, "ETag": answer["CopyPartResult"]["ETag"]})
            whole = {"Parts": parts}
            self._call("complete_multipart_upload", **upload, MultipartUpload=whole, **condition)
        except BaseException:
            with suppress(*self.failures):
                self._abort(key, upload_id)
            raise

    def _abort(self, key: str, upload_id: str) -> None:
        with suppress(FileNotFoundError):  # NoSuchUpload
            self._call("abort_multipart_upload", Key=key, UploadId=upload_id)

    def _head(self, name: str) -> _Answer:
        return self._call("head_object", Key=self._key(name))

    def _keys(self, folder: str) -> Iterator[str]:
        asked: dict[str, str] = {"Prefix": self._key(f"{folder}/") if folder else self._prefix}
        while True:
            answer = self._call("list_objects_v2", **asked)
            yield from (entry["Key"] for entry in answer.get("Contents", []))
            if not answer.get("IsTruncated"):
                return
            asked["ContinuationToken"] = answer["NextContinuationToken"]

    def _uploads(self) -> Iterator[_Answer]:
        asked: dict[str, str] = {"Prefix": self._prefix}
        while True:
            answer = self._call("list_multipart_uploads", **asked)
            yield from answer.get("Uploads", [])
            if not answer.get("IsTruncated"):
                return
            asked |= {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}

    def _call(self, method: str, **arguments: object) -> _Answer:
        with self._checking_bucket():
            answer: _Answer = self._fs.call_s3(method, Bucket=self._bucket, **arguments)
        return answer

    @contextmanager
    def _checking_bucket(self) -> Iterator[None]:
        """A missing bucket is a fault of the installation, not the answer that an object is absent."""
        try:
            yield
        except FileNotFoundError as error:
            if _s3_code(error) == "NoSuchBucket":
                raise OSError(errno.ENXIO, "no such bucket") from error
            raise

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _path(self, name: str) -> str:
        return f"{self._bucket}/{self._key(name)}"


class _ObjectUpload:
    """One PUT, or from 16 MiB on a multipart upload: an s3fs file that must be kept from closing itself."""

    def __init__(self, file: Any) -> None:  # noqa: ANN401  s3fs has no types
        self._file = file
        self._committed = False

    def write(self, chunk: bytes | memoryview) -> int:
        written: int = self._file.write(chunk)
        return written

    def commit(self) -> None:
        self._file.close()
        self._committed = True

    def discard(self) -> None:
        if not self._committed:
            self._file.closed = True  # or its finaliser would upload what there is
            self._file.discard()


class _RemoteFile(io.RawIOBase):
    """Names the failures of a read that pyarrow makes later."""

    def __init__(self, file: BinaryIO, guard: _Guard) -> None:
        self._file = file
        self._guard = guard

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  typeshed's WriteableBuffer exists in stubs only
        with self._guard(), memoryview(buffer) as view:
            content = self._file.read(len(view))
            view[: len(content)] = content
            return len(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()


def _s3_code(error: BaseException) -> str | None:
    """S3's name of a failure, from the botocore exception that s3fs keeps as the cause."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def _s3_failures() -> tuple[type[Exception], ...]:
    from aiohttp import ClientError as ConnectionFailure  # these come with s3fs, an extra
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

    return (OSError, BotoCoreError, ClientError, ConnectionFailure)
