"""Text files as one stream of UTF-8, whatever Unicode encoding they came in."""

import codecs
import io
import re
from collections.abc import Iterator
from threading import Lock

from core.errors import DatasetError
from core.table.columns import Opener

_PEEK_BYTES = 1 << 16
_MARKS = {
    codecs.BOM_UTF8: None,
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_UNDECODED = re.compile("[\udc80-\udcff]")


class TextSource(io.RawIOBase):
    """The bytes of a text file as UTF-8 without a byte order mark; UTF-16 is transcoded as it is read.

    UTF-8 passes through unchecked: whoever parses it sees every byte anyway.

    Args:
        open_file: Opens the file.
        tail: Bytes to append to the end.
        limit: Bytes of the file after which it seems to end; ``tail`` is left out then.

    Raises:
        DatasetError: In reading, at UTF-16 that cannot be decoded, naming the line; at once, for a NUL byte.
    """

    def __init__(self, open_file: Opener, *, tail: bytes = b"", limit: int | None = None) -> None:
        super().__init__()
        # Arrow reads ahead in threads of its own, also while this is being closed
        self._lock = Lock()
        self._file = open_file()
        self._tail = tail
        self._left = limit
        self._lines = 1
        self._ready = b""
        self._ended = False
        head = self._file.read(_PEEK_BYTES)
        mark = next((mark for mark in _MARKS if head.startswith(mark)), b"")
        encoding = _MARKS.get(mark)
        self._decoder = codecs.getincrementaldecoder(encoding)() if encoding else None
        if encoding is None and b"\0" in head:
            self._file.close()
            raise _encoding_error(head.count(b"\n", 0, head.index(b"\0")) + 1)
        self._file.seek(len(mark))

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Read exactly ``size`` bytes unless the end comes first, so that blocks end where they always do."""
        with self._lock:
            if self.closed:
                return b""
            if self._left is not None:
                size = min(size, self._left)
            data = self._take(size)
            if self._left is not None:
                self._left -= len(data)
            return data

    # RawIOBase is buffered through this one
    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        with self._lock:
            if not self.closed:
                self._file.close()
            super().close()

    def _take(self, size: int) -> bytes:
        parts = [self._ready]
        length = len(self._ready)
        while length < size and not self._ended:
            raw = self._file.read(size - length)
            self._ended = not raw
            data = raw if self._decoder is None else self._transcoded(self._decoder, raw)
            parts.append(data + self._tail if self._ended else data)
            length += len(parts[-1])
        data = b"".join(part for part in parts if part)
        self._ready = data[size:]
        return data if length <= size else data[:size]

    def _transcoded(self, decoder: codecs.IncrementalDecoder, data: bytes) -> bytes:
        try:
            text = decoder.decode(data, not data)
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode(error.encoding, "ignore")
            raise _encoding_error(self._lines + before.count("\n")) from None
        self._lines += text.count("\n")
        return text.encode()


def physical_lines(open_file: Opener) -> Iterator[str]:
    """The lines of a file with their endings, for the slow search after something has failed.

    Raises:
        DatasetError: At the first line that is not text.
    """
    with TextSource(open_file) as source, io.BufferedReader(source) as buffered:
        wrapper = io.TextIOWrapper(buffered, "utf-8", "surrogateescape", newline="")
        for number, line in enumerate(wrapper, start=1):
            if not line.isascii() and _UNDECODED.search(line):
                raise _encoding_error(number)
            yield line


def _encoding_error(line: int) -> DatasetError:
    return DatasetError(
        f"Text must be UTF-8, or UTF-16 with its mark, and line {line} is not; save it as UTF-8.", line=line
    )
