"""The clients: both carry out the calls of ``stillhouse.calls``, one by blocking and one by awaiting."""

import asyncio
import dataclasses
import functools
import inspect
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, Protocol, Self, TypeVar, get_args

import httpx
from pydantic import ValidationError

from core.errors import StillhouseError
from stillhouse import calls
from stillhouse.answers import Page
from stillhouse.calls import Answer, Call
from stillhouse.events import JobEvents
from stillhouse.failures import error_of_answer, not_understood, unreachable
from stillhouse.retries import DEFAULT_PATIENCE, Attempts, Patience

DEFAULT_URL: Final = "http://127.0.0.1:8000"
CHUNK_BYTES: Final = 1 << 16

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Item = TypeVar("Item")
OnRetry = Callable[[StillhouseError, float], None]


class Blocking(Protocol):
    """Carries out a call and returns what it gives."""

    def _send(self, call: Call[Result]) -> Result: ...


class Awaiting(Protocol):
    """The same, awaited."""

    async def _send(self, call: Call[Result]) -> Result: ...


def _blocking(
    describe: Callable[Parameters, Call[Result]],
) -> Callable[Concatenate[Blocking, Parameters], Result]:
    def method(self: Blocking, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return self._send(describe(*args, **kwargs))

    return _as_method(method, describe)


def _awaiting(
    describe: Callable[Parameters, Call[Result]],
) -> Callable[Concatenate[Awaiting, Parameters], Coroutine[Any, Any, Result]]:
    async def method(self: Awaiting, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return await self._send(describe(*args, **kwargs))

    return _as_method(method, describe)


def _as_method(
    method: Callable[Parameters, Result], describe: Callable[..., object]
) -> Callable[Parameters, Result]:
    """The method with the name, the documentation and the parameters of its call."""
    signature = inspect.signature(describe)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    functools.update_wrapper(method, describe)
    vars(method)["__signature__"] = signature.replace(
        parameters=[itself, *signature.parameters.values()],
        return_annotation=next(iter(get_args(signature.return_annotation)), inspect.Signature.empty),
    )
    return method


def _all_pages(
    page: Callable[..., Call[Page[Item]]],
) -> Callable[[Blocking], Iterator[Item]]:
    def method(self: Blocking) -> Iterator[Item]:
        cursor: str | None = None
        while True:
            found = self._send(page(cursor=cursor))
            yield from found.data
            cursor = found.next_cursor
            if cursor is None:
                return

    method.__doc__ = f"{page.__doc__} Asks for pages as they are needed."
    return method


def _all_pages_awaited(
    page: Callable[..., Call[Page[Item]]],
) -> Callable[[Awaiting], AsyncIterator[Item]]:
    async def method(self: Awaiting) -> AsyncIterator[Item]:
        cursor: str | None = None
        while True:
            found = await self._send(page(cursor=cursor))
            for item in found.data:
                yield item
            cursor = found.next_cursor
            if cursor is None:
                return

    method.__doc__ = f"{page.__doc__} Asks for pages as they are needed."
    return method


class _Part:
    def __init__(self, client: "Client") -> None:
        self._send = client._send


class Datasets(_Part):
    upload = _blocking(calls.upload_dataset)
    list = _all_pages(calls.datasets_page)
    get = _blocking(calls.get_dataset)
    preview = _blocking(calls.preview_dataset)
    delete = _blocking(calls.delete_dataset)


class Runs(_Part):
    list = _all_pages(calls.runs_page)
    get = _blocking(calls.get_run)
    delete = _blocking(calls.delete_run)
    save = _blocking(calls.save_run)
    download = _blocking(calls.download_run)


class Models(_Part):
    list = _all_pages(calls.models_page)
    get = _blocking(calls.get_model)
    delete = _blocking(calls.delete_model)
    export = _blocking(calls.export_model)


class _AsyncPart:
    def __init__(self, client: "AsyncClient") -> None:
        self._send = client._send


class AsyncDatasets(_AsyncPart):
    upload = _awaiting(calls.upload_dataset)
    list = _all_pages_awaited(calls.datasets_page)
    get = _awaiting(calls.get_dataset)
    preview = _awaiting(calls.preview_dataset)
    delete = _awaiting(calls.delete_dataset)


class AsyncRuns(_AsyncPart):
    list = _all_pages_awaited(calls.runs_page)
    get = _awaiting(calls.get_run)
    delete = _awaiting(calls.delete_run)
    save = _awaiting(calls.save_run)
    download = _awaiting(calls.download_run)


class AsyncModels(_AsyncPart):
    list = _all_pages_awaited(calls.models_page)
    get = _awaiting(calls.get_model)
    delete = _awaiting(calls.delete_model)
    export = _awaiting(calls.export_model)


class _Common:
    """What both clients are told and how they put a call as a request."""

    def __init__(
        self,
        base_url: str,
        token: str | None,
        timeout_s: float,
        patience: Patience,
        on_retry: OnRetry | None,
        clock: Callable[[], float],
        uniform: Callable[[], float],
    ) -> None:
        self._base_url = _checked_url(base_url)
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}".encode()}
        self._timeout_s, self._patience, self._on_retry = timeout_s, patience, on_retry
        self._clock, self._uniform = clock, uniform

    def _options(self) -> dict[str, Any]:
        return {"base_url": self._base_url, "headers": self._headers, "follow_redirects": False}

    def _attempts(self) -> Attempts:
        return Attempts(self._patience, self._clock, self._uniform)

    def _request(self, call: Call[Any], key: str, remaining_s: float) -> dict[str, Any]:
        """Arguments of ``build_request``, but for the content."""
        headers = {"Accept": f"{call.accept}, {calls.PROBLEM}"}
        if call.media_type is not None:
            headers["Content-Type"] = call.media_type
        if call.creates:
            headers["Idempotency-Key"] = key
        if isinstance(call.content, Path):
            headers["Content-Length"] = str(call.content.stat().st_size)
        wait_s = min(self._timeout_s, remaining_s)
        return {
            "method": call.method,
            "url": call.path,
            "params": call.params,
            "headers": headers,
            "timeout": httpx.Timeout(wait_s, read=None if call.works else wait_s),
        }

    def _before_waiting(self, error: StillhouseError, wait_s: float) -> float:
        if self._on_retry is not None:
            self._on_retry(error, wait_s)
        return wait_s

    def _unreachable(self, error: httpx.TransportError) -> StillhouseError:
        reason = f"{_REASONS.get(type(error), 'the connection broke')} ({type(error).__name__})"
        return unreachable(self._base_url, reason)

    def _read(self, call: Call[Result], response: httpx.Response, content: bytes) -> Result:
        try:
            return call.read(Answer(content, response.headers))
        except ValidationError:
            raise not_understood(self._base_url, response.status_code) from None


# Others, such as a token that no header can carry, are mistakes of the caller.
_PASSING: Final = (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError, httpx.ProxyError)
_NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout)
_REASONS: Final = {
    httpx.ConnectError: "no connection could be made",
    httpx.ConnectTimeout: "no connection could be made in time",
    httpx.ReadTimeout: "no answer came in time",
}


