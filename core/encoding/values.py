"""Single values: what JSON or a table may hold where a column of some kind is wanted.

A reader returns the value in the terms of the encoder, None for a null, and raises ``ValueError`` with what
must hold otherwise. Every way into the encoder ends here, so that lists and tables are read alike.
"""

import math
from collections.abc import Callable
from datetime import date, datetime

from core.encoding import calendar

_FLAGS: dict[object, float] = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}
_JSON_NAMES = {bool: "boolean", str: "text", list: "list", dict: "object", datetime: "date", date: "date"}


def read_number(value: object) -> float:
    """A finite number, or NaN for null, NaN and infinities. Text counts where Python reads it as a number."""
    if value is None:
        return math.nan
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            raise ValueError("a number of at most 1.8e308") from None
        except ValueError:
            raise ValueError("a number") from None
        return number if math.isfinite(number) else math.nan
    raise ValueError("a number")


def read_flag(value: object) -> float:
    """1 or 0 from true, false, 1, 0 and the same as text; NaN for null."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return math.nan
    if isinstance(value, (int, float)) and value in (0, 1):
        return float(value)
    if isinstance(value, str) and (flag := _FLAGS.get(value.lower())) is not None:
        return flag
    raise ValueError("true or false")


def category_text(value: object) -> str | None:
    """The text that stands for a category: 1 and 1.0 are ``1``, true is ``true``; None for null and NaN."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 2**63 else repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat(" ")
    if isinstance(value, date):
        return value.isoformat()
    raise ValueError("text, a number, true or false")


def moment_reader(date_format: str, *, strict: bool) -> Callable[[object], int]:
    """A reader of seconds since 1970 in this format; ``calendar.NULL`` for null.

    What is not such a date is refused where ``strict``; else it is null, if it is of the right type.
    """
    read = _read_unix if date_format == calendar.UNIX else _text_reader(date_format)
    return _refusing(read, calendar.example(date_format)) if strict else read


def _refusing(read: Callable[[object], int], example: str) -> Callable[[object], int]:
    def read_strictly(value: object) -> int:
        seconds = read(value)
        if seconds == calendar.NULL and not _is_null(value):
            raise ValueError(f"a date like {example}")
        return seconds

    return read_strictly


def _is_null(value: object) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _text_reader(date_format: str) -> Callable[[object], int]:
    parse = calendar.text_parser(date_format)

    def read_moment(value: object) -> int:
        if value is None:
            return calendar.NULL
        if isinstance(value, str):
            return parse(value)
        if isinstance(value, date):
            return calendar.seconds_of(value)
        if isinstance(value, float) and math.isnan(value):
            return calendar.NULL
        raise ValueError("a date as text")

    return read_moment


def _read_unix(value: object) -> int:
    if isinstance(value, date):
        return calendar.seconds_of(value)
    if isinstance(value, bool):
        raise ValueError("a date as Unix seconds")
    try:
        number = read_number(value)
    except ValueError:
        if isinstance(value, str):
            return calendar.NULL
        raise ValueError("a date as Unix seconds") from None
    return math.floor(number) if abs(number) <= calendar.LAST_SECOND else calendar.NULL


def type_name(value: object) -> str:
    """What a client would call the value's type; messages say no more about a value than this."""
    return _JSON_NAMES.get(type(value), "number" if isinstance(value, (int, float)) else type(value).__name__)
