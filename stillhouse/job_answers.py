"""Training jobs as the service tells of them, typed; as in ``stillhouse.answers``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import Field, TypeAdapter

from stillhouse.answers import Distilled, Trained

COMPLETED, FAILED, CANCELLED = "completed", "failed", "cancelled"
ENDED: Final = frozenset({COMPLETED, FAILED, CANCELLED})
JobResult = Annotated[Distilled | Trained | Mapping[str, object], Field(union_mode="left_to_right")]


@dataclass(frozen=True, slots=True)
class JobFailure:
    """Why a job, or an attempt at it, ended without a model.

    Attributes:
        type: ``transient``, ``permanent``, ``user_error`` or ``system_error``.
        param: The field of the request that is wrong, where it is one.
        retry_after: Seconds.
    """

    code: str
    type: str
    message: str
    suggested_action: str
    retryable: bool
    param: str | None = None
    retry_after: float | None = None
    trace_id: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """Where a waiting job stands in the queue, 1 is next, and what it waits for."""

    position: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class Job:
    """A training job.

    Attributes:
        status: ``pending``, ``queued``, ``running``, ``cancelling``, or one of ``ENDED``.
        attempt: Counts from 1.
        request: The train or distil request.
        queue: None unless it waits.
        current_metrics, best_metrics: Of an epoch, by name: losses and seconds.
        result: What the same request without a job answers; None until it is completed.
        error: Of a job that failed or was cancelled.
    """

    job_id: str
    kind: str
    status: str
    attempt: int
    project_id: str | None
    experiment_name: str | None
    tags: tuple[str, ...] | None
    notes: str | None
    callback_url: str | None
    time_limit_s: float | None
    on_oom: str | None
    created_by: str
    priority: int
    training_mode: str
    dataset_id: str | None
    target_column: str | None
    request: Mapping[str, object]
    queue: Turn | None
    current_epoch: int
    total_epochs: int | None
    progress_percent: float
    current_metrics: Mapping[str, object] | None
    best_metrics: Mapping[str, object] | None
    best_epoch: int | None
    run_id: str | None
    model_id: str | None
    result: JobResult | None
    error: JobFailure | None
    warnings: tuple[str, ...]
    trace_id: str
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    updated_at: datetime

    @property
    def ended(self) -> bool:
        return self.status in ENDED


@dataclass(frozen=True, slots=True)
class JobAttempt:
    """Attributes:
    reason: ``created``, ``retry``, ``lost`` or ``memory``.
    changes: Of the request, against the attempt before.
    outcome: None while it goes on.
    """

    attempt: int
    reason: str
    changes: Mapping[str, object]
    resumed_from: str | None
    started_at: datetime | None
    ended_at: datetime | None
    outcome: str | None
    error: Mapping[str, object] | None


@dataclass(frozen=True, slots=True)
class JobCheckpoint:
    """What a retry may resume from."""

    id: str
    attempt: int
    epoch: int
    is_best: bool
    metrics: Mapping[str, object]
    bytes: int
    sha256: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class JobEpoch:
    """Attributes:
    metrics: By name: losses and seconds.
    """

    epoch: int
    at: datetime
    metrics: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class JobMetrics:
    attempt: int
    data: tuple[JobEpoch, ...]


@dataclass(frozen=True, slots=True)
class LogLine:
    """``seq`` counts from 1 over all attempts."""

    seq: int
    attempt: int
    at: datetime
    level: str
    message: str


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing that is wrong with a request for a job."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Validation:
    """What would come of a job.

    Attributes:
        errors: All that is wrong, in the request and in its data.
        dataset: Its rows and columns, where it could be read.
        estimate: Of memory and time, where the service gives one.
    """

    valid: bool
    errors: tuple[FieldError, ...]
    warnings: tuple[str, ...]
    dataset: Mapping[str, object] | None
    estimate: Mapping[str, object] | None


# ── Events ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """Something that happened to a job. Those of a type without a class of its own are of this one.

    Attributes:
        seq: Counts from 1 without gaps; progress has that of the event before it.
        data: All that was told, as JSON.
    """

    type: str
    job_id: str
    attempt: int
    seq: int
    timestamp: datetime
    data: Mapping[str, object] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusChange(JobEvent):
    """Attributes:
    old: None for a new job.
    reason, error: Of a further attempt, and what ended the one before.
    """

    old: str | None = None
    new: str
    reason: str | None = None
    error: JobFailure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress(JobEvent):
    """How far a job is; a reader that is slow misses some, and the history has none.

    Attributes:
        metrics: Of the latest epoch, by name: losses and seconds.
        eta_s: Seconds until the end, if all epochs are run.
    """

    current_epoch: int
    total_epochs: int
    progress_percent: float
    metrics: Mapping[str, object]
    eta_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointKept(JobEvent):
    checkpoint_id: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnded(JobEvent):
    """``completed``, with the result; ``failed`` or ``cancelled``, with the error."""

    result: JobResult | None = None
    error: JobFailure | None = None


_KINDS: Final[Mapping[str, TypeAdapter[Any]]] = {
    "status_change": TypeAdapter(StatusChange),
    "progress": TypeAdapter(JobProgress),
    "checkpoint": TypeAdapter(CheckpointKept),
    **dict.fromkeys(ENDED, TypeAdapter(JobEnded)),
}
_OTHER: Final = TypeAdapter(JobEvent)


def event_of(frame: Mapping[str, object]) -> JobEvent:
    """An event as it is told; raises ValueError for what is none."""
    kind = _KINDS.get(str(frame.get("type")), _OTHER)
    event: JobEvent = kind.validate_python({**frame, "data": frame})
    return event
