"""Every request about training jobs."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final, Literal, TypeVar, Unpack

from stillhouse.answers import Listed, Page
from stillhouse.fields import AnyFields, DistillJobFields, TrainJobFields
from stillhouse.job_answers import (
    Job,
    JobAttempt,
    JobCheckpoint,
    JobEvent,
    JobMetrics,
    LogLine,
    Validation,
    event_of,
)
from stillhouse.requests import (
    EVENTS,
    JSON,
    Answer,
    Call,
    get,
    get_listed,
    given,
    json_of,
    page_of,
    quoted,
    reader,
)

PATH: Final = "/api/v1/training-jobs"
MOST_EVENTS: Final = 1000
MOST_LINES: Final = 2000
JobKind = Literal["train", "distill"]
Result = TypeVar("Result")
Level = Literal["debug", "info", "warning", "error"]


def train(**fields: Unpack[TrainJobFields]) -> Call[Job]:
    """Files a training; it goes on whatever becomes of the client.

    What only the data shows to be wrong is the job's failure, unless ``strict`` is set.
    """
    return create("train", **fields)


def distill(**fields: Unpack[DistillJobFields]) -> Call[Job]:
    """Files a distillation; as ``train``."""
    return create("distill", **fields)


def create(kind: JobKind, **fields: object) -> Call[Job]:
    """Files a job of either kind, with the fields of ``train`` or ``distill``."""
    return _post(PATH, Job, {"kind": kind, **fields}, creates=True)


def validate(kind: JobKind, **fields: object) -> Call[Validation]:
    """Everything that is wrong with a job, in the request and in its data, without filing it."""
    return _post(f"{PATH}/validate", Validation, {"kind": kind, **fields})


def jobs_page(
    limit: int = 100,
    cursor: str | None = None,
    *,
    status: str | None = None,
    project_id: str | None = None,
    created_after: datetime | None = None,
) -> Call[Page[Job]]:
    """Jobs, newest first.

    Args:
        status: One, or several with commas between.
        created_after: With its time zone; local time without.
    """
    since = None if created_after is None else created_after.astimezone().isoformat()
    filters = given(status=status, project_id=project_id, created_after=since)
    return get(PATH, Page[Job], page_of(limit, cursor) | filters)


def get_job(job_id: str) -> Call[Job]:
    """One job."""
    return get(_path(job_id), Job)


def cancel(job_id: str) -> Call[Job]:
    """Ends a job, or asks its trainer to: its status is ``cancelling`` where that takes a while."""
    return _post(_path(job_id, "cancel"), Job, {})


def retry(
    job_id: str, *, resume_from: str = "none", new_snapshot: bool = False, **changes: Unpack[AnyFields]
) -> Call[Job]:
    """Runs a job that has ended once more, as a further attempt.

    Args:
        resume_from: ``none``, ``best``, ``last`` or the id of a checkpoint.
        new_snapshot: Read the data as they are now, although they may have changed.
        changes: Fields of the request that are to differ.
    """
    body = {"resume_from": resume_from, "new_snapshot": new_snapshot, **changes}
    return _post(_path(job_id, "retry"), Job, body, creates=True)


def events_page(job_id: str, after: int = 0) -> Call[tuple[JobEvent, ...]]:
    """What happened to a job after an event, oldest first, at most ``MOST_EVENTS``."""
    params = {"after": after, "limit": MOST_EVENTS}
    read = reader(Listed[dict[str, object]])

    def events(answer: Answer) -> tuple[JobEvent, ...]:
        return tuple(event_of(frame) for frame in read(answer).data)

    return Call("GET", _path(job_id, "events"), events, params)


def event_stream_page(job_id: str, after: int) -> Call[None]:
    """The same, live, as server-sent events."""
    return Call("GET", _path(job_id, "events"), lambda _: None, {"after": after}, accept=EVENTS)


def metrics(
    job_id: str, *, attempt: int | None = None, from_epoch: int | None = None, limit: int = 100
) -> Call[JobMetrics]:
    """Metrics by epoch, ascending, at most 10,000: from an epoch on, or the latest.

    Args:
        attempt: The present one by default.
    """
    params = given(attempt=attempt, from_epoch=from_epoch, limit=limit)
    return get(_path(job_id, "metrics"), JobMetrics, params)


def logs(
    job_id: str,
    *,
    after: int | None = None,
    level: Level | None = None,
    attempt: int | None = None,
    limit: int = 500,
) -> Call[tuple[LogLine, ...]]:
    """Log lines, oldest first, at most ``MOST_LINES``: those after a number, or the newest.

    Args:
        level: Those of this level alone.
    """
    params = given(after=after, level=level, attempt=attempt, limit=limit)
    return get_listed(_path(job_id, "logs"), Listed[LogLine], params)


def checkpoints(job_id: str) -> Call[tuple[JobCheckpoint, ...]]:
    """What a retry may resume from, oldest first."""
    return get_listed(_path(job_id, "checkpoints"), Listed[JobCheckpoint])


def attempts(job_id: str) -> Call[tuple[JobAttempt, ...]]:
    """Every attempt at a job and how it ended."""
    return get_listed(_path(job_id, "attempts"), Listed[JobAttempt])


def _path(job_id: str, *names: str) -> str:
    return "/".join((PATH, quoted(job_id), *names))


def _post(
    path: str, kind: type[Result], body: Mapping[str, object], *, creates: bool = False
) -> Call[Result]:
    return Call("POST", path, reader(kind), {}, json_of(body), JSON, creates=creates)
