"""The root of the error tree."""

import math
import re
from functools import cached_property
from typing import ClassVar, Final

from core.catalogue import CATALOGUE, MESSAGE_CHARS, Entry, ErrorType, RetryMode, Severity

_OWN_ADDRESS: Final = (
    r"/(?:(?:api/v\d+|ws)(?:/[\w.@+-]+)+|docs(?:/errors(?:/[A-Z_\d]+)?)?|health(?:/(?:live|ready))?)"
    r"/?(?![./\\]*[\w@+-])"
)
_SERVER_PATH: Final = re.compile(rf"(?<![\w.])(?!{_OWN_ADDRESS})(?:[A-Za-z]:)?(?:[/\\][\w.@+-]+){{2,}}[/\\]?")
_QUOTED_PATH: Final = re.compile(  # with blanks, which end one that stands without quotes
    rf"""(?<=["'])(?!{_OWN_ADDRESS})(?:[A-Za-z]:)?(?:[/\\]+[^"'\n/\\]+){{2,}}/?(?=\\*["'])"""
)


def without_paths(text: str) -> str:
    """A foreign message without the server's file paths.

    >>> without_paths("cannot open /srv/data/x.csv (denied)")
    'cannot open <path> (denied)'
    """
    return _SERVER_PATH.sub("<path>", _QUOTED_PATH.sub("<path>", text))


class StillhouseError(Exception):
    """Base of all errors that Stillhouse raises on purpose.

    Args:
        message: What must hold, what was given, what to do next. Free of secrets, server paths and rows. The
            catalogue's words, with the details in them, where it is left out.
        details: JSON values that name the particulars (``field``, ``value``, ``line`` …). ``retry_after``,
            in seconds, wins over the catalogue's; ``original``, an exception, becomes the cause instead.

    What the catalogue says is cached in the error, where a client may put what an answer told it instead.
    """

    code: ClassVar[str] = "SYSTEM_ERROR"

    def __init__(self, message: str | None = None, **details: object) -> None:
        original = details.pop("original", None)
        self.details = details
        self.message = self.entry.message_for(details) if message is None else message
        super().__init__(self.message)
        self.__cause__ = original if isinstance(original, BaseException) else None

    def __str__(self) -> str:
        return self.message

    @property
    def entry(self) -> Entry:
        return CATALOGUE.get(self.code) or CATALOGUE[StillhouseError.code]  # a later service has more codes

    @cached_property
    def error_type(self) -> ErrorType:
        return self.entry.type

    @cached_property
    def severity(self) -> Severity:
        return self.entry.severity

    @cached_property
    def status(self) -> int:
        """Of HTTP, in every dialect but seed 000's."""
        return self.entry.status

    @cached_property
    def retry_mode(self) -> RetryMode:
        return self.entry.retry

    @cached_property
    def retryable(self) -> bool:
        """Whether it can succeed although the request was right: not where the request must change."""
        acts = self.error_type in (ErrorType.TRANSIENT, ErrorType.SYSTEM_ERROR)
        return self.retry_mode is not RetryMode.NONE and acts

    @property
    def may_repeat(self) -> bool:
        """Whether the very same request may succeed later: retryable without a change."""
        return self.retryable and self.retry_mode is not RetryMode.AFTER_CHANGE

    @cached_property
    def retry_after_s(self) -> float | None:
        """Seconds after which it is worth trying again; None where waiting does not help."""
        own = self.details.get("retry_after")
        return own if isinstance(own, int | float) else self.entry.retry_after_s

    @property
    def user_message(self) -> str:
        """Under 100 characters; the particulars of system errors stay in the log."""
        speaks = self.error_type is not ErrorType.SYSTEM_ERROR and len(self.message) < MESSAGE_CHARS
        return self.message if speaks else self.entry.message_for(self.details)

    @cached_property
    def suggested_action(self) -> str:
        wait_s = self.retry_after_s
        return self.entry.action_for(
            {**self.details, "retry_after": None if wait_s is None else math.ceil(wait_s)}
        )


def class_of(code: str) -> type[StillhouseError]:
    """The class that raises a code; the root for an unknown one.

    >>> class_of("RUN_NOT_FOUND").__name__
    'RunNotFoundError'
    """
    waiting = [StillhouseError]
    for error_class in waiting:
        if error_class is not StillhouseError and error_class.code == code:
            return error_class
        waiting.extend(error_class.__subclasses__())
    return StillhouseError
