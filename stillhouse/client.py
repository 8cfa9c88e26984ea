"""The clients: both carry out the same calls, one by blocking and one by awaiting."""

import asyncio
import dataclasses
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import httpx
from pydantic import ValidationError

from core.errors import StillhouseError
from stillhouse import calls
from stillhouse.events import JobEvents
from stillhouse.failures import error_of_answer, not_understood, unreachable
from stillhouse.following import Following
from stillhouse.jobs import PASSING, AsyncJobs, Jobs
from stillhouse.methods import all_pages, all_pages_awaited, awaiting, blocking
from stillhouse.requests import EVENTS, PROBLEM, Answer, Call
from stillhouse.retries import DEFAULT_PATIENCE, Attempts, Patience

DEFAULT_URL: Final = "http://127.0.0.1:8000"
CHUNK_BYTES: Final = 1 << 16

Result = TypeVar("Result")
OnRetry = Callable[[StillhouseError, float], None]


class _Part:
    def __init__(self, client: "Client") -> None:
        self._send = client._send


class Datasets(_Part):
    upload = blocking(calls.upload_dataset)
    list = all_pages(calls.datasets_page)
    get = blocking(calls.get_dataset)
    preview = blocking(calls.preview_dataset)
    delete = blocking(calls.delete_dataset)


class Runs(_Part):
    list = all_pages(calls.runs_page)
    get = blocking(calls.get_run)
    delete = blocking(calls.delete_run)
    save = blocking(calls.save_run)
    download = blocking(calls.download_run)


class Models(_Part):
    list = all_pages(calls.models_page)
    get = blocking(calls.get_model)
    delete = blocking(calls.delete_model)
    export = blocking(calls.export_model)


class _AsyncPart:
    def __init__(self, client: "AsyncClient") -> None:
        self._send = client._send


class AsyncDatasets(_AsyncPart):
    upload = awaiting(calls.upload_dataset)
    list = all_pages_awaited(calls.datasets_page)
    get = awaiting(calls.get_dataset)
    preview = awaiting(calls.preview_dataset)
    delete = awaiting(calls.delete_dataset)


class AsyncRuns(_AsyncPart):
    list = all_pages_awaited(calls.runs_page)
    get = awaiting(calls.get_run)
    delete = awaiting(calls.delete_run)
    save = awaiting(calls.save_run)
    download = awaiting(calls.download_run)


class AsyncModels(_AsyncPart):
    list = all_pages_awaited(calls.models_page)
    get = awaiting(calls.get_model)
    delete = awaiting(calls.delete_model)
    export = awaiting(calls.export_model)


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

    def _following(self, job_id: str, after: int, timeout_s: float | None) -> Following:
        return Following(
            job_id,
            after,
            patience=self._patience,
            timeout_s=timeout_s,
            clock=self._clock,
            uniform=self._uniform,
        )

    def _request(self, call: Call[Any], key: str, remaining_s: float) -> dict[str, Any]:
        """Arguments of ``build_request``, but for the content."""
        headers = {"Accept": f"{call.accept}, {PROBLEM}"}
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

    def _before_waiting(self, error: StillhouseError | None, wait_s: float) -> float:
        if self._on_retry is not None and error is not None:
            self._on_retry(error, wait_s)
        return wait_s

    def _unreachable(self, error: httpx.TransportError) -> StillhouseError:
        reason = f"{_REASONS.get(type(error), 'the connection broke')} ({type(error).__name__})"
        return unreachable(self._base_url, reason)

    def _no_stream(self, call: Call[Any], response: httpx.Response, content: bytes) -> StillhouseError:
        _checked(call, response, content)
        return not_understood(self._base_url, response.status_code)

    def _read(self, call: Call[Result], response: httpx.Response, content: bytes) -> Result:
        try:
            return call.read(Answer(content, response.headers))
        except ValidationError:
            raise not_understood(self._base_url, response.status_code) from None


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
        self.jobs = Jobs(self)

    train = blocking(calls.train)
    distill = blocking(calls.distill)
    predict = blocking(calls.predict)
    predict_rows = blocking(calls.predict_rows)
    predict_table = blocking(calls.predict_table)
    limits = blocking(calls.limits)
    errors = blocking(calls.errors)
    health = blocking(calls.health)

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
            except PASSING as error:
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

    @contextmanager
    def _lines(self, call: Call[Any], remaining_s: float) -> Iterator[Iterator[str]]:
        """Those of a stream of events; they end where it does, and where it is silent for too long."""
        request = self._http.build_request(**self._request(call, "", remaining_s))
        response = self._http.send(request, stream=True)
        try:
            if not _streams(response):
                raise self._no_stream(call, response, response.read())
            yield _until_silent(response.iter_lines())
        finally:
            response.close()


class AsyncClient(_Common):
    """``Client`` for asyncio: its methods are awaited, and what iterates is iterated with ``async for``.

    So ``await client.runs.get(run_id)``, but ``async for run in client.runs.list()``.
    """

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
        self.jobs = AsyncJobs(self)

    train = awaiting(calls.train)
    distill = awaiting(calls.distill)
    predict = awaiting(calls.predict)
    predict_rows = awaiting(calls.predict_rows)
    predict_table = awaiting(calls.predict_table)
    limits = awaiting(calls.limits)
    errors = awaiting(calls.errors)
    health = awaiting(calls.health)

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
            except PASSING as error:
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

    @asynccontextmanager
    async def _lines(self, call: Call[Any], remaining_s: float) -> AsyncIterator[AsyncIterator[str]]:
        request = self._http.build_request(**self._request(call, "", remaining_s))
        response = await self._http.send(request, stream=True)
        try:
            if not _streams(response):
                raise self._no_stream(call, response, await response.aread())
            yield _until_silent_awaited(response.aiter_lines())
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
    return response.is_success and response.headers.get("content-type", "").startswith(EVENTS)


def _until_silent(lines: Iterator[str]) -> Iterator[str]:
    with suppress(httpx.ReadTimeout):
        yield from lines


async def _until_silent_awaited(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    with suppress(httpx.ReadTimeout):
        async for line in lines:
            yield line


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
