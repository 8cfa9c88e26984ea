"""What happens before a route, as pure ASGI middleware: who asks, how often, how much, and whether again.

From the outside in: ``Sockets``, which alone guards WebSockets, ``Border`` (ids, errors written down),
``Authentication`` (tokens and scopes), ``RateLimits``, ``Bodies`` (sizes, speed, compression),
``Idempotency``. Each raises errors of ours.
"""

from collections.abc import Callable

from starlette.middleware import Middleware

from deployments.edge.authentication import Authentication
from deployments.edge.bodies import Bodies
from deployments.edge.border import Border, Observer
from deployments.edge.clients import Proxies
from deployments.edge.idempotency import Idempotency, KeyLedger
from deployments.edge.rates import RateLimits, Rates
from deployments.edge.sockets import Sockets
from deployments.edge.tokens import Tokens
from deployments.settings import Settings


def edge(
    settings: Settings,
    ledger: KeyLedger,
    observe: Observer,
    clock: Callable[[], float],
    *,
    sends_request_id: bool,
) -> list[Middleware]:
    """The middleware of the service, outermost first.

    Args:
        clock: Monotonic seconds.
        sends_request_id: False behind Ray Serve, which adds the header to every answer itself.

    Raises:
        OSError: if the file of tokens cannot be read.
    """
    rates = Rates(settings.edge)
    proxies = Proxies(settings.edge.trusted_proxies)
    tokens = Tokens.configured(settings)
    return [
        Middleware(Sockets, tokens=tokens, rates=rates, proxies=proxies, observe=observe),
        Middleware(
            Border, observe=observe, clock=clock, limits=settings.limits, sends_request_id=sends_request_id
        ),
        Middleware(Authentication, tokens=tokens, rates=rates, proxies=proxies),
        Middleware(RateLimits, rates=rates),
        Middleware(Bodies, limits=settings.limits, pace=settings.edge, clock=clock),
        Middleware(Idempotency, ledger=ledger, replayed=observe.replayed),
    ]
