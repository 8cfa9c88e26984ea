"""Requests as an ASGI server makes them, message by message: for what no HTTP client would send."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.deployments.local import strict_json

LEFT = {"type": "http.disconnect"}


def part(body: bytes = b"", more: bool = False) -> dict:
    return {"type": "http.request", "body": body, "more_body": more}


def parts(*bodies: bytes) -> list[dict]:
    return [part(body, n < len(bodies)) for n, body in enumerate(bodies, 1)]


@dataclass
class Exchange:
    """What the server saw of one answer."""

    sent: list[dict] = field(default_factory=list)
    taken: int = 0

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode("latin-1") for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def json(self):
        return strict_json(self.body)

    @property
    def outcome(self) -> tuple[int, str | None]:
        return self.status, self.headers.get("x-error-code")


def http_scope(method: str = "POST", path: str = "/", headers: Iterable = (), **more: object) -> dict:
    pairs = headers.items() if isinstance(headers, dict) else headers
    raw = [(_raw(name), _raw(value)) for name, value in pairs]
    plain = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1"}
    plain |= {"scheme": "http", "server": ("stillhouse", 80), "client": ("127.0.0.1", 1), "root_path": ""}
    plain |= {"raw_path": path.encode(), "query_string": b"", "method": method, "path": path, "headers": raw}
    return plain | more


def _raw(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1")


async def ask(app, scope: dict, messages: Iterable[dict] = (), *, send=None) -> Exchange:
    """One request to its end. Behind the last message the client waits, as clients do."""
    exchange, coming = Exchange(), iter(messages or [part()])

    async def receive():
        message = next(coming, None)
        if message is None:
            await asyncio.Event().wait()
        exchange.taken += 1
        return message

    async def keep(message):
        if send is not None:
            await send(message)
        exchange.sent.append(message)

    async with asyncio.timeout(60):
        await app(scope, receive, keep)
    return exchange
