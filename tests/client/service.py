"""Both clients against the whole service in one process."""

import inspect
from collections.abc import Callable
from typing import Any

import httpx
from anyio.from_thread import BlockingPortal

import stillhouse
from deployments.web import build_web_app

URL = "http://stillhouse"


class Crossing(httpx.BaseTransport):
    """Carries requests of a blocking client to an ASGI app that lives on the portal's loop."""

    def __init__(self, portal: BlockingPortal, transport: httpx.AsyncBaseTransport) -> None:
        self._portal, self._transport = portal, transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        copy = httpx.Request(request.method, request.url, headers=request.headers, content=request.content)
        return self._portal.call(self._answered, copy)

    async def _answered(self, request: httpx.Request) -> httpx.Response:
        answer = await self._transport.handle_async_request(request)
        return httpx.Response(answer.status_code, headers=answer.headers, content=await answer.aread())


class Awaited:
    """An asynchronous client, or a part of one, behind the manners of the blocking one."""

    def __init__(self, portal: BlockingPortal, subject: Any) -> None:
        self._portal, self._subject = portal, subject

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._subject, name)
        return self._called(attribute) if callable(attribute) else Awaited(self._portal, attribute)

    def _called(self, method: Callable) -> Callable:
        async def run(*args: object, **kwargs: object) -> object:
            returned = method(*args, **kwargs)
            return [item async for item in returned] if inspect.isasyncgen(returned) else await returned

        return lambda *args, **kwargs: self._portal.call(lambda: run(*args, **kwargs))


def client_of(kind: str, portal: BlockingPortal, transport: httpx.AsyncBaseTransport, **options: Any) -> Any:
    """A client of either kind; ``sleep`` is given as a plain function to both."""
    sleep = options.pop("sleep", None)
    if kind == "blocking":
        options |= {"sleep": sleep} if sleep else {}
        return stillhouse.Client(URL, transport=Crossing(portal, transport), **options)

    async def sleep_async(seconds: float) -> None:
        sleep(seconds)

    options |= {"sleep": sleep_async} if sleep else {}
    return Awaited(portal, stillhouse.AsyncClient(URL, transport=transport, **options))


def over(service: Any) -> httpx.ASGITransport:
    return httpx.ASGITransport(build_web_app(service))
