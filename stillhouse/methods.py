"""Methods of the clients, made of the calls that they carry out: they block, or are awaited."""

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar, get_args

from stillhouse.answers import Page
from stillhouse.requests import Call

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Item = TypeVar("Item")
PageOf = Callable[Concatenate[int, str | None, Parameters], Call[Page[Item]]]
PAGE_ITEMS: Final = 100


class Blocking(Protocol):
    """Carries out a call and returns what it gives."""

    def _send(self, call: Call[Result]) -> Result: ...


class Awaiting(Protocol):
    """The same, awaited."""

    async def _send(self, call: Call[Result]) -> Result: ...


def blocking(
    describe: Callable[Parameters, Call[Result]],
) -> Callable[Concatenate[Blocking, Parameters], Result]:
    def method(self: Blocking, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return self._send(describe(*args, **kwargs))

    return _as_method(method, describe)


def awaiting(
    describe: Callable[Parameters, Call[Result]],
) -> Callable[Concatenate[Awaiting, Parameters], Coroutine[Any, Any, Result]]:
    async def method(self: Awaiting, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return await self._send(describe(*args, **kwargs))

    return _as_method(method, describe)


def all_pages(
    page: PageOf[Parameters, Item],
) -> Callable[Concatenate[Blocking, Parameters], Iterator[Item]]:
    def method(self: Blocking, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Iterator[Item]:
        cursor: str | None = None
        while True:
            found = self._send(page(PAGE_ITEMS, cursor, *args, **kwargs))
            yield from found.data
            cursor = found.next_cursor
            if cursor is None:
                return

    return _as_list(method, page)


def all_pages_awaited(
    page: PageOf[Parameters, Item],
) -> Callable[Concatenate[Awaiting, Parameters], AsyncIterator[Item]]:
    async def method(
        self: Awaiting, /, *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> AsyncIterator[Item]:
        cursor: str | None = None
        while True:
            found = await self._send(page(PAGE_ITEMS, cursor, *args, **kwargs))
            for item in found.data:
                yield item
            cursor = found.next_cursor
            if cursor is None:
                return

    return _as_list(method, page)


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


def _as_list(
    method: Callable[Parameters, Result], page: Callable[..., object]
) -> Callable[Parameters, Result]:
    """The method with the documentation of a page and with the parameters that narrow it."""
    signature = inspect.signature(method)
    itself = next(iter(signature.parameters.values()))
    narrowing = [p for p in inspect.signature(page).parameters.values() if p.kind is p.KEYWORD_ONLY]
    vars(method)["__signature__"] = signature.replace(parameters=[itself, *narrowing])
    method.__doc__ = f"{page.__doc__} Asks for pages as they are needed."
    return method
