"""``Idempotency-Key`` on every request that creates something: sent twice, it is done once."""

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Protocol

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import IdempotencyKeyReusedError, MalformedBodyError, StillhouseError
from core.idempotency import LEASE_S, StoredAnswer, key_name
from deployments.edge.authentication import client_of
from deployments.edge.border import origin_of, route_path

log = logging.getLogger(__name__)

CREATING: Final = re.compile(
    r"/api/v1/(train|distill|datasets|training-jobs(/[^/]+/(retry|restart))?|runs/[^/]+/save)/?"
)
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_LARGEST_ANSWER_BYTES: Final = 8 << 20
_KEPT_HEADERS: Final = ("content-type", "location")


class KeyLedger(Protocol):
    """What remembers keys for all ingresses; see ``core.idempotency.IdempotencyKeys``."""

    async def claim_key(self, name: str, holder: str) -> StoredAnswer | None: ...
    async def renew_key(self, name: str, holder: str) -> None: ...
    async def complete_key(self, name: str, answer: StoredAnswer, holder: str) -> None: ...
    async def release_key(self, name: str, holder: str) -> None: ...


class Idempotency:
    """Replays the first answer to the same request; refuses another request with the same key.

    Successful answers alone are kept: after a failure the same key may be sent again.
    """

    def __init__(
        self, app: ASGIApp, *, ledger: KeyLedger, replayed: Callable[[], None] = lambda: None
    ) -> None:
        self._app, self._ledger, self._replayed = app, ledger, replayed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = Headers(scope=scope).get("idempotency-key") if scope["type"] == "http" else None
        path = route_path(scope) if key is not None else ""
        if key is None or scope["method"] != "POST" or not CREATING.fullmatch(path):
            await self._app(scope, receive, send)
            return
        if not _KEY.fullmatch(key):
            raise MalformedBodyError("Idempotency-Key must be 1 to 255 visible ASCII characters.")
        query = scope.get("query_string", b"").decode("latin-1")
        name = key_name(client_of(scope), scope["method"], f"{path}?{query}", key)
        held = _Held(self._ledger, name, str(uuid.uuid4()))
        answer = await held.claim()
        body = _Hashed(receive, Headers(scope=scope).get("accept", ""))
        if answer is not None:
            await _replay(answer, await body.to_the_end(), send)
            self._replayed()
            return
        origin = dataclasses.replace(origin_of(scope), idempotency=name)
        kept = _Kept(send)
        try:
            async with held.renewed():
                await self._app({**scope, "state": {**scope["state"], "origin": origin}}, body, kept)
                done = kept.answer(await body.to_the_end()) if kept.is_success else None
        except BaseException:
            await held.let_go(None)
            raise
        await held.let_go(done)
        await kept.finish()


@dataclasses.dataclass(frozen=True, slots=True)
class _Held:
    """A key while one request works under it."""

    ledger: KeyLedger
    name: str
    holder: str

    async def claim(self) -> StoredAnswer | None:
        """The answer that was given already; a client that leaves meanwhile leaves no claim behind."""
        claiming = asyncio.ensure_future(self.ledger.claim_key(self.name, self.holder))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            with contextlib.suppress(StillhouseError):
                if await claiming is None:
                    await self.ledger.release_key(self.name, self.holder)
            raise

    @contextlib.asynccontextmanager
    async def renewed(self) -> AsyncIterator[None]:
        renewal = asyncio.create_task(self._renew())
        try:
            yield
        finally:
            renewal.cancel()
            await asyncio.wait([renewal])  # or a late one would come after the release

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(LEASE_S / 3)
            await _quietly(self.ledger.renew_key(self.name, self.holder))

    async def let_go(self, answer: StoredAnswer | None) -> None:
        if answer is None:
            await _quietly(self.ledger.release_key(self.name, self.holder))
        else:
            await _quietly(self.ledger.complete_key(self.name, answer, self.holder))


async def _quietly(call: Awaitable[None]) -> None:
    """A ledger that fails must not spoil an answer; what it did not hear of lapses by itself."""
    try:
        await call
    except StillhouseError:
        log.exception("the ledger of idempotency keys failed")


async def _replay(answer: StoredAnswer, request_sha256: str, send: Send) -> None:
    if answer.request_sha256 != request_sha256:
        raise IdempotencyKeyReusedError(
            "This Idempotency-Key came with another request before: send a new key with a new request."
        )
    body = answer.body.encode()
    headers = {**answer.headers, "content-length": str(len(body)), "idempotent-replayed": "true"}
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


class _Hashed:
    """Passes a body on and hashes it, and whether events were asked for: they are another answer."""

    def __init__(self, receive: Receive, accept: str) -> None:
        asked_for = b"events" if "text/event-stream" in accept else b""
        self._receive, self._hash, self._ended = receive, hashlib.sha256(asked_for), False

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._hash.update(message.get("body", b""))
            self._ended = not message.get("more_body", False)
        return message

    async def to_the_end(self) -> str:
        """Reads what the app did not; the SHA-256 of all.

        Raises:
            ClientDisconnect: if there is no end.
        """
        while not self._ended:
            if (await self())["type"] != "http.request":
                raise ClientDisconnect
        return self._hash.hexdigest()


class _Kept:
    """Passes an answer on and keeps it, unless it is no success or too large.

    The last message waits for ``finish``: who has read the whole answer finds it kept.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._status, self._size, self._ended = 0, 0, False
        self._headers: dict[str, str] = {}
        self._parts: list[bytes] = []
        self._last: Message | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = Headers(raw=message["headers"])
            self._headers = {name: headers[name] for name in _KEPT_HEADERS if name in headers}
        elif message["type"] == "http.response.body":
            self._size += len(message.get("body", b""))
            self._ended = not message.get("more_body", False)
            if self._size <= _LARGEST_ANSWER_BYTES:
                self._parts.append(message.get("body", b""))
            if self._ended:
                self._last = message
                return
        await self._send(message)

    async def finish(self) -> None:
        if self._last is not None:
            await self._send(self._last)

    @property
    def is_success(self) -> bool:
        return 200 <= self._status < 300 and self._ended

    def answer(self, request_sha256: str) -> StoredAnswer | None:
        body = b"".join(self._parts)
        failed_stream = b"\nevent: error\n" in b"\n" + body
        if self._size > _LARGEST_ANSWER_BYTES or failed_stream:
            return None
        return StoredAnswer(request_sha256, self._status, self._headers, body.decode())
