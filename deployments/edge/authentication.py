"""Who asks, and whether they may."""

import hashlib
import re
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from core.errors import AuthenticationError, InsufficientPermissionsError
from deployments.edge.border import OPEN_PATHS, route_path
from deployments.edge.clients import Proxies
from deployments.edge.rates import Rates
from deployments.edge.tokens import Scope, Tokens, sent_token

OPERATOR_PATHS: Final = ("/api/v1/breakers",)
TRAINER_PATHS: Final = re.compile(r"/api/v1/training-jobs/[^/]+/(?:callback(?:/[^/]+)?|data)")
"""Of external trainers, which have no token but their job's: each of these routes checks it by itself."""
READING_POSTS: Final = ("/api/v1/predict", "/api/v1/training-jobs/validate")


class Authentication:
    """Checks the token, and leaves ``client`` and ``role`` in the state of the request: who it is, and what
    its token may do.

    Wrong tokens are counted by address, so that guessing ends in 429.

    Args:
        tokens: None lets everybody in.
    """

    def __init__(self, app: ASGIApp, *, tokens: Tokens | None, rates: Rates, proxies: Proxies) -> None:
        self._app, self._tokens, self._rates, self._proxies = app, tokens, rates, proxies

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            address = self._proxies.address_of(scope)
            authorization = Headers(scope=scope).get("authorization")
            path = route_path(scope)
            of_trainers = TRAINER_PATHS.fullmatch(path) is not None
            tokens = None if of_trainers or path.startswith(OPEN_PATHS) else self._tokens
            role = await role_named(tokens, authorization, address, self._rates)
            _check(role, needed_scope(scope["method"], path))
            client = client_named(tokens, authorization, address)
            scope = {**scope, "state": {**scope.get("state", {}), "client": client, "role": role}}
        await self._app(scope, receive, send)


async def role_named(tokens: Tokens | None, authorization: str | None, address: str, rates: Rates) -> Scope:
    """What the sender of a header may do.

    Raises:
        AuthenticationError: for an unknown token; RateLimitedError after too many of them.
    """
    if tokens is None:
        return Scope.ADMIN
    held = tokens.scope_of(authorization)
    if held is None:
        await rates.take("denied", address)
        raise AuthenticationError("A valid bearer token must come in the Authorization header.")
    return held


def client_named(tokens: Tokens | None, authorization: str | None, address: str) -> str:
    """Who the sender is, for limits, keys and jobs."""
    if tokens is None:
        return f"address {address}"
    return f"token {hashlib.sha256(sent_token(authorization)).hexdigest()[:16]}"


def _check(held: Scope, needed: Scope) -> None:
    if held < needed:
        role = needed.name.lower()
        raise InsufficientPermissionsError(
            f"This token may not do this: use one with the scope {role}.",
            action="do this",
            required_role=role,
        )


def needed_scope(method: str, path: str) -> Scope:
    """What a request needs: reading and predicting, making and deleting, or operating."""
    if method in ("GET", "HEAD", "OPTIONS") or path.rstrip("/") in READING_POSTS:
        return Scope.READ
    return Scope.ADMIN if path.startswith(OPERATOR_PATHS) else Scope.TRAIN


def sees_all(scope: AsgiScope) -> bool:
    """Whether the sender may see what others made: an operator, or anybody where the service runs open."""
    role: Scope = scope.get("state", {}).get("role", Scope.ADMIN)
    return role >= Scope.ADMIN


def client_of(scope: AsgiScope) -> str:
    return str(scope.get("state", {}).get("client", "unknown"))
