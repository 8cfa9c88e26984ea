"""Failures as a client meets them: the very classes of ``core.errors``, with what the answer said."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from core.catalogue import CATALOGUE, ErrorType
from core.errors import StillhouseError, class_of
from stillhouse.job_answers import Job, JobFailure

UNAVAILABLE: Final = "SERVICE_UNAVAILABLE"  # no answer, or one of what stands before a service
_DOWN: Final = (429, 502, 503, 504)
_UNKNOWN_ACTION: Final = "Read the message; GET /api/v1/errors lists the codes of this service."


@dataclass(frozen=True, slots=True)
class Failure:
    """What is known of one error. Each field is also an attribute of the error itself.

    Attributes:
        type: Who has to act: ``transient``, ``permanent``, ``user_error`` or ``system_error``.
        status: HTTP status; None where no answer came.
        retry_after_s: Seconds after which the same request is worth sending again.
        request_id: By which the operator finds it in the log.
    """

    code: str
    type: str
    message: str
    status: int | None
    retryable: bool
    retry_after_s: float | None
    suggested_action: str
    request_id: str | None


def failure_of(error: StillhouseError) -> Failure:
    """What is known of an error, whether a client raised it or not."""
    plain: dict[str, Any] = {
        "code": error.code,
        "type": error.error_type.value,
        "message": error.message,
        "status": None,
        "retryable": error.retryable,
        "retry_after_s": error.retry_after_s,
        "suggested_action": error.suggested_action,
        "request_id": None,
    }
    told = vars(error)
    return Failure(**{name: told.get(name, value) for name, value in plain.items()})


def error_of_answer(status: int, headers: Mapping[str, str], content: bytes) -> StillhouseError:
    """The error that an answer of 4xx or 5xx tells of, in whichever dialect it is.

    Args:
        headers: By lower-case name.
    """
    return error_of_problem(
        {"code": headers.get("x-error-code"), "type": headers.get("x-error-type"), **_told(content)},
        status=status,
        request_id=headers.get("x-request-id"),
        retry_after_s=_seconds(headers.get("retry-after")),
    )


def error_of_problem(
    problem: Mapping[str, Any],
    *,
    status: int | None,
    request_id: str | None,
    retry_after_s: float | None = None,
) -> StillhouseError:
    """The error that an RFC 9457 body, or one of platform routes, tells of.

    Args:
        status: None where it came as part of an answer.
        retry_after_s: From the header, where there is one; the catalogue's otherwise.
    """
    code = problem.get("code") or (UNAVAILABLE if status in _DOWN else None)
    entry = CATALOGUE.get(str(code))
    retryable = problem.get("retryable", entry.retryable if entry else retry_after_s is not None)
    if retry_after_s is None and retryable and entry is not None:
        retry_after_s = entry.retry_after_s
    told_type = problem.get("type") if problem.get("type") in set(ErrorType) else None
    return _described(
        Failure(
            code=str(code or StillhouseError.code),
            type=told_type or (entry.type.value if entry else _type_of(status)),
            message=_message(problem, status),
            status=status,
            retryable=bool(retryable),
            retry_after_s=retry_after_s,
            suggested_action=str(
                problem.get("suggested_action")
                or (entry.action_for({"retry_after": retry_after_s}) if entry else _UNKNOWN_ACTION)
            ),
            request_id=request_id or problem.get("request_id") or problem.get("trace_id"),
        ),
        violations=problem.get("violations") or problem.get("errors"),
    )


def error_of_job(job: Job) -> StillhouseError:
    """Why a job ended without a model: the class that its trainer raised."""
    told = job.error or JobFailure(StillhouseError.code, "", f"The job is {job.status}.", "", False)
    problem = {**asdict(told), "suggested_action": told.suggested_action or None}
    error = error_of_problem(problem, status=None, request_id=told.trace_id or job.trace_id)
    error.details["job_id"] = job.job_id
    return error


def still_running(job_id: str, timeout_s: float | None) -> StillhouseError:
    """The time of whoever waits for a job is over."""
    return _own(
        "OPERATION_TIMEOUT",
        f"The job {job_id} must end within {timeout_s or 0:g} s, but it goes on.",
        "Wait for longer, or look again later: nothing was stopped.",
        retryable=True,
    )


def unreachable(url: str, reason: str) -> StillhouseError:
    """No answer came at all."""
    return _own(
        UNAVAILABLE,
        f"{url} must answer, but {reason}.",
        "Check the address and that the service runs: stillhouse up starts one.",
        retryable=True,
    )


def not_understood(url: str, status: int) -> StillhouseError:
    """An answer came that is none of Stillhouse's, or of another version of it."""
    return _own(
        StillhouseError.code,
        f"{url} must be a Stillhouse service: its answer ({status}) is not understood.",
        "Check the address and the versions of client and service.",
        retryable=False,
    )


def _own(code: str, message: str, suggested_action: str, *, retryable: bool) -> StillhouseError:
    kind = CATALOGUE[code].type.value
    return _described(Failure(code, kind, message, None, retryable, None, suggested_action, None))


def _described(failure: Failure, **details: object) -> StillhouseError:
    given = {name: value for name, value in details.items() if value is not None}
    error = class_of(failure.code)(failure.message, **given)
    vars(error).update(asdict(failure))
    return error


def _told(content: bytes) -> dict[str, Any]:
    """The fields of an error's body: the body itself, or its ``error`` in the dialect of platform routes."""
    try:
        body = json.loads(content)
    except ValueError:
        return {}
    if not isinstance(body, dict):
        return {}
    inner = body.get("error")
    return inner if isinstance(inner, dict) else body


def _message(body: Mapping[str, Any], status: int | None) -> str:
    """In the dialects problem and detail, handler, platform."""
    told = body.get("detail") or body.get("error") or body.get("message")
    if isinstance(told, list):
        told = "; ".join(f"{'.'.join(map(str, item.get('loc', ())))}: {item.get('msg')}" for item in told)
    return str(told) if told else f"The service answered {status or 'an error'} without a message."


def _type_of(status: int | None) -> str:
    if status in _DOWN:
        return ErrorType.TRANSIENT.value
    return ErrorType.SYSTEM_ERROR.value if status is None or status >= 500 else ErrorType.PERMANENT.value


def _seconds(retry_after: str | None) -> float | None:
    """The other form of the header, a date, is not used by the service."""
    return int(retry_after) if retry_after and retry_after.isdecimal() else None
