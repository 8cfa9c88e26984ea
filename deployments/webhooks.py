"""Tells clients what becomes of their jobs, at the ``callback_url`` that they named.

Each change of state is one POST, signed, tried until it arrives or a day has passed, at least once, in the
order of its job. An address that hangs or fails delays nobody else.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, ParamSpec, Protocol, TypeVar

import httpx

from core.errors import StillhouseError
from core.jobs.outbox import Delivery, Outbox
from deployments.addresses import AddressRefusedError
from deployments.dialects import Asked
from deployments.job_events import event_view

log = logging.getLogger(__name__)
Params = ParamSpec("Params")
Result = TypeVar("Result")

PER_HOST: Final = 4
AT_ONCE: Final = 64
WITHIN_S: Final = 10.0
LOOK_EVERY_S: Final = 0.5
_PATH: Final = "/api/v1/training-jobs"


class UndeliveredError(Exception):
    """It did not arrive; says why, for people."""


class InThread(Protocol):
    """Runs what blocks beside the loop."""

    def __call__(
        self, call: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs
    ) -> Coroutine[Any, Any, Result]: ...


class Courier:
    """Makes one delivery.

    Args:
        secret: Signs; the receiver has it too.
        clock: Unix seconds.
    """

    def __init__(
        self,
        secret: str,
        transport: httpx.AsyncBaseTransport,
        clock: Callable[[], float] = time.time,
        within_s: float = WITHIN_S,
    ) -> None:
        self._secret, self._clock, self._within_s = secret.encode(), clock, within_s
        self._client = httpx.AsyncClient(
            transport=transport, trust_env=False, follow_redirects=False, timeout=within_s
        )

    async def deliver(self, delivery: Delivery) -> None:
        """Raises UndeliveredError for all but an answer of 2xx, whose body is not read."""
        body = body_of(delivery)
        headers = {
            "content-type": "application/json",
            "user-agent": "stillhouse",
            "x-stillhouse-event-id": delivery.key,
            "x-stillhouse-signature": signature(self._secret, body, int(self._clock())),
        }
        try:
            async with asyncio.timeout(self._within_s):
                call = self._client.stream("POST", delivery.url, content=body, headers=headers)
                async with call as response:
                    status = response.status_code
        except TimeoutError:
            raise UndeliveredError(f"it did not answer within {self._within_s:g} s") from None
        except AddressRefusedError as error:
            raise UndeliveredError(str(error)) from None
        except Exception as error:  # whatever an address does, the others have their turn
            raise UndeliveredError(f"it could not be reached: {type(error).__name__}") from error
        if not 200 <= status < 300:
            raise UndeliveredError(f"it answered {status}")

    async def close(self) -> None:
        await self._client.aclose()


def body_of(delivery: Delivery) -> bytes:
    """The event as its readers have it, with the id by which a repeated one is known."""
    event = delivery.event
    shown = event_view(event, Asked(_PATH, None, event.job_id, delivery.trace_id))
    return json.dumps({"id": delivery.key, **shown}).encode()


def signature(secret: bytes, body: bytes, timestamp: int) -> str:
    """``t=…,v1=…``: HMAC-SHA256 of ``timestamp.body``, in hex; a receiver refuses old timestamps.

    >>> signature(b"k", b"{}", 1)
    't=1,v1=3dd49b2593d0f9a349e9e71c4bde3e2b862c2be4003fe9b4ba81332029310158'
    """
    signed = hmac.new(secret, f"{timestamp}.".encode() + body, hashlib.sha256)
    return f"t={timestamp},v1={signed.hexdigest()}"


class Webhooks:
    """Empties the outbox.

    Args:
        draw: From 0 to 1; spreads tries that failed.
    """

    def __init__(
        self,
        outbox: Outbox,
        courier: Courier,
        in_thread: InThread,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._outbox, self._courier, self._in_thread, self._draw = outbox, courier, in_thread, draw
        self._flying: dict[str, asyncio.Task[None]] = {}
        self._hosts: Counter[str] = Counter()  # of what flies
        self._landed = asyncio.Event()

    async def run(self) -> None:
        """For ever; ends what it has begun when it is cancelled."""
        try:
            while True:
                self._landed.clear()
                await self._start()
                await _at_most(LOOK_EVERY_S, self._landed.wait())
        finally:
            for task in self._flying.values():
                task.cancel()
            await asyncio.gather(*self._flying.values(), return_exceptions=True)
            await self._courier.close()

    async def _start(self) -> None:
        try:
            due = await self._in_thread(self._outbox.due, PER_HOST, AT_ONCE + len(self._flying))
        except StillhouseError:
            log.warning("the ledger does not say whom to call back; it is asked again")
            return
        for delivery in due:
            if delivery.key not in self._flying and self._has_room(delivery.host):
                self._hosts[delivery.host] += 1
                self._flying[delivery.key] = asyncio.create_task(self._deliver(delivery))

    def _has_room(self, host: str) -> bool:
        return len(self._flying) < AT_ONCE and self._hosts[host] < PER_HOST

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            await self._tried(delivery)
            self._landed.set()
        except StillhouseError:  # it comes again, when the ledger does: at least once
            log.warning("the ledger does not take down that %s was told", delivery.key)
        finally:
            del self._flying[delivery.key]
            self._hosts -= Counter([delivery.host])

    async def _tried(self, delivery: Delivery) -> None:
        try:
            await self._courier.deliver(delivery)
        except UndeliveredError as error:
            log.info("the callback %s did not arrive: %s", delivery.key, error)
            await self._in_thread(self._outbox.failed, delivery, str(error), self._draw())
        else:
            await self._in_thread(self._outbox.arrived, delivery)


async def _at_most(seconds: float, waiting: Awaitable[object]) -> None:
    try:
        async with asyncio.timeout(seconds):
            await waiting
    except TimeoutError:
        return
