"""A job as clients see it (jobs.md, section 2.1)."""

from collections.abc import Mapping
from typing import Final

from fastapi import Request
from starlette.responses import JSONResponse, Response

from core.jobs.inquiries import Turn
from core.jobs.records import Event, Failure, Job
from deployments.dialects import Asked, platform_error
from deployments.dispatcher import Filed, Progress
from deployments.edge.authentication import client_of, sees_all
from deployments.job_desk import Visitor
from deployments.job_events import as_time as as_time
from deployments.job_events import event_view as event_view
from deployments.job_feed import News

PATH: Final = "/api/v1/training-jobs"

JobView = dict[str, object]
_OWN_OPTIONS: Final = ("experiment_name", "tags", "notes", "callback_url", "time_limit_s", "on_oom")


def job_view(job: Job, turn: Turn | None, asked: Asked) -> JobView:
    """Everything but what is the service's own: workers and secrets."""
    payload, options, result = job.payload, job.options, job.result or {}
    error = None if job.error is None else error_view(job, asked)
    return {
        "job_id": job.job_id,
        "id": job.job_id,
        "kind": job.kind,
        "status": job.state.value,
        "attempt": job.attempt,
        "project_id": job.project_id,
        **{name: options.get(name) for name in _OWN_OPTIONS},
        "created_by": job.owner,
        "priority": job.priority,
        "executor": job.executor,
        "framework": "pytorch",
        "training_mode": payload.get("training_mode", "mlp_dense"),
        "dataset_id": payload.get("dataset_id"),
        "target_column": payload.get("target_column"),
        "request": payload,
        "queue": None if turn is None or turn.position is None else _turn_view(turn),
        "current_epoch": job.epoch,
        "total_epochs": job.epochs,
        "progress_percent": progress_percent(job),
        "current_metrics": job.metrics,
        "best_metrics": job.best,
        "best_epoch": None if job.best is None else job.best.get("epoch"),
        "primary_metric": "validation_loss",
        "primary_metric_mode": "min",
        "final_metrics": result.get("metrics"),
        "run_id": result.get("run_id"),
        "model_id": result.get("model_id"),
        "result": job.result,
        "snapshot": job.snapshot,
        "snapshot_status_at_start": _snapshot_status(job),
        "error": error,
        "error_message": None if job.error is None else job.error.get("message"),
        "retryable": None if error is None else error["retryable"],
        "mlflow_offline_mode": bool(job.flags.get("mlflow_offline_mode", False)),
        "fallback_mode": bool(job.flags.get("fallback_mode", False)),
        "warnings": [*job.warnings, *_warnings(result)],
        "trace_id": job.trace_id,
        "created_at": as_time(job.created_at),
        "started_at": as_time(job.started_at),
        "completed_at": as_time(job.completed_at),
        "updated_at": as_time(job.updated_at),
    }


def error_view(job: Job, asked: Asked) -> dict[str, object]:
    """The stored error in the words of seed 001."""
    assert job.error is not None  # noqa: S101  # asked before
    told = Asked(asked.path, None, asked.request_id, job.trace_id)
    shown = platform_error(Failure(**job.error).error(), told)  # type: ignore[arg-type]
    return {**shown, "timestamp": as_time(job.completed_at or job.updated_at), "attempt": job.attempt}


def progress_view(job_id: str, seq: int, progress: Progress) -> dict[str, object]:
    """The frame that tells how far a job is; it has the number of the event before it."""
    return {
        "type": "progress",
        "job_id": job_id,
        "attempt": progress.attempt,
        "seq": seq,
        "timestamp": as_time(progress.at),
        "current_epoch": progress.epoch,
        "total_epochs": progress.epochs,
        "progress_percent": round(100 * progress.epoch / max(progress.epochs, 1), 2),
        "metrics": progress.metrics,
        "eta_s": None if progress.eta_s is None else round(progress.eta_s, 1),
    }


def progress_percent(job: Job) -> float:
    if job.state.value == "completed":
        return 100.0
    return round(100 * job.epoch / job.epochs, 2) if job.epochs else 0.0


def _turn_view(turn: Turn) -> dict[str, object]:
    return {"position": turn.position, "reason": turn.reason}


def _snapshot_status(job: Job) -> str | None:
    if job.error is not None and job.error.get("code") == "DATASET_BROKEN":
        return "broken"
    return None if job.snapshot is None else "valid"


def _warnings(result: Mapping[str, object]) -> list[object]:
    warnings = result.get("warnings", [])
    return warnings if isinstance(warnings, list) else []


def visitor_of(request: Request) -> Visitor:
    name = client_of(request.scope)
    return Visitor(name, None if sees_all(request.scope) else name)


def created(filed: Filed, asked: Asked, status: int) -> Response:
    """The job, and where it can be found."""
    location = {"Location": f"{PATH}/{filed.job.job_id}"}
    return JSONResponse(job_view(filed.job, filed.turn, asked), status, location)


def frame_of(job_id: str, seq: int, news: News, asked: Asked) -> dict[str, object]:
    """One frame of a live reader."""
    return event_view(news, asked) if isinstance(news, Event) else progress_view(job_id, seq, news)
