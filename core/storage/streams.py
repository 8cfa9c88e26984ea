"""The files of s3fs, one to write and one to read."""

import os
from collections.abc import Callable
from typing import Any, BinaryIO

from core.storage.objects import Guard


class ObjectUpload:
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


class RemoteFile:
    """What ``pyarrow.PythonFile`` asks of a file; names the failures of the reads that it makes later.

    Args:
        retry: Runs a read until it succeeds or cannot.
    """

    def __init__(self, file: BinaryIO, guard: Guard, retry: Callable[[Callable[[], bytes]], bytes]) -> None:
        self._file = file
        self._guard, self._retry = guard, retry

    @property
    def closed(self) -> bool:
        return self._file.closed

    def read(self, size_bytes: int) -> bytes:
        start = self._file.tell()

        def attempt() -> bytes:
            self._file.seek(start)  # where an attempt before this one may have left it
            return self._file.read(size_bytes)

        with self._guard():
            return self._retry(attempt)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
