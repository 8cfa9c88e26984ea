"""The border for WebSockets: ids, tokens, limits, and failures as frames and close codes (seed 001)."""

import json
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import (
    AuthenticationError,
    InsufficientPermissionsError,
    JobNotFoundError,
    NotFoundError,
    RateLimitedError,
    StillhouseError,
    UnexpectedError,
)
from deployments.dialects import Asked, platform_answer
from deployments.edge.authentication import client_named, role_named
from deployments.edge.border import Observer, route_path
from deployments.edge.clients import Proxies
from deployments.edge.rates import Rates
from deployments.edge.tokens import Tokens
from deployments.origin import Origin

POLICY: Final = 1008
INTERNAL: Final = 1011
_REASON_BYTES: Final = 123
_REFUSALS: Final = (
    AuthenticationError,
    InsufficientPermissionsError,
    JobNotFoundError,
    NotFoundError,
    RateLimitedError,
)


class Sockets:
    """Lets a socket in by its header ``Authorization``, or by ``?access_token=`` where a browser opens it."""

    def __init__(
        self, app: ASGIApp, *, tokens: Tokens | None, rates: Rates, proxies: Proxies, observe: Observer
    ) -> None:
        self._app, self._tokens, self._rates, self._proxies = app, tokens, rates, proxies
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = Origin.of(headers.get("x-request-id"), headers.get("traceparent"))
        socket = _Socket(send)
        try:
            state = {**scope.get("state", {}), "origin": origin, **await self._let_in(scope, headers)}
            await self._app({**scope, "state": state}, receive, socket.send)
        except StillhouseError as error:
            await self._end(error, scope, origin, socket, receive)
        except OSError:
            return  # the client left
        except Exception as error:  # noqa: BLE001  # whatever it is gets a frame, and a line in the log
            unexpected = UnexpectedError(original=error)
            await self._end(unexpected, scope, origin, socket, receive)

    async def _let_in(self, scope: Scope, headers: Headers) -> Mapping[str, object]:
        address = self._proxies.address_of(scope)
        authorization = headers.get("authorization")
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("access_token")
        if authorization is None and given:
            authorization = f"Bearer {given[0]}"
        role = await role_named(self._tokens, authorization, address, self._rates)
        client = client_named(self._tokens, authorization, address)
        await self._rates.take("read", client)
        return {"client": client, "role": role}

    async def _end(
        self, error: StillhouseError, scope: Scope, origin: Origin, socket: "_Socket", receive: Receive
    ) -> None:
        self._observe.failed(error, {**scope, "method": "GET"}, origin)
        asked = Asked(route_path(scope), None, origin.request_id, origin.trace_id)
        _, body = platform_answer(error, asked)
        reason = error.user_message.encode()[:_REASON_BYTES].decode(errors="ignore")
        code = POLICY if isinstance(error, _REFUSALS) else INTERNAL
        try:
            await socket.finish({"type": "error", **body}, code, reason, receive)
        except (OSError, RuntimeError):
            return  # it was closed already


class _Socket:
    """Remembers whether the connection is open: a close code reaches only a client that was let in."""

    def __init__(self, send: Send) -> None:
        self._send, self._accepted, self._closed = send, False, False

    async def send(self, message: Message) -> None:
        self._accepted = self._accepted or message["type"] == "websocket.accept"
        self._closed = self._closed or message["type"] == "websocket.close"
        await self._send(message)

    async def finish(self, frame: Mapping[str, object], code: int, reason: str, receive: Receive) -> None:
        if self._closed:
            return
        if not self._accepted:
            await receive()  # the request to connect
            await self.send({"type": "websocket.accept"})
        await self.send({"type": "websocket.send", "text": json.dumps(frame)})
        await self.send({"type": "websocket.close", "code": code, "reason": reason})