class Client(_Common):
    """A client that blocks. Close it, or use it in a ``with`` block.

    Every failure is raised as the class of ``stillhouse.errors`` that its code names, with the fields of
    ``Failure`` as attributes; a service that cannot be reached is a ``ServiceUnavailableError``.

    Raises:
        ValueError: from the constructor, if ``base_url`` is no address.

    Args:
        token: Sent as bearer token.
        timeout_s: Longest wait for a connection or the next part of an answer; train and distil wait as long
            as they work.
        patience: How long failures that may pass are tried again.
        on_retry: Called with the error and the seconds before each further attempt.
        transport: Of httpx, for tests and proxies.
        clock, sleep, uniform: Monotonic seconds, a wait, and a number in [0, 1).
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        token: str | None = None,
        *,
        timeout_s: float = 60.0,
        patience: Patience = DEFAULT_PATIENCE,
        on_retry: OnRetry | None = None,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(base_url, token, timeout_s, patience, on_retry, clock, uniform)
        self._http = httpx.Client(transport=transport, **self._options())
        self._sleep = sleep
        self.datasets, self.runs, self.models = Datasets(self), Runs(self), Models(self)

    train = _blocking(calls.train)
    distill = _blocking(calls.distill)
    predict = _blocking(calls.predict)
    predict_rows = _blocking(calls.predict_rows)
    predict_table = _blocking(calls.predict_table)
    limits = _blocking(calls.limits)
    errors = _blocking(calls.errors)
    health = _blocking(calls.health)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, call: Call[Result]) -> Result:
        key, attempts = str(uuid.uuid4()), self._attempts()
        while True:
            try:
                return self._attempt(call, key, attempts.remaining_s())
            except _PASSING as error:
                failed, call = self._unreachable(error), _after_silence(call, error)
            except StillhouseError as error:
                failed = error
            self._sleep(self._before_waiting(failed, attempts.wait_after(failed)))

    def _attempt(self, call: Call[Result], key: str, remaining_s: float) -> Result:
        content = _chunks(call.content) if isinstance(call.content, Path) else call.content
        request = self._http.build_request(content=content, **self._request(call, key, remaining_s))
        response = self._http.send(request, stream=True)
        try:
            if call.progress is not None and _streams(response):
                events = JobEvents(call.progress, response.headers.get("x-request-id"))
                for line in response.iter_lines():
                    events.feed(line)
                return self._read(call, response, _result_of(events))
            return self._read(call, response, _checked(call, response, response.read()))
        finally:
            response.close()


class AsyncClient(_Common):
    """``Client`` for asyncio: its methods are awaited, its lists iterated with ``async for``."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        token: str | None = None,
        *,
        timeout_s: float = 60.0,
        patience: Patience = DEFAULT_PATIENCE,
        on_retry: OnRetry | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(base_url, token, timeout_s, patience, on_retry, clock, uniform)
        self._http = httpx.AsyncClient(transport=transport, **self._options())
        self._sleep = sleep
        self.datasets, self.runs, self.models = AsyncDatasets(self), AsyncRuns(self), AsyncModels(self)

    train = _awaiting(calls.train)
    distill = _awaiting(calls.distill)
    predict = _awaiting(calls.predict)
    predict_rows = _awaiting(calls.predict_rows)
    predict_table = _awaiting(calls.predict_table)
    limits = _awaiting(calls.limits)
    errors = _awaiting(calls.errors)
    health = _awaiting(calls.health)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _send(self, call: Call[Result]) -> Result:
        key, attempts = str(uuid.uuid4()), self._attempts()
        while True:
            try:
                return await self._attempt(call, key, attempts.remaining_s())
            except _PASSING as error:
                failed, call = self._unreachable(error), _after_silence(call, error)
            except StillhouseError as error:
                failed = error
            await self._sleep(self._before_waiting(failed, attempts.wait_after(failed)))

    async def _attempt(self, call: Call[Result], key: str, remaining_s: float) -> Result:
        content = _awaited_chunks(call.content) if isinstance(call.content, Path) else call.content
        request = self._http.build_request(content=content, **self._request(call, key, remaining_s))
        response = await self._http.send(request, stream=True)
        try:
            if call.progress is not None and _streams(response):
                events = JobEvents(call.progress, response.headers.get("x-request-id"))
                async for line in response.aiter_lines():
                    events.feed(line)
                return self._read(call, response, _result_of(events))
            return self._read(call, response, _checked(call, response, await response.aread()))
        finally:
            await response.aclose()


