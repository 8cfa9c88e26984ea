"""Health, limits, breakers, and the catalogue of errors with a page for each code."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path
from starlette.responses import HTMLResponse, JSONResponse, Response

from core.catalogue import CATALOGUE, Entry
from core.contract.fields import DISTILL_NUMBERS, HIDDEN_NUMBERS, TRAIN_NUMBERS
from core.errors import ResourceNotFoundError, SchemaError, ServiceUnavailableError
from deployments.dialects import documentation_of
from deployments.routes.error_pages import index_page, page_of_code
from deployments.routes.failures import OPEN, failures
from deployments.service import Service


def system_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["system"])

    @router.get("/limits", responses=failures())
    async def limits() -> dict[str, object]:
        """What a client would otherwise learn by failing."""
        limits, registry = service.settings.limits, service.settings.registry
        return {
            **limits.model_dump(),
            "train": {name: number.limits() for name, number in {**TRAIN_NUMBERS, **HIDDEN_NUMBERS}.items()},
            "distill": {name: number.limits() for name, number in DISTILL_NUMBERS.items()},
            "registry": registry.model_dump(include={"ttl_seconds", "max_items", "max_bytes"}),
            "queue": service.queue(),
            "rates": service.settings.edge.rates.model_dump(),
        }

    @router.get("/errors", responses=failures())
    async def errors() -> dict[str, object]:
        """Every error code: its type, severity, status, whether to retry, and what to do."""
        return {"data": [shown(entry) for entry in CATALOGUE.values()]}

    @router.get("/breakers", responses=failures())
    async def breakers() -> dict[str, object]:
        """Which services this replica of the ingress spares because they failed, and for how long."""
        return {
            "data": [
                {"service": name, "state": breaker.state, "retry_after": breaker.retry_after_s}
                for name, breaker in service.breakers.items()
            ]
        }

    @router.post(
        "/breakers/{name}/reset",
        status_code=204,
        response_class=Response,
        responses=failures(ResourceNotFoundError, SchemaError),
    )
    async def reset_breaker(name: Annotated[str, Path(max_length=40)]) -> None:
        """Closes a breaker, within seconds in all replicas; for operators, with the scope admin."""
        if name not in service.breakers:
            raise ResourceNotFoundError(resource_type="breaker", resource_id=name)
        await service.reset_breaker(name)

    return router


def shown(entry: Entry) -> dict[str, object]:
    fields = asdict(entry)
    retry_mode = fields.pop("retry")
    return {
        **fields,
        "retry_mode": retry_mode,
        "retryable": entry.retryable,
        "doc_url": documentation_of(entry.code),
    }


def error_pages() -> APIRouter:
    """What ``doc_url`` leads to."""
    router = APIRouter(prefix="/docs/errors", include_in_schema=False)

    @router.get("")
    async def index() -> HTMLResponse:
        return HTMLResponse(index_page())

    @router.get("/{code}")
    async def page(code: str) -> HTMLResponse:
        if code not in CATALOGUE:
            raise ResourceNotFoundError(resource_type="error code", resource_id=code[:60])
        return HTMLResponse(page_of_code(CATALOGUE[code]))

    return router


def health_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/health", tags=["health"])

    @router.get("", responses=failures(edge=OPEN) | {503: {"description": "Requests cannot be served"}})
    async def health() -> JSONResponse:
        """Status and metrics of the components; 503 when requests cannot be served."""
        healthy, components = await service.health()
        status = {"status": "ok" if healthy else "unavailable", "components": components}
        return JSONResponse(status, 200 if healthy else 503)

    @router.get("/live", responses=failures(edge=OPEN))
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @router.get("/ready", responses=failures(ServiceUnavailableError, edge=OPEN))
    async def ready() -> dict[str, str]:
        """A predictor answers an empty call."""
        await service.ping()
        return {"status": "ok"}

    return router
