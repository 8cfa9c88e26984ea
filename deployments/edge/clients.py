"""Which address a request comes from, where proxies may stand between."""

import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import Scope

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Proxies:
    """The proxies whose ``X-Forwarded-For`` is believed. Anybody else's is ignored: it can say anything."""

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = tuple(trusted)

    def address_of(self, scope: Scope) -> str:
        """The nearest address that is no trusted proxy."""
        client = scope.get("client") or ("unknown", 0)
        address = str(client[0])
        forwarded = ",".join(Headers(scope=scope).getlist("x-forwarded-for"))
        hops = [hop.strip() for hop in forwarded.split(",") if hop.strip()]
        while hops and self._is_trusted(address):
            address = hops.pop()
        return address[:64]

    def _is_trusted(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._trusted)
