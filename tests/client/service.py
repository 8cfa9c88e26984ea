"""Both clients against the whole service in one process."""

import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from anyio.from_thread import BlockingPortal
from click.testing import CliRunner

import stillhouse
from deployments.web import build_web_app
from stillhouse.command_line.main import command

URL = "http://stillhouse"


class Clock:
    """Seconds that pass only while somebody sleeps."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Scripted(httpx.AsyncBaseTransport):
    """Answers what it was told to, in order, and the last of it for ever; raises exceptions among it."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers, self.requests = list(answers), []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


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
        parts = CrossingParts(self._portal, answer)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=parts)


class CrossingParts(httpx.SyncByteStream):
    """The parts of an answer, each as it comes."""

    def __init__(self, portal: BlockingPortal, answer: httpx.Response) -> None:
        self._portal, self._answer = portal, answer

    def __iter__(self) -> Iterator[bytes]:
        parts = aiter(self._answer.stream)
        while (part := self._portal.call(anext, parts, None)) is not None:
            yield part

    def close(self) -> None:
        self._portal.call(self._answer.aclose)


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


class Terminal:
    """Runs commands in a folder that has ``trees.csv``."""

    def __init__(self, connect) -> None:
        self._runner, self._connect = CliRunner(), connect

    def __call__(self, *args: str, expect: int = 0, given: bytes | None = None, env: dict | None = None):
        done = self._runner.invoke(command, args, obj=self._connect, input=given, env=env)
        assert done.exit_code == expect, (done.stdout, done.stderr, done.exception)
        return done

    def json(self, *args: str, expect: int = 0):
        return json.loads(self(*args, "--json", expect=expect).stdout)
