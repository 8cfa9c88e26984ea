"""Requests and answers as an ASGI server exchanges them, and what is known to the service that gets them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from core.exchange import CSV, JSON
from deployments.routes.examples import EXAMPLE_CSV
from tests.deployments.local import DATASETS

RUN, MODEL, FILE = "fuzzed-run", "fuzzed-model", "trees.csv"
TOKEN, CANARY = "fuzz-t0ken-9431", "c4nary-of-a-r0w"
TABLE: Final = EXAMPLE_CSV.replace("blue", CANARY)


@dataclass(frozen=True, slots=True)
class Sent:
    """A request as an ASGI server hands it over.

    Attributes:
        path: Without percent-encoding.
    """

    method: str
    path: str
    query: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The first of that name, as the service reads it."""
        found = (value for key, value in self.headers if key == name.encode())
        return next((value.decode("latin-1") for value in found), None)

    def __str__(self) -> str:
        headers = [pair for pair in self.headers if pair[0] != b"authorization"]
        return f"{self.method} {self.path!r:.200}?{self.query!r:.200} {headers!r:.400} {self.body!r:.600}"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0]


def authorized(*more: tuple[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"authorization", f"Bearer {TOKEN}".encode()), *more)


def posted(path: str, body: bytes, media_type: str = JSON, query: bytes = b"") -> Sent:
    return Sent("POST", path, query, authorized((b"content-type", media_type.encode())), body)


def upload_of(table: bytes) -> Sent:
    return posted(DATASETS, table, CSV, f"name={FILE}".encode())
