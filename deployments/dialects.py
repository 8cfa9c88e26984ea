"""How an error is written down: one catalogue, several dialects (contract, section 2)."""

from dataclasses import dataclass
from typing import Final

from core.catalogue import CATALOGUE, Entry
from core.errors import DatasetError, MethodNotAllowedError, RunNotFoundError, SchemaError, StillhouseError

HANDLER_ROUTES: Final = frozenset({"/api/v1/train", "/api/v1/distill"})
TEACHER_NOT_FOUND: Final = "Teacher run not found or expired."

# Statuses that the handler dialect knows; every other failure of a handler is 400 (seed 000).
_HANDLER_STATUSES: Final = frozenset({400, 401, 405, 413, 429, 503})
_LARGEST_SHOWN: Final = 10**18
_VIOLATIONS_SHOWN: Final = 20  # a million malformed rows are one mistake


@dataclass(frozen=True, slots=True)
class Rendered:
    """An error as it is sent."""

    status: int
    body: dict[str, object]
    headers: dict[str, str]
    media_type: str = "application/json"


def render(error: StillhouseError, path: str, accept: str | None, request_id: str) -> Rendered:
    """An error in the dialect of its route."""
    entry = CATALOGUE[error.code]
    headers = _headers(entry)
    if isinstance(error, MethodNotAllowedError):
        headers["Allow"] = str(error.details.get("allow", ""))
    is_handler = path.rstrip("/") in HANDLER_ROUTES
    if accept is not None and "application/problem+json" in accept:
        status = handler_answer(error)[0] if is_handler else entry.status
        body = _problem(error, entry, status, request_id)
        return Rendered(status, body, headers, "application/problem+json")
    if is_handler:
        return Rendered(*handler_answer(error), headers)
    return Rendered(entry.status, {"detail": _violations(error) or error.message}, headers)


def handler_answer(error: StillhouseError) -> tuple[int, dict[str, object]]:
    """``(status, body)`` of train and distil: never 500, 404 for a teacher run alone (seed 000)."""
    entry = CATALOGUE[error.code]
    if isinstance(error, RunNotFoundError):
        return 404, {"status": "error", "error": TEACHER_NOT_FOUND}
    from_data = isinstance(error, DatasetError)  # 413 is for bodies, and the edge's
    status = entry.status if entry.status in _HANDLER_STATUSES and not from_data else 400
    return status, {"status": "error", "error": error.message}


def _violations(error: StillhouseError) -> list[dict[str, object]]:
    """The first schema errors as ``[{type, loc, msg, input}]``; only short scalars are repeated as input."""
    violations = error.details.get("violations") if isinstance(error, SchemaError) else None
    return [
        {
            "type": item["type"],
            "loc": list(item["loc"]),
            "msg": item["msg"],
            "input": _scalar(item.get("input")),
        }
        for item in (violations[:_VIOLATIONS_SHOWN] if isinstance(violations, list) else [])
    ]


def _scalar(value: object) -> object:
    if isinstance(value, int | float):
        return value if abs(value) < _LARGEST_SHOWN else None  # neither is NaN, which is not JSON
    return value if isinstance(value, str) and len(value) < 100 else None


def _headers(entry: Entry) -> dict[str, str]:
    headers = {"X-Error-Code": entry.code, "X-Error-Type": entry.type.value}
    if entry.retry_after_s is not None:
        headers["Retry-After"] = str(entry.retry_after_s)
    if entry.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def _problem(error: StillhouseError, entry: Entry, status: int, request_id: str) -> dict[str, object]:
    """RFC 9457."""
    violations = _violations(error)
    return {
        "type": f"/api/v1/errors#{entry.code}",
        "title": entry.message,
        "status": status,
        "detail": error.message,
        "code": entry.code,
        "retryable": entry.retryable,
        "suggested_action": entry.suggested_action,
        "trace_id": request_id,
        **({"violations": violations} if violations else {}),
    }
