"""Dates: text formats, seconds since 1970 and the calendar parts that become features.

A moment is an int64 count of whole UTC seconds; ``NULL`` stands for none. Times without a zone are UTC.
"""

import re
from collections.abc import Callable, Sequence
from datetime import date, datetime
from typing import Final

import numpy as np

NULL: Final = int(np.iinfo(np.int64).min)
FIRST_SECOND: Final = -62_135_596_800  # 0001-01-01, where datetime begins
LAST_SECOND: Final = 253_402_300_799  # 9999-12-31 23:59:59
EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()
PARTS: Final = ("year", "month", "day", "weekday", "day_of_year", "hour")
ISO: Final = "iso"
UNIX: Final = "unix"

_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)
_DIRECTIVES = {
    "%Y": r"(?P<year>\d{4})",
    "%y": r"(?P<short_year>\d\d)",
    "%m": r"(?P<month>\d\d?)",
    "%d": r"(?P<day>\d\d?)",
    "%b": r"(?P<name>[a-z]{3,9})\.?",
}
_TIME = (
    r"(?:(?:[ ,]+|t)(?P<hour>\d\d?):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.\d+)?)?"
    r"(?: ?(?P<half>[ap]m))?(?: ?(?:utc|gmt|z|(?P<sign>[+-])(?P<zone_hour>\d\d):?(?P<zone_minute>\d\d)))?)?"
)
_EXAMPLES = {"iso": "%Y-%m-%d"}
_TEXT_FORMATS = (
    ISO,
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d.%m.%Y",
    "%Y/%m/%d",
    "%d-%m-%Y",
    "%m-%d-%Y",
    "%Y-%m-%d",  # the lenient cousin of ISO: 2024-1-5, 2024-01-05 9:30 PM
    "%Y-%m",
    "%b %d, %Y",
    "%d %b %Y",
    "%d-%b-%Y",
    "%d/%m/%y",
    "%m/%d/%y",
)
FORMATS: Final = frozenset((*_TEXT_FORMATS, UNIX))


def _pattern(date_format: str) -> re.Pattern[str]:
    escaped = date_format.replace(".", r"\.")
    dates = re.sub("%[a-zA-Z]", lambda found: _DIRECTIVES[found.group()], escaped)
    return re.compile(dates + _TIME, re.ASCII | re.IGNORECASE)


_PATTERNS = {text: _pattern(text) for text in _TEXT_FORMATS if text != ISO}


def seconds_of(moment: date) -> int:
    """Whole seconds since 1970 UTC of a date (its midnight) or a datetime."""
    seconds = (moment.toordinal() - EPOCH_ORDINAL) * 86_400
    if not isinstance(moment, datetime):
        return seconds
    seconds += moment.hour * 3600 + moment.minute * 60 + moment.second
    offset = moment.utcoffset()
    return seconds if offset is None else seconds - (offset.days * 86_400 + offset.seconds)


def text_parser(date_format: str) -> Callable[[str], int]:
    """A function from text to seconds that gives ``NULL`` for what is not a date in this format.

    Not ``strptime``: it takes four times as long and reads month names in the locale of the process.
    """
    return _parse_iso if date_format == ISO else _Parser(date_format)


def _parse_iso(text: str) -> int:
    try:
        return seconds_of(datetime.fromisoformat(text.strip()))
    except ValueError:
        return NULL


class _Parser:
    def __init__(self, date_format: str) -> None:
        self._match = _PATTERNS[date_format].fullmatch

    def __call__(self, text: str) -> int:
        found = self._match(text.strip())
        if found is None:
            return NULL
        try:
            return _read(found.groupdict())
        except ValueError:
            return NULL


def _read(parts: dict[str, str | None]) -> int:
    """Seconds from the groups of a match; raises ValueError for a day or hour that does not exist."""
    day = date(_year(parts), _month(parts), int(parts.get("day") or 1))
    minute, second = int(parts["minute"] or 0), int(parts["second"] or 0)
    if minute > 59 or second > 59:
        raise ValueError("minutes and seconds end at 59")
    zone = int(parts["zone_hour"] or 0) * 3600 + int(parts["zone_minute"] or 0) * 60
    local = seconds_of(day) + _hour(parts) * 3600 + minute * 60 + second
    return local + zone if parts["sign"] == "-" else local - zone


def _year(parts: dict[str, str | None]) -> int:
    if short := parts.get("short_year"):
        return int(short) + (1900 if int(short) >= 69 else 2000)  # the pivot of POSIX strptime
    return int(parts["year"] or 0)


def _month(parts: dict[str, str | None]) -> int:
    name = parts.get("name")
    if name is None:
        return int(parts["month"] or 0)
    return 1 + [month.startswith(name.lower()) for month in _MONTHS].index(True)


def _hour(parts: dict[str, str | None]) -> int:
    hour, half = int(parts["hour"] or 0), parts["half"]
    if hour > (23 if half is None else 12) or (half is not None and hour == 0):
        raise ValueError("there is no such hour")
    return hour if half is None else hour % 12 + (12 if half.lower() == "pm" else 0)


def example(date_format: str) -> str:
    """31 January 2024 in this format."""
    day = date(2024, 1, 31)
    return (
        str(seconds_of(day)) if date_format == UNIX else day.strftime(_EXAMPLES.get(date_format, date_format))
    )


def choose_format(texts: Sequence[str], counts: np.ndarray) -> str:
    """The format that reads the most values, the earlier candidate on a tie.

    Args:
        texts: Distinct values.
        counts: How often each occurs.
    """
    best, most = ISO, -1
    for name in _TEXT_FORMATS:
        parse = text_parser(name)
        read = np.fromiter((parse(text) != NULL for text in texts), bool, len(texts))
        if (total := int(counts[read].sum())) > most:
            best, most = name, total
        if read.all():
            break
    return best


def calendar_parts(seconds_N: np.ndarray) -> np.ndarray:
    """Year, month, day, weekday (Monday is 0), day of year and hour, in the order of ``PARTS``.

    Args:
        seconds_N: int64; ``NULL`` and moments outside the years 1 to 9999 have no parts.

    Returns:
        float64 (6, N), NaN where there are no parts.
    """
    valid = (seconds_N >= FIRST_SECOND) & (seconds_N <= LAST_SECOND)
    whole = bool(valid.all())
    seconds = seconds_N if whole else np.where(valid, seconds_N, 0)
    days = seconds // 86_400
    stamps = days.view("datetime64[D]")
    months, years = stamps.astype("datetime64[M]"), stamps.astype("datetime64[Y]")
    parts = np.empty((len(PARTS), len(seconds)))
    parts[0] = years.view(np.int64) + 1970
    parts[1] = months.view(np.int64) % 12 + 1
    parts[2] = days - months.astype("datetime64[D]").view(np.int64) + 1
    parts[3] = (days + 3) % 7
    parts[4] = days - years.astype("datetime64[D]").view(np.int64) + 1
    parts[5] = (seconds - days * 86_400) // 3600
    if not whole:
        parts[:, ~valid] = np.nan
    return parts
