"""Rows of the ledger: how they are found, read and written within a transaction."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Final
from urllib.parse import urlsplit

from sqlalchemy import Connection, RowMapping, Select, delete, func, insert, select, update

from core.errors import CheckpointMissingError, CudaOutOfMemoryError, JobNotFoundError
from core.jobs import tables as t
from core.jobs.records import Job, NewJob, Report, Verdict
from core.jobs.states import WORKING, JobState

LOG_LINES: Final = 2000
SMALLEST_BATCH: Final = 2


_UNSET: Final = (
    "started_at",
    "completed_at",
    "worker",
    "heartbeat_at",
    "active_at",
    "cancel_at",
    "resume_from",
    "metrics",
    "best",
    "snapshot",
    "result",
    "error",
)


def first_row(new: NewJob, state: JobState, now: float) -> dict[str, object]:
    """A job's row before anything happened to it."""
    return {
        **dict.fromkeys(_UNSET),
        **asdict(new),
        "state": state.value,
        "attempt": 1,
        "first_attempt": 1,
        "losses": 0,
        **dict.fromkeys(("created_at", "updated_at", "queued_at", "not_before"), now),
        "stale_warned": False,
        "epoch": 0,
        "flags": {},
        "seq": 0,
        "log_seq": 0,
    }


def count_jobs() -> Select[int]:
    return select(func.count()).select_from(t.jobs)


def find_job(connection: Connection, job_id: str, *, lock: bool = False) -> Job | None:
    query = select(t.jobs).where(t.jobs.c.job_id == job_id)
    row: RowMapping | None = connection.execute(query.with_for_update() if lock else query).mappings().first()
    return None if row is None else Job.of(row)


def get_job(connection: Connection, job_id: str, *, lock: bool = False) -> Job:
    job = find_job(connection, job_id, lock=lock)
    if job is None:
        raise job_not_found(job_id)
    return job


def job_not_found(job_id: str) -> JobNotFoundError:
    return JobNotFoundError(f"There is no training job {job_id!r:.40}.", job_id=job_id[:128])


def set_job(connection: Connection, job: Job, **values: object) -> Job:
    connection.execute(update(t.jobs).where(t.jobs.c.job_id == job.job_id).values(**values))
    if "state" in values:
        values["state"] = JobState(str(values["state"]))
    return replace(job, **values)  # type: ignore[arg-type]


def close_attempt(connection: Connection, job: Job, **values: object) -> None:
    this = (t.attempts.c.job_id == job.job_id) & (t.attempts.c.attempt == job.attempt)
    connection.execute(update(t.attempts).where(this).values(**values))


def host_of(url: str) -> str:
    """Host and port of a callback, which share their turns."""
    return urlsplit(url).netloc.lower()[:255]


def is_heard(connection: Connection, job: Job, message: tuple[str, int]) -> bool:
    """Whether a message of the present attempt came before; it has then come, whatever the answer."""
    kind, number = message
    row = {"job_id": job.job_id, "attempt": job.attempt, "kind": kind, "number": number}
    same = [t.heard.c[name] == value for name, value in row.items()]
    if connection.scalar(select(func.count()).select_from(t.heard).where(*same)):
        return True
    connection.execute(insert(t.heard).values(**row))
    return False


def is_current(job: Job, attempt: int) -> bool:
    return job.attempt == attempt and job.state in WORKING


def verdict(job: Job, attempt: int, applied: bool) -> Verdict:
    over = not applied and not is_current(job, attempt)
    return Verdict(applied, over or job.state is JobState.CANCELLING, job.state)


