"""What happens before a route: request ids, tokens, body limits, Serve's control headers. Pure ASGI."""

import hmac
import json
import logging
import re
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import AuthenticationError, BodyTooLargeError, StillhouseError
from core.exchange import TABLES
from deployments.dialects import Rendered, render
from deployments.proxy import CONTROL_HEADERS, REQUEST_ID
from deployments.settings import Limits, Settings, environment_tokens

log = logging.getLogger(__name__)

OPEN_PATHS: Final = ("/health", "/docs", "/openapi.json", "/static-offline-docs/")
_LENGTH: Final = re.compile(r"[0-9]{1,20}")  # others are no lengths; the body is counted anyway


class Tokens:
    """The accepted bearer tokens; a file of them is read again when it changes.

    Raises:
        OSError: from the constructor, if the file cannot be read.
    """

    def __init__(self, file: Path | None, fixed: Collection[str]) -> None:
        self._file, self._fixed = file, frozenset(fixed)
        self._seen: tuple[int, int] | None = None
        self._from_file: frozenset[str] = frozenset()
        if file is not None:
            self._reload(file)

    @classmethod
    def configured(cls, settings: Settings) -> "Tokens | None":
        """None where the service runs open."""
        file = None if settings.tokens_file is None else Path(settings.tokens_file).expanduser()
        if file is None and not environment_tokens():
            return None
        return cls(file, environment_tokens())

    def accept(self, authorization: str | None) -> bool:
        """Compares with every token in constant time, so that timing tells nothing.

        Args:
            authorization: The header as ASGI frameworks decode it, Latin-1; tokens are compared as UTF-8.
        """
        scheme, _, given = (authorization or "").partition(" ")
        tokens = self._current()
        matches = [hmac.compare_digest(given.strip().encode("latin-1"), token.encode()) for token in tokens]
        return scheme.lower() == "bearer" and any(matches)

    def _current(self) -> frozenset[str]:
        if self._file is not None:
            try:
                self._reload(self._file)
            except (OSError, UnicodeDecodeError):
                log.warning("the file of tokens cannot be read; the last ones read stay valid")
        return self._fixed | self._from_file

    def _reload(self, file: Path) -> None:
        stat = file.stat()
        if (stat.st_mtime_ns, stat.st_size) != self._seen:
            self._from_file = frozenset(filter(None, map(str.strip, file.read_text("utf-8").splitlines())))
            self._seen = (stat.st_mtime_ns, stat.st_size)


class Edge:
    """Guards an ASGI app; every answer carries ``X-Request-ID``, every failure the dialect of its route.

    Args:
        tokens: None lets everybody in.
        sends_request_id: False behind Ray Serve, which adds the header to every answer itself.
    """

    def __init__(
        self, app: ASGIApp, *, tokens: Tokens | None, limits: Limits, sends_request_id: bool = True
    ) -> None:
        self._app, self._tokens, self._limits = app, tokens, limits
        self._sends_request_id = sends_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given_id = headers.get("x-request-id", "")
        request_id = given_id if REQUEST_ID.fullmatch(given_id) else str(uuid.uuid4())
        stripped = [(name, value) for name, value in scope["headers"] if name.lower() not in CONTROL_HEADERS]
        scope = {**scope, "headers": stripped, "state": {**scope.get("state", {}), "request_id": request_id}}
        answer = _Answer(send, request_id if self._sends_request_id else None)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        try:
            self._check(path, headers)
            limit = self._body_limit(path, headers)
            await self._app(scope, _counted(receive, limit), answer.send)
        except StillhouseError as error:
            await answer.fail(path, render(error, path, headers.get("accept"), request_id))
        except Exception:  # whatever it is, the client gets an answer in its dialect
            log.exception("request %s failed", request_id)
            unexpected = StillhouseError(f"An unexpected error occurred (request {request_id}).")
            await answer.fail(path, render(unexpected, path, headers.get("accept"), request_id))

    def _check(self, path: str, headers: Headers) -> None:
        tokens = None if path.startswith(OPEN_PATHS) else self._tokens
        if tokens is not None and not tokens.accept(headers.get("authorization")):
            raise AuthenticationError("Send a valid token: Authorization: Bearer <token>.")
        length = headers.get("content-length", "")
        if _LENGTH.fullmatch(length) and int(length) > self._body_limit(path, headers):
            raise _too_large(self._body_limit(path, headers))

    def _body_limit(self, path: str, headers: Headers) -> int:
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        takes_table = path.startswith("/api/v1/datasets") or (
            path == "/api/v1/predict" and media_type in TABLES
        )
        return self._limits.body_bytes if takes_table else self._limits.json_bytes


class _Answer:
    """Sends an app's answer, with the request id, unless it fails before it began."""

    def __init__(self, send: Send, request_id: str | None) -> None:
        self._send, self._request_id = send, request_id
        self._started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            if self._request_id is not None:
                MutableHeaders(scope=message)["X-Request-ID"] = self._request_id
        await self._send(message)

    async def fail(self, path: str, rendered: Rendered) -> None:
        if self._started:
            raise ConnectionError(f"the answer to {path} broke off after it had begun")
        body = json.dumps(rendered.body).encode()
        headers = {**rendered.headers, "content-type": rendered.media_type, "content-length": str(len(body))}
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": rendered.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})


def _counted(receive: Receive, limit: int) -> Receive:
    """Counts the body as it comes: a missing or wrong Content-Length does not get past the limit."""
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        if message["type"] == "http.request":
            received += len(message.get("body", b""))
            if received > limit:
                raise _too_large(limit)
        return message

    return counted


def _too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"The body must be at most {limit} bytes: send less.", limit_bytes=limit)
