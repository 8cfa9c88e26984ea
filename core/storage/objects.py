"""What the store and its backends say to one another."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

ATTEMPTS = 20  # at what only a race with another writer can make fail

Guard = Callable[[], AbstractContextManager[None]]  # translates the failures of one step


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """``modified_at`` is UTC; ``etag`` is another one after the content was replaced."""

    name: str
    size_bytes: int
    modified_at: datetime
    etag: str


class Upload(Protocol):
    """Content on its way: visible after ``commit``; ``discard`` is always called, and undoes what is not."""

    def write(self, chunk: bytes | memoryview) -> int: ...
    def commit(self) -> None: ...
    def discard(self) -> None: ...


class Writer:
    """Takes the content of one object, chunk by chunk; not thread-safe."""

    def __init__(self, upload: Upload, guard: Guard) -> None:
        self._upload = upload
        self._guard = guard

    def write(self, chunk: bytes | memoryview) -> int:
        with self._guard():
            return self._upload.write(chunk)
