"""Health, limits and the catalogue of errors."""

from dataclasses import asdict

from fastapi import APIRouter
from starlette.responses import JSONResponse

from core.catalogue import CATALOGUE
from core.contract.fields import DISTILL_NUMBERS, HIDDEN_NUMBERS, TRAIN_NUMBERS
from deployments.service import Service


def system_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["system"])

    @router.get("/limits")
    async def limits() -> dict[str, object]:
        """What a client would otherwise learn by failing."""
        limits, registry = service.settings.limits, service.settings.registry
        return {
            **limits.model_dump(),
            "train": {name: number.limits() for name, number in {**TRAIN_NUMBERS, **HIDDEN_NUMBERS}.items()},
            "distill": {name: number.limits() for name, number in DISTILL_NUMBERS.items()},
            "registry": registry.model_dump(include={"ttl_seconds", "max_items", "max_bytes"}),
            "queue": service.queue(),
        }

    @router.get("/errors")
    async def errors() -> dict[str, object]:
        """Every error code: its type, severity, status, whether to retry, and what to do."""
        return {"data": [{**asdict(entry), "retryable": entry.retryable} for entry in CATALOGUE.values()]}

    return router


def health_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/health", tags=["health"])

    @router.get("")
    async def health() -> JSONResponse:
        """Status and metrics of the components; 503 when requests cannot be served."""
        healthy, components = await service.health()
        status = {"status": "ok" if healthy else "unavailable", "components": components}
        return JSONResponse(status, 200 if healthy else 503)

    @router.get("/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @router.get("/ready")
    async def ready() -> dict[str, str]:
        """A predictor answers an empty call."""
        await service.ping()
        return {"status": "ok"}

    return router
