"""The web application: routes, error translation and the edge, over a ``Service``."""

import hashlib
import time
from typing import Final

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import MalformedBodyError, MethodNotAllowedError, NotFoundError, SchemaError, StillhouseError
from deployments.edge import edge
from deployments.routes.callbacks import callback_routes
from deployments.routes.datasets import dataset_routes
from deployments.routes.examples import EXAMPLE_CSV
from deployments.routes.failures import with_shapes
from deployments.routes.job_history import job_history_routes
from deployments.routes.job_sockets import training_job_sockets
from deployments.routes.jobs import job_routes
from deployments.routes.models import model_routes, run_routes
from deployments.routes.predict import predict_routes
from deployments.routes.system import error_pages, health_routes, system_routes
from deployments.routes.training_jobs import training_job_routes
from deployments.service import Service

DESCRIPTION = """Trains PyTorch models on tables, distils them into small fast ones and serves them.

The examples work when sent in this order: upload the dataset, train, distil, predict. Errors come in the
dialect of their route: `{"status": "error", "error": …}` from train and distil, `{"detail": …}` elsewhere,
and RFC 9457 for `Accept: application/problem+json`; each carries `X-Request-ID`, `X-Error-Code` and
`X-Error-Type`."""


def build_web_app(service: Service, *, behind_serve: bool = False) -> FastAPI:
    """Everything that answers HTTP."""
    settings = service.settings
    app = FastAPIOffline(
        title="Stillhouse",
        version="1",
        description=DESCRIPTION,
        redoc_url=None,
        redirect_slashes=False,  # a redirect has no dialect, and names whatever host the client sent
        dependencies=[Depends(HTTPBearer(auto_error=False))],  # for the documentation; the edge checks
        middleware=[
            *edge(
                settings, service.keys, service.observer, time.monotonic, sends_request_id=not behind_serve
            ),
            Middleware(HeadAsGet),
        ],
    )
    example = f"csv-{hashlib.sha256(EXAMPLE_CSV.encode()).hexdigest()[:32]}"
    versioned = (
        job_routes(service, example),
        dataset_routes(service),
        run_routes(service),
        model_routes(service),
        predict_routes(service),
        training_job_routes(service),
        job_history_routes(service),
        callback_routes(service),
    )
    others = (training_job_sockets(service), system_routes(service), health_routes(service), error_pages())
    app.state.templates = []
    for prefix, routers in (("/api/v1", versioned), ("", others)):
        for router in routers:
            app.include_router(router, prefix=prefix)
            documented = [r for r in router.routes if isinstance(r, APIRoute) and r.include_in_schema]
            app.state.templates += [f"{prefix}{route.path_format}" for route in documented]
    app.add_exception_handler(HTTPException, _name_http_error)
    app.add_exception_handler(RequestValidationError, _name_schema_error)
    undocumented = app.openapi
    app.openapi = lambda: with_shapes(undocumented())  # type: ignore[method-assign]
    return app


class HeadAsGet:
    """Answers HEAD as GET without the body, which Starlette's own routes do and FastAPI's do not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_headers(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, send_headers)


async def _name_http_error(request: Request, error: Exception) -> Response:
    """Starlette's and FastAPI's own errors as ours; the edge writes them down."""
    assert isinstance(error, HTTPException)  # noqa: S101  # registered for these
    if isinstance(error.__cause__, StillhouseError):
        raise error.__cause__
    if error.status_code == 404:
        raise NotFoundError("There is nothing at this address: GET /docs lists the routes.")
    if error.status_code == 405:
        allowed = ", ".join(_allowed_methods(request))
        raise MethodNotAllowedError(f"This route takes {allowed or 'other methods'}.", allow=allowed)
    raise MalformedBodyError(str(error.detail))


_ROUTED: Final = {"HEAD": "GET"}


def _allowed_methods(request: Request) -> list[str]:
    """What the path takes. Starlette's own Allow header knows only the first route of a path."""
    routes = request.app.router.routes
    return [
        method
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
        if any(
            route.matches({**request.scope, "method": _ROUTED.get(method, method)})[0] is Match.FULL
            for route in routes
        )
    ]


async def _name_schema_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  # registered for these
    raise SchemaError("The request does not fit the schema of the route.", violations=list(error.errors()))
