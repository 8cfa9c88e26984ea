"""The states of a job and what may follow what (jobs.md, section 2.2)."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from core.errors import JobStateConflictError


class JobState(StrEnum):
    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


WAITING: Final = frozenset({JobState.PENDING, JobState.QUEUED})
WORKING: Final = frozenset({JobState.RUNNING, JobState.CANCELLING})
TERMINAL: Final = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})
ALIASES: Final[Mapping[str, JobState]] = {
    "stopped": JobState.CANCELLED,
    "succeeded": JobState.COMPLETED,
}

TRANSITIONS: Final[Mapping[JobState, frozenset[JobState]]] = {
    JobState.PENDING: frozenset(
        {JobState.QUEUED, JobState.RUNNING, JobState.FAILED, JobState.CANCELLED},
    ),
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.CANCELLING, JobState.QUEUED, *TERMINAL}),
    JobState.CANCELLING: TERMINAL,
    **dict.fromkeys(TERMINAL, frozenset({JobState.PENDING})),
}
"""A terminal state changes through a retry alone; RUNNING → QUEUED is a trainer that was lost."""


def state_of(name: str) -> JobState | None:
    """A state by its name or alias; None for neither.

    >>> state_of("stopped")
    <JobState.CANCELLED: 'cancelled'>
    """
    if name in ALIASES:
        return ALIASES[name]
    return JobState(name) if name in [*JobState] else None


def check_transition(old: JobState, new: JobState) -> None:
    """Raises JobStateConflictError for what may not follow."""
    if new not in TRANSITIONS[old]:
        raise JobStateConflictError(f"A job that is {old} cannot become {new}.", state=old.value)