def add_epochs(connection: Connection, job: Job, report: Report, now: float) -> dict[str, object]:
    """Writes epochs that are new; returns what changes in the job's row."""
    own = (t.epochs.c.job_id == job.job_id) & (t.epochs.c.attempt == job.attempt)
    last = connection.scalar(select(func.max(t.epochs.c.epoch)).where(own)) or 0
    told = t.epochs.c.epoch.in_([epoch.epoch for epoch in report.epochs if epoch.epoch <= last])
    known = set(connection.scalars(select(t.epochs.c.epoch).where(own & told)))
    new = list({epoch.epoch: epoch for epoch in report.epochs if epoch.epoch not in known}.values())
    if not new:
        return {}
    rows = [
        {
            "job_id": job.job_id,
            "attempt": job.attempt,
            "epoch": epoch.epoch,
            "at": now,
            "metrics": dict(epoch.metrics),
        }
        for epoch in new
    ]
    connection.execute(insert(t.epochs), rows)
    best = min(
        ({"epoch": epoch.epoch, **epoch.metrics} for epoch in new),
        key=watched_loss,
    )
    if job.best is not None and watched_loss(job.best) <= watched_loss(best):
        best = dict(job.best)
    latest = max(new, key=lambda epoch: epoch.epoch)
    if latest.epoch <= last:  # one that was overtaken
        return {"best": best}
    return {"epoch": latest.epoch, "epochs": latest.epochs, "metrics": dict(latest.metrics), "best": best}


def watched_loss(metrics: Mapping[str, object]) -> float:
    """By which epochs are compared: the validation loss where rows watch, else the training loss."""
    watched = metrics.get("validation_loss")
    loss = metrics.get("train_loss") if watched is None else watched
    return float(loss) if isinstance(loss, int | float) else float("inf")


def add_logs(connection: Connection, job: Job, report: Report) -> int:
    """Writes log lines and drops the oldest above ``LOG_LINES``; returns the last number."""
    rows = [
        {"job_id": job.job_id, "seq": job.log_seq + number, "attempt": job.attempt, **asdict(line)}
        for number, line in enumerate(report.logs, 1)
    ]
    connection.execute(insert(t.logs), rows)
    last = job.log_seq + len(rows)
    old = (t.logs.c.job_id == job.job_id) & (t.logs.c.seq <= last - LOG_LINES)
    connection.execute(delete(t.logs).where(old))
    return last


def knows_checkpoint(checkpoint_id: str) -> Select[int]:
    return select(func.count()).where(t.checkpoints.c.checkpoint_id == checkpoint_id)


def latest_checkpoint(connection: Connection, job: Job) -> str | None:
    """The last checkpoint since the job was last started by a person."""
    own = (t.checkpoints.c.job_id == job.job_id) & (t.checkpoints.c.attempt >= job.first_attempt)
    newest = t.checkpoints.c.epoch.desc(), t.checkpoints.c.created_at.desc()
    query = select(t.checkpoints.c.checkpoint_id).where(own).order_by(*newest).limit(1)
    found: str | None = connection.scalar(query)
    return found


def named_checkpoint(connection: Connection, job: Job, wanted: str) -> str | None:
    """The checkpoint that a person names; raises CheckpointMissingError."""
    if wanted == "none":
        return None
    own = t.checkpoints.c.job_id == job.job_id
    if wanted == "best":
        own &= t.checkpoints.c.is_best
    elif wanted != "last":
        own &= t.checkpoints.c.checkpoint_id == wanted
    newest = t.checkpoints.c.created_at.desc()
    found: str | None = connection.scalar(
        select(t.checkpoints.c.checkpoint_id).where(own).order_by(newest).limit(1)
    )
    if found is None:
        raise CheckpointMissingError(
            f"The job has no checkpoint {wanted!r:.40}: retry it with resume_from none.", field="resume_from"
        )
    return found


def smaller_batch(job: Job, error: CudaOutOfMemoryError) -> int | None:
    """Half the batch that was too large, where the job allows that and there is a half."""
    used = error.details.get("batch_size")
    if job.options.get("on_oom") != "reduce_batch" or not isinstance(used, int) or used // 2 < SMALLEST_BATCH:
        return None
    return used // 2
