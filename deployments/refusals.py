"""What Serve's proxy answers by itself, in plain text, told in the dialect of the route."""

from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core import errors
from core.errors import (
    OverloadedError,
    ServiceUnavailableError,
    StillhouseError,
)
from deployments.dialects import Asked, render
from deployments.origin import Origin

RawHeaders = list[tuple[bytes, bytes]]
_SERVES_OWN: Final = "/-/"


class OwnWords:
    """Replaces failures that carry no code of ours: no replica lives, none is free, or one was lost.

    Serve's 404 is one of them: what lies below the application's prefix is the application's to answer, so
    it means that the application is not there yet.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_SERVES_OWN):
            await self._app(scope, receive, send)
            return
        begun = replaced = False

        async def translated(message: Message) -> None:
            nonlocal begun, replaced
            begun = True
            if message["type"] == "http.response.start" and _is_foreign(message):
                replaced = True
                await send_error(_error_of(message["status"]), scope, message["headers"], send)
            elif not replaced:
                await send(message)

        await self._app(scope, receive, translated)
        if not begun:  # the ingress died with the request; uvicorn would say 500 in plain text
            await send_error(_error_of(500), scope, [], send)


def _is_foreign(start: Message) -> bool:
    headers = Headers(raw=start["headers"])
    return bool(start["status"] >= 400 and "x-error-code" not in headers and "x-trace-id" not in headers)


def _error_of(status: int) -> StillhouseError:
    if status == 429:
        return OverloadedError()
    if status == 408:
        return errors.TimeoutError()
    if status == 500:
        return ServiceUnavailableError("The part that worked on this request was lost: send it again.")
    return ServiceUnavailableError("The service is starting or restarting: try again in a few seconds.")


async def send_error(error: StillhouseError, scope: Scope, answered: RawHeaders, send: Send) -> None:
    """Writes an error down as the route and the request want it.

    Args:
        answered: Headers of an answer that it replaces, if any.
    """
    asked = Headers(scope=scope)
    given = Headers(raw=answered).get("x-request-id") or asked.get("x-request-id")
    origin = Origin.of(given, asked.get("traceparent"))
    rendered = render(error, Asked(scope["path"], asked.get("accept"), origin.request_id, origin.trace_id))
    for message in rendered.messages(x_request_id=origin.request_id, x_trace_id=origin.trace_id):
        await send(message)
