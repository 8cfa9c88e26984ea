"""A store in a folder of one file system."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import pyarrow as pa

from core.errors import RequestError
from core.paths import is_segment
from core.storage.objects import ATTEMPTS, Guard, ObjectStat


class Folder:
    """Staged in a hidden folder of the root, flushed to the disk, then put in place by one system call."""

    failures: tuple[type[Exception], ...] = (OSError,)
    breaker = None  # what fails here fails at once

    def __init__(self, folder: str) -> None:
        self.root = Path(folder).resolve()
        self._staging = self.root / ".tmp"

    def read(self, name: str) -> bytes:
        return self._existing(name).read_bytes()

    def read_range(self, name: str, start: int, end: int) -> bytes:
        with self._existing(name).open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def open_native(self, name: str, _guard: Guard) -> pa.NativeFile:
        return pa.OSFile(str(self._existing(name)))

    def write(self, name: str, data: bytes | memoryview, exclusive: bool) -> None:
        with self._uploading(name, exclusive) as upload:
            upload.write(data)

    def upload(self, name: str, exclusive: bool = False) -> "_FileUpload":
        target = self._path(name)
        return _FileUpload(self._staged(), target, os.link if exclusive else os.replace)

    def stat(self, name: str) -> ObjectStat:
        found = self._existing(name).stat()
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
        with self._existing(source).open("rb") as content, self._uploading(target, exclusive) as upload:
            shutil.copyfileobj(content, upload)

    def move(self, source: str, target: str) -> None:
        _place(self._existing(source), self._path(target), os.replace)

    def sweep(self, oldest_kept: float) -> int:
        leftovers = [path for path in _entries(self._staging) if _is_older(path, oldest_kept)]
        for path in leftovers:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return len(leftovers)

    @contextmanager
    def _uploading(self, name: str, exclusive: bool) -> Iterator["_FileUpload"]:
        upload = self.upload(name, exclusive)
        try:
            yield upload
            upload.commit()
        finally:
            upload.discard()

    def _staged(self) -> Path:
        self._staging.mkdir(parents=True, exist_ok=True)
        return self._staging / uuid4().hex

    def _existing(self, name: str) -> Path:
        path = self._path(name)
        if not path.is_file():
            raise FileNotFoundError(name)
        return path

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
    for _ in range(ATTEMPTS):
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
