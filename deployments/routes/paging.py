"""Pages as every list route answers them."""

from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Query

from core.paging import MAX_LIMIT, Page

Item = TypeVar("Item")
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]
Cursor = Annotated[str | None, Query(max_length=2048)]


def page_of(page: Page[Item], shown: Callable[[Item], dict[str, object]]) -> dict[str, object]:
    return {
        "data": [shown(item) for item in page.data],
        "has_more": page.has_more,
        "next_cursor": page.next_cursor,
    }
