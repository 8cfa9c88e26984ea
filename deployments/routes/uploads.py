"""Large bodies as they come in: the file of a multipart form, and blocks written while others arrive.

Serve hands an upload over as fast as the client sends it and keeps what is not yet taken in memory, so what
reads it must not wait: nothing is spooled, and no chunk costs a change of threads of its own.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from core.errors import MalformedBodyError

BLOCK_BYTES: Final = 1 << 20


async def write_in_blocks(chunks: AsyncIterator[bytes], write: Callable[[bytes], None]) -> None:
    """Passes all chunks on to ``write``, joined to blocks, in a thread, while the next block is received."""
    loop = asyncio.get_running_loop()
    writing: asyncio.Future[None] | None = None
    try:
        async for block in _blocks(chunks):
            if writing is not None:
                await writing
            writing = loop.run_in_executor(None, write, block)
    finally:
        if writing is not None:
            await asyncio.wait([writing])
    if writing is not None:
        writing.result()


async def _blocks(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    waiting: list[bytes] = []
    size = 0
    async for chunk in chunks:
        waiting.append(chunk)
        size += len(chunk)
        if size >= BLOCK_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


@dataclass(frozen=True, slots=True)
class FilePart:
    """The part named ``file`` of a form, whose content has yet to be read from ``chunks``."""

    filename: str
    media_type: str
    chunks: AsyncIterator[bytes]


async def open_file_part(stream: AsyncIterator[bytes], content_type: str) -> FilePart:
    """Reads up to the content of the part named ``file``; other parts are passed over.

    Raises:
        MalformedBodyError: if the form has no such part or is none; also while ``chunks`` is read.
    """
    form = _Form(content_type)
    async for chunk in stream:
        form.feed(chunk)
        if form.found:
            return FilePart(form.filename, form.media_type, _content(form, stream))
    raise MalformedBodyError("The form must have a part named file that holds the table.")


async def _content(form: "_Form", stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield form.take()
    async for chunk in stream:
        form.feed(chunk)
        yield form.take()
    if not form.ended:
        raise MalformedBodyError("The form must end with its boundary, but it breaks off before.")


class _Form:
    """A form while it is being parsed: keeps the content of the part named ``file`` until it is taken."""

    def __init__(self, content_type: str) -> None:
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if not boundary:
            raise MalformedBodyError("Content-Type must name the boundary of the form.")
        self.found, self.ended = False, False
        self.filename = ""
        self.media_type = ""
        self._inside = False
        self._header, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._content: list[bytes] = []
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._read_header,
                "on_header_value": self._read_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._read_data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise MalformedBodyError("The form cannot be read: it does not keep to its boundary.") from None

    def take(self) -> bytes:
        content = b"".join(self._content)
        self._content.clear()
        return content

    def _begin_part(self) -> None:
        self._headers = {}

    def _read_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _read_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header, self._value = b"", b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        if options.get(b"name") != b"file":
            return
        if self.found or b"filename" not in options:
            raise MalformedBodyError("The form must have one part named file, with a filename.")
        self.found = self._inside = True
        self.filename = options[b"filename"].decode("utf-8", "replace")
        self.media_type = self._headers.get(b"content-type", b"").decode("latin-1")

    def _read_data(self, data: bytes, start: int, end: int) -> None:
        if self._inside:
            self._content.append(data[start:end])

    def _end_part(self) -> None:
        self._inside = False

    def _end(self) -> None:
        self.ended = True
