"""One request and how its answer is read, and the pieces of which the descriptions of all are made."""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar
from urllib.parse import quote

from pydantic import TypeAdapter

from stillhouse.answers import Listed
from stillhouse.events import Progress

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
EVENTS: Final = "text/event-stream"
CSV: Final = "text/csv"
PARQUET: Final = "application/vnd.apache.parquet"
ARROW: Final = "application/vnd.apache.arrow.stream"

Content = bytes | Path
Params = Mapping[str, str | int]
Result = TypeVar("Result")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Answer:
    """Of 2xx. ``headers`` by lower-case name."""

    content: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """One request.

    Attributes:
        content: Sent as it is; a file is read anew for each attempt.
        creates: Sent with an idempotency key, so that a repeated attempt creates nothing twice.
        progress: Where it is set, the answer is asked for as a stream of events.
        works: The answer comes when work of unknown length is done.
        also_reads: A status beside 2xx whose body is an answer and no error.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    read: Callable[[Answer], Result]
    params: Params = field(default_factory=dict)
    content: Content | None = None
    media_type: str | None = None
    accept: str = JSON
    creates: bool = False
    progress: Progress | None = None
    works: bool = False
    also_reads: int | None = None


def get(path: str, kind: type[Result], params: Params | None = None) -> Call[Result]:
    return Call("GET", path, reader(kind), params or {})


def get_listed(path: str, kind: type[Listed[Item]], params: Params | None = None) -> Call[tuple[Item, ...]]:
    """What is under ``data`` alone."""
    read = reader(kind)
    return Call("GET", path, lambda answer: read(answer).data, params or {})


def delete(path: str) -> Call[None]:
    return Call("DELETE", path, lambda _: None)


def reader(kind: type[Result]) -> Callable[[Answer], Result]:
    """Reads a JSON body as a type of ``stillhouse.answers``."""

    def read(answer: Answer) -> Result:
        return _adapter(kind).validate_json(answer.content)  # type: ignore[arg-type, no-any-return]

    return read


@functools.cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def page_of(limit: int, cursor: str | None) -> dict[str, str | int]:
    return given(limit=limit, cursor=cursor)


def given(**params: str | int | None) -> dict[str, str | int]:
    """Those that are not None."""
    return {name: value for name, value in params.items() if value is not None}


def quoted(name: str) -> str:
    """A name as one segment of a path."""
    return quote(name, safe="")


def json_of(value: Any) -> bytes:  # noqa: ANN401  # JSON
    return json.dumps(value, allow_nan=False).encode()
