"""The breakers of one process, and how an operator's reset reaches those of all."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from core.errors import StillhouseError
from core.resilience import Breaker
from deployments.registry import RegistryClient

log = logging.getLogger(__name__)

TELL_WITHIN_S: Final = 5.0


class Breakers:
    """What this process spares, by service.

    The registry's actor remembers when each was reset; every replica looks there when Serve asks for its
    health, every 10 s, and never while a request waits.
    """

    def __init__(self, *found: Breaker | None) -> None:
        self.by_service: Mapping[str, Breaker] = {b.service: b for b in found if b is not None}
        self._seen: Mapping[str, float] | None = None
        self._looking: asyncio.Task[None] | None = None

    async def reset(self, service: str, registry: RegistryClient) -> None:
        """Closes the breaker here, and within seconds everywhere, unless the registry is gone."""
        self.by_service[service].reset()
        try:
            async with asyncio.timeout(TELL_WITHIN_S):
                await registry.reset_breaker(service)
        except (StillhouseError, TimeoutError):
            log.warning("the breaker of %s is reset in this process alone: the registry is gone", service)

    def obey(self, registry: RegistryClient) -> None:
        """Begins to look for resets; returns at once."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(registry))

    async def _look(self, registry: RegistryClient) -> None:
        with suppress(StillhouseError):  # a registry that is gone has nothing to tell
            resets = await registry.resets()
            for service, breaker in self.by_service.items():
                at = resets.get(service)
                if self._seen is not None and at is not None and at != self._seen.get(service):
                    breaker.reset()
            self._seen = {**(self._seen or {}), **resets}
