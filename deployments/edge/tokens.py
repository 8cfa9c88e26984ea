"""The accepted bearer tokens and what each may do."""

import hmac
import logging
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path

from deployments.settings import Settings, environment_tokens

log = logging.getLogger(__name__)


class Scope(IntEnum):
    """What a token may do; each includes those before it."""

    READ = 1
    TRAIN = 2
    ADMIN = 3


class Tokens:
    """Tokens from a file, which is read again when it changes, and fixed ones.

    Raises:
        OSError: from the constructor, if the file cannot be read.
        ValueError: likewise, if it names an unknown scope.
    """

    def __init__(self, file: Path | None, fixed: Mapping[str, Scope]) -> None:
        self._file, self._fixed = file, fixed
        self._seen: tuple[int, int, int] | None = None
        self._from_file: Mapping[str, Scope] = {}
        self._warned_of = ""
        if file is not None:
            self._reload(file)

    @classmethod
    def configured(cls, settings: Settings) -> "Tokens | None":
        """None where the service runs open."""
        file = None if settings.tokens_file is None else Path(settings.tokens_file).expanduser()
        if file is None and not environment_tokens():
            return None
        return cls(file, parse_tokens(environment_tokens()))

    def scope_of(self, authorization: str | None) -> Scope | None:
        """What the sender may do; None for an unknown token.

        All tokens are compared, each in constant time, so that timing tells nothing.

        Args:
            authorization: The header as ASGI frameworks decode it, Latin-1; tokens are compared as UTF-8.
        """
        sent = sent_token(authorization)
        matches = [
            scope for token, scope in self._current().items() if hmac.compare_digest(sent, token.encode())
        ]
        return max(matches, default=None)

    def count(self) -> int:
        """How many are accepted now."""
        return len(self._current())

    def _current(self) -> Mapping[str, Scope]:
        if self._file is not None:
            try:
                self._reload(self._file)
                self._warned_of = ""
            except (OSError, ValueError) as error:
                if str(error) != self._warned_of:  # once, not at every request
                    log.warning("the file of tokens cannot be read; the last ones read stay valid")
                self._warned_of = str(error)
        return {**self._from_file, **self._fixed}

    def _reload(self, file: Path) -> None:
        stat = file.stat()
        seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if seen != self._seen:
            self._from_file = parse_tokens(file.read_text("utf-8").splitlines())
            self._seen = seen


def sent_token(authorization: str | None) -> bytes:
    """The token, however the header was spelt; empty where there is none."""
    scheme, _, given = (authorization or "").partition(" ")
    return given.strip(" \t").encode("latin-1") if scheme.lower() == "bearer" else b""


def parse_tokens(lines: list[str]) -> Mapping[str, Scope]:
    """Tokens from lines of ``token`` or ``token scope``; without a scope a token may do everything.

    Raises:
        ValueError: for an unknown scope, without repeating the line.

    >>> parse_tokens(["s3cret", "", "0ther  read"])
    {'s3cret': <Scope.ADMIN: 3>, '0ther': <Scope.READ: 1>}
    """
    tokens = {}
    for number, line in enumerate(lines, 1):
        token, *scope = line.split() or [""]
        names = [name.upper() for name in scope] or [Scope.ADMIN.name]
        if len(names) > 1 or names[0] not in Scope.__members__:
            raise ValueError(f"token {number} must be followed by nothing or one of read, train, admin")
        if token:
            tokens[token] = Scope[names[0]]
    return tokens
