"""The files of s3fs, one to write and one to read."""

import os
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
    """What ``pyarrow.PythonFile`` asks of a file; names the failures of the reads that it makes later."""

    def __init__(self, file: BinaryIO, guard: Guard) -> None:
        self._file = file
        self._guard = guard

    @property
    def closed(self) -> bool:
        return self._file.closed

    def read(self, size_bytes: int) -> bytes:
        with self._guard():
            return self._file.read(size_bytes)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
