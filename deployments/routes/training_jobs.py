"""Training jobs, in the ``platform`` dialect (seed 001; jobs.md, section 3)."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from core.errors import (
    CheckpointMissingError,
    JobBusyError,
    JobStateConflictError,
    ParameterError,
    QueueFullError,
    QuotaExceededError,
    RequestError,
    SchemaError,
    TrainerUnreachableError,
)
from core.jobs.inquiries import Wanted
from core.jobs.states import JobState, state_of
from deployments.dialects import platform_error
from deployments.edge.border import origin_of
from deployments.routes.failures import CREATING
from deployments.routes.job_failures import BODY, LEDGER, MAKING, ONE, ORDER, JobId, job_failures
from deployments.routes.job_views import (
    created,
    job_view,
    visitor_of,
)
from deployments.routes.jobs import asked_by, read_object
from deployments.routes.paging import Cursor, Limit
from deployments.service import Service


def training_job_routes(service: Service) -> APIRouter:
    """Below ``/api/v1/training-jobs``."""
    router = APIRouter(prefix="/training-jobs", tags=["training jobs"])
    desk, jobs = service.desk, service.desk.jobs

    @router.post("", openapi_extra=BODY, responses=job_failures(*MAKING))
    async def create_job(request: Request, strict: bool = False) -> Response:
        """Files a job: a train or distil request plus what concerns the job.

        What only the data tells, a missing dataset too, is the job's failure, unless ``strict`` is set.
        """
        body = await read_object(request)
        order = {**body, "strict": True} if strict else body
        filed = await desk.create(order, None, visitor_of(request), origin_of(request.scope))
        return created(filed, asked_by(request), 200)

    @router.post("/validate", openapi_extra=BODY, responses=job_failures(*MAKING))
    async def validate(request: Request) -> dict[str, object]:
        """Everything that is wrong with a job, in the request and in its data, without making it."""
        tried = await desk.dry_run(await read_object(request), None)
        asked = asked_by(request)
        errors = [platform_error(error, asked) for error in tried.errors]
        listed = [
            found
            for error in errors
            for found in (error["errors"] or [{k: error[k] for k in ("param", "code", "message")}])  # type: ignore[attr-defined]
        ]
        return {
            "valid": not errors,
            "errors": listed,
            "warnings": tried.warnings,
            "dataset": tried.dataset,
            "estimate": tried.estimate,
        }

    @router.get("", responses=job_failures(RequestError, ParameterError, SchemaError, *LEDGER))
    async def list_jobs(
        request: Request,
        limit: Limit = 20,
        cursor: Cursor = None,
        after: Cursor = None,
        status: Annotated[str | None, Query(max_length=200)] = None,
        project_id: Annotated[str | None, Query(max_length=128)] = None,
        created_after: datetime | None = None,
    ) -> dict[str, object]:
        """A page of jobs, newest first, and how many there are."""
        wanted = Wanted(
            owner=visitor_of(request).sees,
            states=None if status is None else _states(status),
            project_id=project_id,
            created_after=None if created_after is None else created_after.timestamp(),
        )
        page, total = await jobs.page(wanted, limit, cursor or after)
        asked = asked_by(request)
        return {
            "data": [job_view(job, None, asked) for job in page.data],
            "has_more": page.has_more,
            "next_cursor": page.next_cursor,
            "total": total,
        }

    @router.get("/{job_id}", responses=job_failures(*ONE))
    async def get_job(job_id: JobId, request: Request) -> dict[str, object]:
        filed = await jobs.get(job_id, visitor_of(request).sees)
        return job_view(filed.job, filed.turn, asked_by(request))

    async def cancel(job_id: JobId, request: Request) -> Response:
        """Ends a job; 202 where its trainer did not stop in time and was killed."""
        job = await desk.cancel(job_id, visitor_of(request))
        status = 202 if job.state is JobState.CANCELLING else 200
        return JSONResponse(job_view(job, None, asked_by(request)), status)

    async def retry(job_id: JobId, request: Request) -> Response:
        """Runs a job that has ended once more; the body changes its request and names a checkpoint."""
        body = await read_object(request) if await request.body() else {}
        filed = await desk.retry(job_id, body, visitor_of(request))
        return JSONResponse(job_view(filed.job, filed.turn, asked_by(request)))

    for name in ("cancel", "stop"):
        router.add_api_route(
            f"/{{job_id}}/{name}",
            cancel,
            methods=["POST"],
            operation_id=f"{name}_job",
            responses=job_failures(*ONE, JobStateConflictError),
        )
    for name in ("retry", "restart"):
        router.add_api_route(
            f"/{{job_id}}/{name}",
            retry,
            methods=["POST"],
            operation_id=f"{name}_job",
            openapi_extra=BODY,
            responses=job_failures(
                *CREATING,
                *ONE,
                *ORDER,
                JobBusyError,
                CheckpointMissingError,
                QuotaExceededError,
                QueueFullError,
                TrainerUnreachableError,
            ),
        )

    return router


def _states(names: str) -> frozenset[JobState]:
    states = {name.strip(): state_of(name.strip()) for name in names.split(",")}
    unknown = [name for name, state in states.items() if state is None]
    if unknown:
        raise ParameterError(
            f"status must name states of jobs, got {unknown[0]!r:.40}", field="status", known=list(JobState)
        )
    return frozenset(state for state in states.values() if state is not None)
