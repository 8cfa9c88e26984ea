"""The outermost guard: ids, the headers that get in, and every failure in the dialect of its route."""

from collections.abc import Callable
from typing import Final, Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import HeadersTooLargeError, MalformedBodyError, StillhouseError, UnexpectedError
from deployments.dialects import Asked, Rendered, render
from deployments.origin import Origin
from deployments.proxy import CONTROL_HEADERS
from deployments.settings import Limits

DOCUMENTATION_PATHS: Final = ("/docs", "/openapi.json", "/static-offline-docs/")
OPEN_PATHS: Final = ("/health", *DOCUMENTATION_PATHS)
"""What they begin with: whoever asks, and however often."""
SINGLE_HEADERS: Final = ("authorization", "content-length", "content-type", "idempotency-key")


class Observer(Protocol):
    """What wants to know of answers and failures."""

    def answered(self, scope: Scope, status: int, seconds: float) -> None: ...

    def failed(self, error: StillhouseError, scope: Scope, origin: Origin) -> None: ...

    def replayed(self) -> None: ...


class Border:
    """Gives each request its ids and each failure its words.

    An error that comes after the answer began breaks the connection: the client must not take what it got for
    whole.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        observe: Observer,
        clock: Callable[[], float],
        limits: Limits,
        sends_request_id: bool = True,
    ) -> None:
        self._app, self._observe, self._clock, self._limits = app, observe, clock, limits
        self._sends_request_id = sends_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = self._clock()
        headers = Headers(scope=scope)
        origin = Origin.of(headers.get("x-request-id"), headers.get("traceparent"))
        stripped = [(name, value) for name, value in scope["headers"] if name.lower() not in CONTROL_HEADERS]
        scope = {**scope, "headers": stripped, "state": {**scope.get("state", {}), "origin": origin}}
        answer = _Answer(send, origin, self._sends_request_id)
        try:
            self._check_headers(scope["headers"])
            await self._app(scope, receive, answer.send)
        except StillhouseError as error:
            await self._fail(error, scope, origin, answer)
        except ClientDisconnect:
            left = MalformedBodyError("The request must be read to its end, but the connection broke off.")
            await self._tell(left, scope, origin, answer)  # counted as no failure: it is nobody's fault
        except Exception as error:  # noqa: BLE001  # whatever it is gets an answer, and a line in the log
            unexpected = UnexpectedError(
                f"An unexpected error occurred (request {origin.request_id}).", original=error
            )
            await self._fail(unexpected, scope, origin, answer)
        finally:
            self._observe.answered(scope, answer.status, self._clock() - started)

    def _check_headers(self, headers: list[tuple[bytes, bytes]]) -> None:
        size = sum(len(name) + len(value) for name, value in headers)
        if size > self._limits.header_bytes:
            raise HeadersTooLargeError(
                f"The headers must be at most {self._limits.header_bytes} bytes, got {size}: send fewer."
            )
        names = [name.lower().decode("latin-1") for name, _ in headers]
        for name in SINGLE_HEADERS:
            if names.count(name) > 1:
                raise MalformedBodyError(f"The header {name} must be sent once, got {names.count(name)}.")

    async def _fail(self, error: StillhouseError, scope: Scope, origin: Origin, answer: "_Answer") -> None:
        self._observe.failed(error, scope, origin)
        await self._tell(error, scope, origin, answer)

    async def _tell(self, error: StillhouseError, scope: Scope, origin: Origin, answer: "_Answer") -> None:
        if answer.status:
            raise ConnectionError("the answer broke off after it had begun") from error
        accept = Headers(scope=scope).get("accept")
        asked = Asked(route_path(scope), accept, origin.request_id, origin.trace_id)
        await answer.send_error(render(error, asked))


class _Answer:
    """Sends an answer with the ids of its request.

    Attributes:
        status: 0 until the answer has begun.
    """

    def __init__(self, send: Send, origin: Origin, sends_request_id: bool) -> None:
        self._send, self._origin, self._sends_request_id = send, origin, sends_request_id
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Trace-Id"] = self._origin.trace_id
            if self._sends_request_id:
                headers["X-Request-ID"] = self._origin.request_id
        try:
            await self._send(message)
        except OSError as error:  # what ASGI servers say of clients that left
            raise ClientDisconnect from error

    async def send_error(self, rendered: Rendered) -> None:
        for message in rendered.messages():
            await self.send(message)


def route_path(scope: Scope) -> str:
    """The path as the routes know it."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def origin_of(scope: Scope) -> Origin:
    """The ids that the border gave; new ones where there was no border."""
    origin = scope.get("state", {}).get("origin")
    return origin if isinstance(origin, Origin) else Origin()
