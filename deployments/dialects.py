"""How an error is written down: one catalogue, several dialects (contract, section 2).

A surface of its own dialect is named in ``_DIALECTS``, nothing else.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from starlette.types import Message

from core.errors import (
    AuthenticationError,
    DatasetError,
    MethodNotAllowedError,
    RunNotFoundError,
    SchemaError,
    StillhouseError,
)
from core.redaction import redact, redact_text

PROBLEM: Final = "application/problem+json"
TEACHER_NOT_FOUND: Final = "Teacher run not found or expired."

# Statuses that the handler dialect knows; every other failure of a handler is 400 (seed 000).
_HANDLER_STATUSES: Final = frozenset({400, 401, 403, 405, 413, 429, 503})
_LARGEST_SHOWN: Final = 10**18
_VIOLATIONS_SHOWN: Final = 20  # a million malformed rows are one mistake


@dataclass(frozen=True, slots=True)
class Asked:
    """What the answer to a failed request depends on beside the error."""

    path: str
    accept: str | None = None
    request_id: str = ""
    trace_id: str = ""


@dataclass(frozen=True, slots=True)
class Rendered:
    """An error as it is sent."""

    status: int
    body: dict[str, object]
    headers: dict[str, str]
    media_type: str = "application/json"

    def messages(self, **more: str) -> Iterator[Message]:
        """The whole answer as ASGI sends it, with ``more`` headers, whose names have ``_`` for ``-``."""
        body = json.dumps(self.body).encode()
        headers = {
            **self.headers,
            **{name.replace("_", "-"): value for name, value in more.items()},
            "content-type": self.media_type,
            "content-length": str(len(body)),
        }
        raw = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        yield {"type": "http.response.start", "status": self.status, "headers": raw}
        yield {"type": "http.response.body", "body": body}


def render(error: StillhouseError, asked: Asked) -> Rendered:
    """An error in the dialect of its route, or as RFC 9457 where Accept asks for that."""
    status, body = _dialect_of(asked.path)(error, asked)
    if asked.accept is not None and PROBLEM in asked.accept:
        return Rendered(status, problem(error, status, asked), _headers(error), PROBLEM)
    return Rendered(status, body, _headers(error))


def handler_answer(error: StillhouseError, _: Asked | None = None) -> tuple[int, dict[str, object]]:
    """``(status, body)`` of train and distil: never 500, 404 for a teacher run alone (seed 000)."""
    if isinstance(error, RunNotFoundError):
        return 404, {"status": "error", "error": TEACHER_NOT_FOUND}
    from_data = isinstance(error, DatasetError)  # 413 is for bodies, and the edge's
    status = error.status if error.status in _HANDLER_STATUSES and not from_data else 400
    return status, {"status": "error", "error": redact_text(error.message)}


def detail_answer(error: StillhouseError, _: Asked) -> tuple[int, dict[str, object]]:
    """``{"detail": …}``; schema errors are an array (seeds 002 and 003)."""
    body: dict[str, object] = {"detail": violations(error) or redact_text(error.message)}
    if error.status == 429:
        body["retry_after"] = _whole_seconds(error)
    return error.status, body


def platform_answer(error: StillhouseError, asked: Asked) -> tuple[int, dict[str, object]]:
    """``{"error": {…}}`` (seed 001)."""
    return error.status, {"error": platform_error(error, asked)}


def platform_error(error: StillhouseError, asked: Asked) -> dict[str, object]:
    """The error object of seed 001, with the code that it lacks; also what stored failures hold."""
    return {
        "code": error.code,
        "type": error.error_type.value,
        "severity": error.severity.value,
        "message": redact_text(error.user_message),
        "suggested_action": error.suggested_action,
        "retryable": error.retryable,
        "retry_mode": error.retry_mode.value,
        "retry_after": _whole_seconds(error),
        "param": error.details.get("field"),
        "errors": field_errors(error),
        "context": _context(error.details),
        "trace_id": asked.trace_id,
        "request_id": asked.request_id,
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "doc_url": documentation_of(error.code),
    }


_DIALECTS: Final[Mapping[str, Callable[[StillhouseError, Asked], tuple[int, dict[str, object]]]]] = {
    "/api/v1/train": handler_answer,
    "/api/v1/distill": handler_answer,
    "/api/v1/training-jobs": platform_answer,
    "/ws/training-jobs": platform_answer,
}
"""By path and what lies below it; the handlers have nothing below."""


def _dialect_of(path: str) -> Callable[[StillhouseError, Asked], tuple[int, dict[str, object]]]:
    path = path.rstrip("/")
    surface = next((s for s in _DIALECTS if path == s or path.startswith(f"{s}/")), "")
    dialect = _DIALECTS.get(surface, detail_answer)
    return detail_answer if dialect is handler_answer and path != surface else dialect


def documentation_of(code: str) -> str:
    return f"/docs/errors/{code}"


def violations(error: StillhouseError) -> list[dict[str, object]]:
    """The first schema errors as ``[{type, loc, msg, input}]``; only short scalars are repeated as input."""
    found = error.details.get("violations") if isinstance(error, SchemaError) else None
    return [
        {
            "type": item["type"],
            "loc": list(item["loc"]),
            "msg": redact_text(item["msg"]),
            "input": _scalar(item.get("input")),
        }
        for item in (found[:_VIOLATIONS_SHOWN] if isinstance(found, list) else [])
    ]


def field_errors(error: StillhouseError) -> list[dict[str, object]]:
    """All violations as ``[{param, code, message}]`` (jobs.md, section 6)."""
    if isinstance(error, SchemaError):
        return [
            {"param": ".".join(map(str, found["loc"])), "code": found["type"], "message": found["msg"]}  # type: ignore[call-overload]
            for found in violations(error)
        ]
    found = error.details.get("violations")
    listed = found[:_VIOLATIONS_SHOWN] if isinstance(found, list) else []
    return [{**item, "message": redact_text(item["message"])} for item in listed]


def _scalar(value: object) -> object:
    if isinstance(value, int | float):
        return value if abs(value) < _LARGEST_SHOWN else None  # neither is NaN, which is not JSON
    return redact_text(value) if isinstance(value, str) and len(value) < 100 else None


def _context(details: Mapping[str, object]) -> object:
    """Details as JSON: numbers that are none, and what is long, are left out."""
    return redact(
        {
            name: value
            for name, value in details.items()
            if name != "violations" and (not isinstance(value, float) or math.isfinite(value))
        }
    )


def _whole_seconds(error: StillhouseError) -> int | None:
    seconds = error.retry_after_s
    return None if seconds is None else max(1, math.ceil(seconds))


def _headers(error: StillhouseError) -> dict[str, str]:
    headers = {"X-Error-Code": error.code, "X-Error-Type": error.error_type.value}
    seconds = _whole_seconds(error)
    if seconds is not None:
        headers["Retry-After"] = str(seconds)
    if isinstance(error, AuthenticationError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, MethodNotAllowedError):
        headers["Allow"] = str(error.details.get("allow", ""))
    return headers


def problem(error: StillhouseError, status: int, asked: Asked) -> dict[str, object]:
    """RFC 9457."""
    found, wrong = violations(error), field_errors(error)
    return {
        "type": documentation_of(error.code),
        "title": error.entry.message_for(error.details),
        "status": status,
        "detail": redact_text(error.message),
        "code": error.code,
        "retryable": error.retryable,
        "suggested_action": error.suggested_action,
        "trace_id": asked.trace_id,
        **({"violations": found} if found else {"errors": wrong} if wrong else {}),
        **({"retry_after": _whole_seconds(error)} if status == 429 else {}),
    }
