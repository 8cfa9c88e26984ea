"""What must not leave the service, taken out of messages, logs and tracked events."""

import math
import re
from collections.abc import Mapping
from typing import Final

from core.errors import without_paths

REDACTED: Final = "[redacted]"
_NAMES: Final = (
    r"(?:pass(?:word|wd|phrase)|pwd|secret|token|api[-_ ]?key|access[-_ ]?key|private[-_ ]?key"
    r"|authorization|credential|cookie|dsn|signature)"
)
_SCHEME: Final = r"(?:(?:bearer|basic|digest|token)\s+)"
_SECRET_KEY: Final = re.compile(_NAMES, re.IGNORECASE)
_ROWS_KEY: Final = re.compile(
    r"(?:rows?|records?|data|body|payload|values?|inputs?|violations|features)", re.IGNORECASE
)
_SECRET_TEXTS: Final = (
    (  # name = value, also within JSON, and JSON within JSON; not "Authorization: Bearer <token>"
        re.compile(
            rf"""({_NAMES}\w{{0,40}}\\*["']?\s*[=:]\s*\\*)(?!{_SCHEME}<)"""
            rf"""(?:"[^"\n]*"|'[^'\n]*'|["']?{_SCHEME}?[^\s"',;&<\\]+)""",
            re.IGNORECASE,
        ),
        r"\1" + REDACTED,
    ),
    (re.compile(r"(cookie: )[^\n]+", re.IGNORECASE), r"\1" + REDACTED),
    (  # what looks like a token, not the next word of a sentence
        re.compile(
            r"\b((?i:bearer|basic))(\s+)(?:(?=\S[\w.~+/=-]*[A-Z0-9_~+/=])[\w.~+/=-]{6,}|[\w.~+/=-]{20,})"
        ),
        r"\1\2" + REDACTED,
    ),
    (re.compile(r"(\w://)[^/\s]+@"), r"\1" + REDACTED + "@"),
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), REDACTED),
    (re.compile(r"\beyJ[\w-]{1,4000}\.[\w-]+\.[\w-]*"), REDACTED),
)
_DEEPEST: Final = 32


def redact_text(text: str) -> str:
    """A text without secrets and server paths; addresses of the API stay.

    >>> redact_text("S3 at https://me:hunter2@store refused key /srv/data/a.csv, password=hunter2")
    'S3 at https://[redacted]@store refused key <path>, password=[redacted]'
    """
    for pattern, replacement in _SECRET_TEXTS:
        text = pattern.sub(replacement, text)
    return without_paths(text)


def redact(value: object, depth: int = 0) -> object:
    """JSON values without secrets, server paths and rows of data, at any depth and in any letter case.

    Numbers that are none, which JSON does not know, become null.

    Args:
        value: Mappings and sequences are copied; what is neither them nor a plain value becomes its text.

    >>> redact({"Password": "x", "nested": [{"API_KEY": "y"}], "rows": [[1, 2]], "epochs": 3})
    {'Password': '[redacted]', 'nested': [{'API_KEY': '[redacted]'}], 'rows': '[redacted]', 'epochs': 3}
    """
    if value is None or isinstance(value, bool | int | float):
        return None if isinstance(value, float) and not math.isfinite(value) else value
    if depth > _DEEPEST:
        return REDACTED
    if isinstance(value, Mapping):
        return {
            redact_text(str(key)): REDACTED if _hides(str(key), item) else redact(item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(item, depth + 1) for item in value]
    return redact_text(value if isinstance(value, str) else repr(value))


def _hides(key: str, value: object) -> bool:
    """Whether a value must go whole: a secret; or rows, which are no mere number of them."""
    if _SECRET_KEY.search(key):
        return True
    return bool(_ROWS_KEY.fullmatch(key)) and isinstance(value, Mapping | list | tuple | str | bytes)
