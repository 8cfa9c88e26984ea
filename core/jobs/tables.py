"""The ledger's tables. ``migrations`` brings a database to this shape; times are Unix seconds."""

from typing import Final

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

metadata: Final = MetaData()


def _job_id() -> Column[str]:
    return Column("job_id", String(64), ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True)


jobs: Final = Table(
    "jobs",
    metadata,
    Column("job_id", String(64), primary_key=True),
    Column("owner", String(128), nullable=False),
    Column("project_id", String(128)),
    Column("kind", String(16), nullable=False),
    Column("executor", String(16), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("first_attempt", Integer, nullable=False),  # of those since a person last started it
    Column("losses", Integer, nullable=False),  # trainers lost since then
    Column("payload", JSON, nullable=False),  # the request: what the client sent, less what is the job's
    Column("options", JSON, nullable=False),  # what concerns the job: name, tags, callback, limits
    Column("warnings", JSON, nullable=False),
    Column("trace_id", String(32), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("queued_at", Float, nullable=False),  # since when it has waited for its present attempt
    Column("not_before", Float, nullable=False),
    Column("started_at", Float),
    Column("completed_at", Float),
    Column("worker", String(128)),  # who runs the present attempt
    Column("heartbeat_at", Float),
    Column("active_at", Float),  # when its training last went on
    Column("stale_warned", Boolean, nullable=False),
    Column("cancel_at", Float),  # when a cancel was asked for
    Column("resume_from", String(64)),  # a checkpoint
    Column("epoch", Integer, nullable=False),
    Column("epochs", Integer),
    Column("metrics", JSON),  # of the latest epoch
    Column("best", JSON),
    Column("snapshot", JSON),
    Column("result", JSON),
    Column("error", JSON),
    Column("flags", JSON, nullable=False),
    Column("seq", Integer, nullable=False),  # of the latest event
    Column("log_seq", Integer, nullable=False),
    Index("jobs_by_owner", "owner", "created_at", "job_id"),
    Index("jobs_by_age", "created_at", "job_id"),
    Index("jobs_by_turn", "state", "priority", "queued_at"),
)

attempts: Final = Table(
    "attempts",
    metadata,
    _job_id(),
    Column("attempt", Integer, primary_key=True),
    Column("reason", String(16), nullable=False),  # created, retry, lost or memory
    Column("changes", JSON, nullable=False),
    Column("resumed_from", String(64)),
    Column("worker", String(128)),
    Column("started_at", Float),
    Column("ended_at", Float),
    Column("outcome", String(16)),
    Column("error", JSON),
)

events: Final = Table(
    "events",
    metadata,
    _job_id(),
    Column("seq", Integer, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("type", String(32), nullable=False),
    Column("data", JSON, nullable=False),
)

epochs: Final = Table(
    "epochs",
    metadata,
    _job_id(),
    Column("attempt", Integer, primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("metrics", JSON, nullable=False),
)

logs: Final = Table(
    "logs",
    metadata,
    _job_id(),
    Column("seq", Integer, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("level", String(8), nullable=False),
    Column("message", Text, nullable=False),
)

checkpoints: Final = Table(
    "checkpoints",
    metadata,
    Column("checkpoint_id", String(64), primary_key=True),
    Column("job_id", String(64), ForeignKey("jobs.job_id", ondelete="CASCADE"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("is_best", Boolean, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("path", String(512), nullable=False),
    Index("checkpoints_by_job", "job_id", "created_at"),
)

deliveries: Final = Table(
    "deliveries",
    metadata,
    _job_id(),
    Column("seq", Integer, primary_key=True),  # of the event that is to be told
    Column("due_at", Float, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("done", Boolean, nullable=False),
    Column("host", String(255), nullable=False, server_default=""),  # of the callback: each has its share
    Index("deliveries_by_turn", "done", "due_at"),
)

heard: Final = Table(
    "heard",
    metadata,
    _job_id(),
    Column("attempt", Integer, primary_key=True),
    Column("kind", String(16), primary_key=True),  # of a message of an external trainer
    Column("number", Integer, primary_key=True),
)

secrets: Final = Table(
    "secrets",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", String(256), nullable=False),
)
