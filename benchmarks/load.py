"""HTTP clients that cost little themselves: one connection in turns, or many at once."""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection
from statistics import median
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Call:
    """One request, the same each time it is sent."""

    method: str
    path: str
    body: bytes = b""
    media_type: str = "application/json"

    def encoded(self, host: str) -> bytes:
        head = f"{self.method} {self.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {self.media_type}\r\n"
        return f"{head}Content-Length: {len(self.body)}\r\n\r\n".encode() + self.body


@dataclass(frozen=True, slots=True)
class Load:
    """What so many clients got in a time."""

    per_second: float
    median_ms: float


class Connection:
    """One connection that is kept alive."""

    def __init__(self, url: str) -> None:
        self._connection = HTTPConnection(urlsplit(url).netloc, timeout=300)

    def send(self, call: Call) -> bytes:
        """The body of the answer; anything but 200 is an AssertionError."""
        headers: Mapping[str, str] = {"Content-Type": call.media_type}
        self._connection.request(call.method, call.path, call.body, dict(headers))
        response = self._connection.getresponse()
        body = response.read()
        assert response.status == 200, body[:500]
        return body

    def close(self) -> None:
        self._connection.close()


def run_load(url: str, call: Call, *, clients: int, seconds: float) -> Load:
    """Clients that each send the next request when they have the answer to the last."""
    return asyncio.run(_loaded(url, call, clients, seconds))


async def _loaded(url: str, call: Call, clients: int, seconds: float) -> Load:
    started = time.perf_counter()
    parts = await asyncio.gather(*(_client(url, call, started + seconds) for _ in range(clients)))
    elapsed = time.perf_counter() - started
    taken = [duration for part in parts for duration in part]
    return Load(len(taken) / elapsed, 1000 * median(taken))


async def _client(url: str, call: Call, end: float) -> list[float]:
    taken = []
    async with Line(url) as line:
        while (sent := time.perf_counter()) < end:
            answer = await line.send(call)
            taken.append(time.perf_counter() - sent)
            assert answer.status == 200, answer.body[:500]
    return taken


@dataclass(frozen=True, slots=True)
class Answer:
    """Attributes:
    headers: By their names in lower case.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class Line:
    """``Connection`` for an event loop; answers may be refusals, and it is opened anew when it was closed."""

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url)
        self._reader: asyncio.StreamReader | None = None

    async def __aenter__(self) -> "Line":
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reader is not None:
            self._writer.close()
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()

    async def send(self, call: Call) -> Answer:
        if self._reader is None or self._reader.at_eof():
            self._reader, self._writer = await asyncio.open_connection(self._host.hostname, self._host.port)
        self._writer.write(call.encoded(self._host.netloc))
        first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        assert "content-length" in headers, f"an answer without a length: {first}"
        body = await self._reader.readexactly(int(headers["content-length"]))
        return Answer(int(first.split()[1]), headers, body)
