"""HTTP to addresses that strangers name: never into this network, unless that is allowed."""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import httpx

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

_INNER: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's metadata, on a public address
        "64:ff9b::/96",  # NAT64 and 6to4: an IPv4 address in disguise
        "64:ff9b:1::/48",
        "2002::/16",
        "2001::/32",
        "::/96",
    )
)
_LOOKUPS: Final = 16


class AddressRefusedError(Exception):
    """A name that leads into a network where callbacks may not go."""


def is_public(address: str) -> bool:
    """Whether an address is of the open internet: not private, loopback, link-local, metadata, multicast.

    >>> [is_public(a) for a in ("93.184.216.34", "127.0.0.1", "169.254.169.254", "::ffff:10.0.0.1", "::1")]
    [True, False, False, False, False]
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    inner = any(parsed in network for network in _INNER if network.version == parsed.version)
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved and not inner


class CheckedTransport(httpx.AsyncBaseTransport):
    """Connects to the very address that was checked, so that a name cannot change between check and call.

    Each request has a connection of its own: one that is kept would be of whatever name came first.

    Args:
        private: Whether any address will do.
    """

    def __init__(self, *, private: bool, resolve: Resolver, inner: httpx.AsyncBaseTransport) -> None:
        self._private, self._resolve, self._inner = private, resolve, inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises AddressRefusedError, and what httpx raises."""
        host = request.url.raw_host.decode("ascii")
        addresses = await self._resolve(host, request.url.port or _port_of(request.url.scheme))
        if not self._private and not all(map(is_public, addresses)):
            raise AddressRefusedError("The host of callback_url must have public addresses alone.")
        failure: httpx.TransportError = httpx.ConnectError("the host has no address")
        for address in addresses:
            try:
                return await self._inner.handle_async_request(_pinned(request, host, address))
            except httpx.ConnectError as error:
                failure = error
        raise failure

    async def aclose(self) -> None:
        await self._inner.aclose()


def checked_transport(*, private: bool) -> CheckedTransport:
    """Over the network."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    inner = httpx.AsyncHTTPTransport(limits=limits, trust_env=False)
    return CheckedTransport(private=private, resolve=system_resolver(), inner=inner)


def system_resolver() -> Resolver:
    """Of the operating system, in threads of its own: names that nobody answers for hold no others up."""
    threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="resolver")

    async def resolve(host: str, port: int) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        lookup = loop.run_in_executor(threads, _look_up, host, port)
        try:
            return await lookup
        except OSError as error:
            raise httpx.ConnectError("the host of callback_url is not known") from error

    return resolve


def _look_up(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _pinned(request: httpx.Request, host: str, address: str) -> httpx.Request:
    """The request to an address; its Host header and the name in its TLS handshake stay."""
    return httpx.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": host},
    )


def _port_of(scheme: str) -> int:
    return 443 if scheme == "https" else 80
