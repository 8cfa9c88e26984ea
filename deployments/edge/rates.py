"""How often a client may ask, by the class of the route."""

import logging
import time
from typing import Any, Final, Literal

import limits as rate_limits
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError as RateStorageError
from limits.storage import storage_from_string
from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import RateLimitedError
from deployments.edge.border import OPEN_PATHS, route_path
from deployments.settings import EdgeSettings

log = logging.getLogger(__name__)

RouteClass = Literal["read", "predict", "train", "write", "denied"]
_STORE_TIMEOUT_S: Final = 0.5

_REDIS: Final = {
    "implementation": "redispy",
    "socket_timeout": _STORE_TIMEOUT_S,
    "socket_connect_timeout": _STORE_TIMEOUT_S,
}


class Rates:
    """Counts requests of a client in sliding windows, in memory or in a Redis that several ingresses share.

    When that store fails, requests pass: a limit is no reason to stop the service.
    """

    def __init__(self, settings: EdgeSettings) -> None:
        self._limits = {
            name: rate_limits.parse(rate)
            for name, rate in settings.rates.model_dump().items()
            if rate is not None
        }
        url = settings.rates_storage
        options: dict[str, Any] = {} if url.startswith("memory") else _REDIS
        storage = storage_from_string(f"async+{url}", wrap_exceptions=True, **options)
        self._limiter = SlidingWindowCounterRateLimiter(storage)

    async def take(self, route_class: RouteClass, client: str) -> None:
        """Counts one request.

        Raises:
            RateLimitedError: if the client had as many already; it names the seconds to wait.
        """
        limit = self._limits.get(route_class)
        if limit is None:
            return
        try:
            if await self._limiter.hit(limit, route_class, client):
                return
            reset_at = (await self._limiter.get_window_stats(limit, route_class, client)).reset_time
        except RateStorageError:
            log.warning("the store of rate limits does not answer; requests pass uncounted")
            return
        raise RateLimitedError(
            "Rate limit exceeded. Please try again later.",
            retry_after=max(1.0, reset_at - time.time()),
            limit=str(limit),
            resource=f"{route_class} requests",
        )


class RateLimits:
    """Needs the ``client`` that ``Authentication`` leaves in the state of the request."""

    def __init__(self, app: ASGIApp, *, rates: Rates) -> None:
        self._app, self._rates = app, rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not (path := route_path(scope)).startswith(OPEN_PATHS):
            await self._rates.take(route_class(scope["method"], path), scope["state"]["client"])
        await self._app(scope, receive, send)


def route_class(method: str, path: str) -> RouteClass:
    path = path.rstrip("/")
    if method in ("GET", "HEAD", "OPTIONS"):
        return "read"
    if path.endswith("/predict"):
        return "predict"
    training = ("/train", "/distill", "/training-jobs", "/retry", "/restart")
    return "train" if path.endswith(training) else "write"