def _checked_url(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
        is_address = url.scheme in ("http", "https") and bool(url.host)
    except httpx.InvalidURL:
        is_address = False
    if not is_address:
        raise ValueError(f"base_url must be http:// or https:// and a host, got {base_url!r:.60}")
    return base_url.rstrip("/")


def _after_silence(call: Call[Result], error: httpx.TransportError) -> Call[Result]:
    """The call as it is repeated: what is missing then may be what the attempt without an answer deleted."""
    if call.method == "DELETE" and not isinstance(error, _NOT_SENT):
        return dataclasses.replace(call, also_reads=404)
    return call


def _streams(response: httpx.Response) -> bool:
    return response.is_success and response.headers.get("content-type", "").startswith(calls.EVENTS)


def _checked(call: Call[Any], response: httpx.Response, content: bytes) -> bytes:
    """The body of an answer; raises the error of any other."""
    if response.is_success or response.status_code == call.also_reads:
        return content
    raise error_of_answer(response.status_code, response.headers, content)


def _result_of(events: JobEvents) -> bytes:
    if events.result is None:
        raise httpx.RemoteProtocolError("the stream of events ended before its result")
    return events.result


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            yield chunk


async def _awaited_chunks(file: Path) -> AsyncIterator[bytes]:
    chunks = _chunks(file)
    while chunk := await asyncio.to_thread(next, chunks, b""):
        yield chunk
