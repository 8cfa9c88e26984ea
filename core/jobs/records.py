"""What the ledger takes in and gives out: plain values that cross processes."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from core.errors import StillhouseError, class_of
from core.jobs.states import JobState

JobKind = Literal["train", "distill"]
Executor = Literal["ray", "external"]
Reason = Literal["created", "retry", "lost", "memory"]
JsonObject = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job as it is asked for.

    Attributes:
        owner: Who sees it; what quotas count by.
        payload: The train or distil request.
        options: What concerns the job and not the model (``core.jobs.options``).
        epochs: As many as it may train at most; None where the request does not say.
    """

    job_id: str
    owner: str
    kind: JobKind
    payload: JsonObject
    options: JsonObject
    trace_id: str
    executor: Executor = "ray"
    priority: int = 0
    project_id: str | None = None
    epochs: int | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """A row of the ledger: see ``core.jobs.tables`` for the columns."""

    job_id: str
    owner: str
    project_id: str | None
    kind: JobKind
    executor: Executor
    priority: int
    state: JobState
    attempt: int
    first_attempt: int
    losses: int
    payload: JsonObject
    options: JsonObject
    warnings: list[str]
    trace_id: str
    created_at: float
    updated_at: float
    queued_at: float
    not_before: float
    started_at: float | None
    completed_at: float | None
    worker: str | None
    heartbeat_at: float | None
    active_at: float | None
    stale_warned: bool
    cancel_at: float | None
    resume_from: str | None
    epoch: int
    epochs: int | None
    metrics: JsonObject | None
    best: JsonObject | None
    snapshot: JsonObject | None
    result: JsonObject | None
    error: JsonObject | None
    flags: JsonObject
    seq: int
    log_seq: int

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> "Job":
        return cls(**{**row, "state": JobState(row["state"])})


@dataclass(frozen=True, slots=True)
class Assignment:
    """An attempt at a job, for whoever runs it.

    Attributes:
        checkpoint: Where in storage the state lies that it goes on from; None starts anew.
        snapshot: What earlier attempts read; None for the first.
        losses: Attempts at the very same that were lost.
        remaining_s: Of the job's wall-clock limit.
    """

    job_id: str
    attempt: int
    kind: JobKind
    payload: JsonObject
    options: JsonObject
    trace_id: str
    checkpoint: str | None
    snapshot: JsonObject | None
    losses: int
    remaining_s: float


@dataclass(frozen=True, slots=True)
class EpochMetrics:
    """What one epoch ended with, by name: losses, seconds."""

    epoch: int
    epochs: int
    metrics: JsonObject


@dataclass(frozen=True, slots=True)
class LogLine:
    at: float
    level: Literal["debug", "info", "warning", "error"]
    message: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A kept state of a training, and where in storage it lies."""

    checkpoint_id: str
    job_id: str
    attempt: int
    epoch: int
    is_best: bool
    metrics: JsonObject
    bytes: int
    sha256: str
    created_at: float
    path: str


@dataclass(frozen=True, slots=True)
class Report:
    """What an attempt tells between its start and its end; an empty one is a heartbeat.

    Telling the same twice changes nothing.

    Attributes:
        silent_s: Seconds since the training itself last went on.
        events: ``(type, data)``.
        message: Kind and number of an external trainer's message, by which a repeated one is known.
    """

    epochs: tuple[EpochMetrics, ...] = ()
    logs: tuple[LogLine, ...] = ()
    events: tuple[tuple[str, JsonObject], ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    snapshot: JsonObject | None = None
    silent_s: float = 0.0
    message: tuple[str, int] | None = None

    def __bool__(self) -> bool:
        told = self.epochs or self.logs or self.events or self.checkpoints or self.snapshot or self.message
        return bool(told)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the ledger says to whoever runs a job.

    Attributes:
        applied: False for an attempt that is not the job's any more: it must end.
        cancel: The job is to end.
        state: Of the job now.
    """

    applied: bool
    cancel: bool
    state: JobState


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a job's history; ``seq`` counts from 1 without gaps."""

    job_id: str
    seq: int
    attempt: int
    at: float
    type: str
    data: JsonObject


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job ended without a model, as it is stored; ``error`` makes an error of it again."""

    code: str
    message: str
    details: JsonObject = field(default_factory=dict)

    @classmethod
    def of(cls, error: StillhouseError) -> "Failure":
        return cls(error.code, error.message, error.details)

    def error(self) -> StillhouseError:
        return class_of(self.code)(self.message, **self.details)

    def to_dict(self) -> dict[str, object]:
        return dataclasses.asdict(self)
