"""Which trained runs are alive: the rules of a registry with a time to live, without its bundles.

Nothing here reads a clock, a disk or a network; the owner deletes what the returned ids name. For one thread.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

from core.errors import StorageError
from core.paging import DEFAULT_LIMIT, Page, paginate

Kind = Literal["train", "distill"]
_KINDS: Mapping[str, Kind] = {"train": "train", "distill": "distill"}


@dataclass(frozen=True, slots=True)
class RunEntry:
    """What is known of one run. Times are Unix seconds; ``schema`` and ``lineage`` hold JSON values only."""

    run_id: str
    kind: Kind
    task: str
    training_mode: str
    metric_name: str
    metric_value: float
    size_bytes: int
    created_at: float
    expires_at: float
    last_used_at: float | None
    schema: Mapping[str, object]
    lineage: Mapping[str, object]

    def to_json(self) -> str:
        """A metric that is not finite is kept, as Python's ``NaN`` or ``Infinity``: only we read it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps(values | {"schema": dict(self.schema), "lineage": dict(self.lineage)})

    @classmethod
    def from_json(cls, text: str) -> "RunEntry":
        """Reads what ``to_json`` wrote; fields that a later version added are ignored.

        Raises:
            StorageError: The text is damaged, or a field is absent or of another type.
        """
        stored = _StoredFields(text)
        used = stored.values.get("last_used_at")
        return cls(
            run_id=stored.text("run_id"),
            kind=stored.kind(),
            task=stored.text("task"),
            training_mode=stored.text("training_mode"),
            metric_name=stored.text("metric_name"),
            metric_value=stored.number("metric_value"),
            size_bytes=stored.size("size_bytes"),
            created_at=stored.time("created_at"),
            expires_at=stored.time("expires_at"),
            last_used_at=None if used is None else stored.time("last_used_at"),
            schema=stored.mapping("schema"),
            lineage=stored.mapping("lineage"),
        )


class _StoredFields:
    def __init__(self, text: str) -> None:
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise StorageError("a stored run entry must be JSON") from error
        if not isinstance(values, dict):
            raise StorageError("a stored run entry must be a JSON object")
        self.values: dict[str, object] = values

    def text(self, name: str) -> str:
        value = self.values.get(name)
        if not isinstance(value, str):
            raise self._wrong(name, "text")
        return value

    def kind(self) -> Kind:
        kind = _KINDS.get(self.text("kind"))
        if kind is None:
            raise self._wrong("kind", " or ".join(_KINDS))
        return kind

    def number(self, name: str) -> float:
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, "a number")
        return value

    def time(self, name: str) -> float:
        value = self.number(name)
        if not math.isfinite(value):  # an expires_at of NaN would never be reached
            raise self._wrong(name, "a finite number of seconds")
        return value

    def size(self, name: str) -> int:
        value = self.number(name)
        if not isinstance(value, int) or value < 0:
            raise self._wrong(name, "a count of bytes")
        return value

    def mapping(self, name: str) -> dict[str, object]:
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self._wrong(name, "a JSON object")
        return value

    @staticmethod
    def _wrong(name: str, expected: str) -> StorageError:
        return StorageError(f"{name} of a stored run entry must be {expected}", field=name)


class RegistryIndex:
    """Live runs, at most ``max_items`` and ``max_bytes`` of them, each for ``ttl_s`` since its last use.

    An entry is gone at ``expires_at`` exactly, whether or not ``expire`` was called. Every id that leaves by
    itself is returned once, by the ``add`` or ``restore`` that evicted it or by the ``expire`` that noticed.

    Args:
        ttl_s: Time to live in seconds, > 0.
        max_items: At least 1.
        max_bytes: Budget for the sum of ``size_bytes``; a single larger entry is kept, alone.
        clock: Unix seconds.
    """

    def __init__(self, *, ttl_s: float, max_items: int, max_bytes: int, clock: Callable[[], float]) -> None:
        if not (0 < ttl_s < math.inf and max_items >= 1 and max_bytes >= 1):
            raise ValueError("ttl_s, max_items and max_bytes must be positive and finite")
        self._ttl_s = ttl_s
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: dict[str, RunEntry] = {}  # with the expired ones that expire() has yet to report

    def add(self, entry: RunEntry) -> list[str]:
        """Never refuses. An entry of the same id is replaced and not reported.

        Returns:
            Ids evicted to make room, in order: the next to expire first, of equal ones the oldest.
        """
        self._entries[entry.run_id] = replace(entry, expires_at=self._clock() + self._ttl_s)
        return self._evict(keep=entry.run_id)

    def restore(self, entries: Iterable[RunEntry]) -> list[str]:
        """Takes entries over from an index that is gone; their ``expires_at`` stays.

        Returns:
            Ids that are not held and whose bundles can be deleted: expired before, or over the limits.
        """
        self._entries.update((entry.run_id, entry) for entry in entries)
        return self.expire() + self._evict(keep=None)

    def peek(self, run_id: str) -> RunEntry | None:
        """Leaves the remaining lifetime as it is; None when expired or unknown."""
        entry = self._entries.get(run_id)
        return entry if entry is not None and entry.expires_at > self._clock() else None

    def use(self, run_id: str) -> RunEntry | None:
        """Restarts the time to live and returns the entry with its new ``expires_at``."""
        entry = self.peek(run_id)
        if entry is None:
            return None
        now = self._clock()
        used = replace(entry, expires_at=now + self._ttl_s, last_used_at=now)
        self._entries[run_id] = used
        return used

    def remove(self, run_id: str) -> bool:
        """False when expired or unknown; an expired id is still reported by ``expire``."""
        return self.peek(run_id) is not None and self._entries.pop(run_id, None) is not None

    def expire(self) -> list[str]:
        """Drops the expired and returns their ids, each id once."""
        now = self._clock()
        gone = [run_id for run_id, entry in self._entries.items() if entry.expires_at <= now]
        for run_id in gone:
            del self._entries[run_id]
        return gone

    def page(self, limit: int = DEFAULT_LIMIT, cursor: str | None = None) -> Page[RunEntry]:
        """Live entries, newest first.

        Raises:
            RequestError: ``limit`` is not 1 … 100, or the cursor was not made by this listing.
        """
        return paginate(sorted(self._live(), key=_newest_first), _newest_first, limit, cursor)

    @property
    def total_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self._live())

    def __len__(self) -> int:
        return len(self._live())

    def _live(self) -> list[RunEntry]:
        now = self._clock()
        return [entry for entry in self._entries.values() if entry.expires_at > now]

    def _evict(self, keep: str | None) -> list[str]:
        live = sorted(self._live(), key=lambda entry: (entry.run_id == keep, *_first_to_go(entry)))
        count, total_bytes = len(live), sum(entry.size_bytes for entry in live)
        evicted = []
        for entry in live[:-1]:  # the last one stays, however large
            if count <= self._max_items and total_bytes <= self._max_bytes:
                break
            del self._entries[entry.run_id]
            evicted.append(entry.run_id)
            count, total_bytes = count - 1, total_bytes - entry.size_bytes
        return evicted


def _first_to_go(entry: RunEntry) -> tuple[float, float, str]:
    return entry.expires_at, entry.created_at, entry.run_id


def _newest_first(entry: RunEntry) -> tuple[float, str]:
    return -entry.created_at, entry.run_id
