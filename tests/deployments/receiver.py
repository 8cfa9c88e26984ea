"""A client's HTTP server on a port of its own, which remembers what it got and answers as it is told."""

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body)


@dataclass
class Receiver:
    """Attributes:
    status: Of the answers; None never answers.
    """

    status: int | None = 200
    location: str | None = None
    got: list[Received] = field(default_factory=list)
    connected: int = 0
    most_connected: int = 0

    async def __aenter__(self) -> "Receiver":
        self._heard = asyncio.Condition()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/told"

    async def until(self, number: int) -> list[Received]:
        """What came, once it is so much."""
        async with asyncio.timeout(30), self._heard:
            await self._heard.wait_for(lambda: len(self.got) >= number)
        return self.got

    def counts(self) -> Counter[str]:
        return Counter(received.headers["x-stillhouse-event-id"] for received in self.got)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected += 1
        self.most_connected = max(self.most_connected, self.connected)
        try:
            await self._answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.connected -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        body = await reader.readexactly(int(headers["content-length"]))
        async with self._heard:
            self.got.append(Received(head[0].split()[1], headers, body))
            self._heard.notify_all()
        if self.status is None:
            await reader.read()  # until the other side gives up
            return
        location = f"Location: {self.location}\r\n" if self.location else ""
        writer.write(f"HTTP/1.1 {self.status} X\r\n{location}Content-Length: 0\r\n\r\n".encode())
        await writer.drain()
