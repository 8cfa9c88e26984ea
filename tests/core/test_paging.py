import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import RequestError
from core.paging import Page, paginate


def walk(items, key, limit):
    shown, cursor = [], None
    while True:
        page = paginate(items, key, limit, cursor)
        shown += page.data
        if not page.has_more:
            return shown
        cursor = page.next_cursor


def encoded(value) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@given(st.sets(st.text(max_size=8)), st.integers(1, 100))
def test_pages_joined_are_the_listing(names, limit):
    assert walk(sorted(names), str, limit) == sorted(names)


@given(
    st.sets(st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=3))),
    st.integers(1, 5),
)
def test_keys_of_numbers_and_text_survive_the_cursor_exactly(keys, limit):
    assert walk(sorted(keys), lambda key: key, limit) == sorted(keys)


@given(st.sets(st.integers(0, 50)), st.sets(st.integers(0, 50)), st.integers(1, 7))
def test_items_that_stay_are_shown_once_while_others_come_and_go(before, after, limit):
    def key(number):
        return (number, "")

    first = paginate(sorted(before), key, limit)
    if not first.has_more:
        return
    shown = [*first.data, *walk_from(sorted(after), key, limit, first.next_cursor)]
    assert len(shown) == len(set(shown))
    assert before & after <= set(shown)


def walk_from(items, key, limit, cursor):
    shown = []
    while cursor is not None:
        page = paginate(items, key, limit, cursor)
        shown += page.data
        cursor = page.next_cursor
    return shown


def test_last_page_has_no_cursor():
    page = paginate(["a", "b"], str, 2)
    assert page == Page(["a", "b"], None)
    assert not page.has_more


def test_empty_listing_is_one_empty_page():
    assert paginate([], str, 20) == Page([], None)


def test_limit_is_twenty_when_not_asked():
    assert len(paginate([f"{number:03}" for number in range(50)], str).data) == 20


@pytest.mark.parametrize("limit", [0, -1, 101, 10**30])
def test_limit_out_of_bounds_is_refused(limit):
    with pytest.raises(RequestError, match="limit must be 1 to 100"):
        paginate(["a"], str, limit)


BAD_CURSORS = [
    "",
    "*",
    "a b",
    "é",
    "\0",
    "abcde",
    "AAAA",
    encoded("a"),
    encoded({"a": 1}),
    encoded([None]),
    encoded([True]),
    encoded([["a"]]),
    encoded([float("nan")]),
    encoded([1]),
    encoded(["a", "b"]),
    encoded([]),
    encoded(["a"]) + "*",
    encoded(["a"]) + "****",
    base64.urlsafe_b64encode(b"[" * 700).decode(),
    "A" * 100_000,
]


@pytest.mark.parametrize("cursor", BAD_CURSORS, ids=range(len(BAD_CURSORS)))
def test_cursor_made_elsewhere_is_refused(cursor):
    with pytest.raises(RequestError, match="cursor must be a next_cursor"):
        paginate(["a", "b", "c"], str, 2, cursor)


def test_every_cursor_of_a_longest_name_is_accepted():
    names = ["n" * 512, "o" * 512]
    assert walk(names, str, 1) == names
