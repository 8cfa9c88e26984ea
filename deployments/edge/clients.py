"""Which address a request comes from, where proxies may stand between."""

import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import Scope

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Proxies:
    """The proxies whose ``X-Forwarded-For`` is believed. Anybody else's is ignored: it can say anything."""

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = tuple(trusted)

    def address_of(self, scope: Scope) -> str:
        """The nearest address that is no trusted proxy; a proxy's own where it names none."""
        client = scope.get("client") or ("unknown", 0)
        address = _parsed(str(client[0]))
        if address is None:
            return str(client[0])[:64]
        hops = ",".join(Headers(scope=scope).getlist("x-forwarded-for")).split(",")
        while self._is_trusted(address) and hops and (hop := _parsed(hops.pop())) is not None:
            address = hop
        return str(address)

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def _parsed(text: str) -> Address | None:
    """An address as proxies write it, perhaps with a port: one client must not count as many."""
    host = text.strip()
    if host.startswith("[") or host.count(":") == 1:
        host = host.rpartition(":")[0] if not host.endswith("]") else host
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
