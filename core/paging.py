"""Pages over sorted items whose cursors survive insertions and removals between two requests."""

import base64
import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar

from core.errors import RequestError

DEFAULT_LIMIT = 20
MAX_LIMIT = 100
_CURSOR_LIMIT = 2048

ItemT = TypeVar("ItemT")
PageKey = str | tuple[float | str, ...]
_Position = tuple[float | str, ...]


@dataclass(frozen=True, slots=True)
class Page(Generic[ItemT]):
    """``next_cursor`` is opaque, and None on the last page."""

    data: list[ItemT]
    next_cursor: str | None

    @property
    def has_more(self) -> bool:
        return self.next_cursor is not None


def paginate(
    items_sorted: Sequence[ItemT],
    key: Callable[[ItemT], PageKey],
    limit: int = DEFAULT_LIMIT,
    cursor: str | None = None,
) -> Page[ItemT]:
    """Cuts out the items that follow the cursor.

    A cursor is the key of the last item shown, not a count, so whatever lives through a walk over all pages
    is shown once. For descending numbers negate them: ``key=lambda run: (-run.created_at, run.run_id)``.

    Args:
        items_sorted: Ascending by ``key``.
        key: Unique among the items, of one shape throughout, its numbers finite.
        limit: 1 … 100.
        cursor: A ``next_cursor`` of the same listing, or None for the first page.

    Raises:
        RequestError: ``limit`` is out of bounds or the cursor was not made here.

    Examples:
        >>> first = paginate(["ash", "elm", "oak"], key=str, limit=2)
        >>> first.data, paginate(["ash", "fir", "oak"], key=str, limit=2, cursor=first.next_cursor).data
        (['ash', 'elm'], ['fir', 'oak'])
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise RequestError(f"limit must be 1 to {MAX_LIMIT}, got {limit}", field="limit", value=limit)
    start = 0 if cursor is None else _position_after(items_sorted, key, _decode(cursor))
    data = list(items_sorted[start : start + limit])
    more = start + limit < len(items_sorted)
    return Page(data, cursor_of(_position(key(data[-1]))) if more else None)


def _position(key: PageKey) -> _Position:
    return (key,) if isinstance(key, str) else key


def _position_after(items: Sequence[ItemT], key: Callable[[ItemT], PageKey], last_shown: _Position) -> int:
    if items and _shape(last_shown) != _shape(_position(key(items[0]))):
        _refuse()
    return bisect_right(items, last_shown, key=lambda item: _position(key(item)))


def _shape(position: _Position) -> list[bool]:
    return [isinstance(part, str) for part in position]


def cursor_of(position: tuple[float | str, ...]) -> str:
    """The cursor that says: all up to this one was shown."""
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


def position_of(cursor: str, parts: int) -> tuple[float | str, ...]:
    """What ``cursor_of`` was given, of so many parts; raises RequestError for anything else."""
    position = _decode(cursor)
    if len(position) != parts:
        _refuse()
    return position


def _decode(cursor: str) -> _Position:
    if len(cursor) > _CURSOR_LIMIT:
        _refuse()
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        parts = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True), parse_constant=_refuse)
    except (ValueError, RecursionError):
        _refuse()
    if not isinstance(parts, list) or not all(type(part) in (str, int, float) for part in parts):
        _refuse()
    return tuple(parts)


def _refuse(*_constant: str) -> NoReturn:
    raise RequestError("cursor must be a next_cursor of this listing, unchanged", field="cursor")
