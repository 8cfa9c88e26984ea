"""One line of a job's history, as readers and callbacks get it."""

from collections.abc import Mapping
from datetime import UTC, datetime

from core.jobs.records import Event, Failure
from deployments.dialects import Asked, platform_error


def event_view(event: Event, asked: Asked) -> dict[str, object]:
    """One frame or line of a job's history."""
    data = dict(event.data)
    if isinstance(error := data.get("error"), Mapping):
        shown = platform_error(Failure(**error).error(), asked)
        data |= {"error": {**shown, "timestamp": as_time(event.at)}, "retryable": shown["retryable"]}
    return {
        "type": event.type,
        "job_id": event.job_id,
        "attempt": event.attempt,
        "seq": event.seq,
        "timestamp": as_time(event.at),
        **data,
    }


def as_time(at: float | None) -> str | None:
    """RFC 3339, UTC, to the millisecond."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
