"""The registry of runs: a detached actor that owns every bundle with a time to live, and its client."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

import numpy as np
import ray
from ray.actor import ActorHandle

from core.errors import (
    RunNotFoundError,
    StorageError,
)
from core.idempotency import IdempotencyKeys, StoredAnswer
from core.paging import Page
from core.registry_index import RegistryIndex, RunEntry
from core.resilience import POLICIES, Breaker, Caller, Integration
from core.saved_models import exists_error, model_path
from core.storage import Storage
from deployments.detached import Detached
from deployments.instruments import telemetry
from deployments.origin import Origin
from deployments.settings import Settings, TelemetrySettings

log = logging.getLogger(__name__)

PROTOCOL_VERSION: Final = 4
FOLDER: Final = "runs"
SWEEP_EVERY_S: Final = 15.0
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RegistryConfiguration:
    """What an actor was started with; two that differ cannot serve the same application."""

    storage_url: str
    storage_options: dict[str, object]
    ttl_s: float
    max_items: int
    max_bytes: int
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    protocol_version: int = PROTOCOL_VERSION

    @classmethod
    def of(cls, settings: Settings) -> "RegistryConfiguration":
        registry = settings.registry
        return cls(
            storage_url=settings.expanded_storage_url(),
            storage_options=settings.storage_options,
            ttl_s=registry.ttl_seconds,
            max_items=registry.max_items,
            max_bytes=registry.max_bytes,
            telemetry=settings.telemetry,
        )


@dataclass(frozen=True, slots=True)
class RegistryStatus:
    items: int
    bytes: int
    configuration: RegistryConfiguration


class BundleRegistry:
    """Bundles as files in storage, ``runs/<run_id>.safetensors`` with ``.json`` beside it, and in memory.

    The actor is the only writer of that folder. The entry is written after its bundle and deleted before it,
    so a run exists exactly when its entry does. After a restart the entries are read back with their
    remaining lifetimes, which may be short by a sixtieth of the time to live: uses are written that rarely.

    Args:
        put: Puts bytes into shared memory and returns what ``use`` hands out; ``ray.put`` but in tests.
    """

    def __init__(
        self,
        configuration: RegistryConfiguration,
        clock: Callable[[], float] = time.time,
        put: Callable[[np.ndarray], object] = ray.put,
    ) -> None:
        self._configuration = configuration
        self._clock, self._put = clock, put
        self._storage = Storage(configuration.storage_url, configuration.storage_options)
        self._index = RegistryIndex(
            ttl_s=configuration.ttl_s,
            max_items=configuration.max_items,
            max_bytes=configuration.max_bytes,
            clock=clock,
        )
        self._keys = IdempotencyKeys(self._storage, clock)
        self.observer = telemetry(configuration.telemetry, "registry")
        self._objects: dict[str, object] = {}
        self._persisted_expiry: dict[str, float] = {}
        self._gone: set[str] = set()  # runs whose files are still to be deleted
        self._resets: dict[str, float] = {}
        self._restore()

    async def store(self, entry: RunEntry, file: np.ndarray, origin: Origin | None = None) -> RunEntry:
        """Keeps a run from now on; room is made by letting others go.

        Args:
            file: The bundle file, uint8.
        """
        await self._expire()
        self._gone.discard(entry.run_id)
        await asyncio.to_thread(self._storage.write, bundle_path(entry.run_id), file.tobytes())
        evicted = self._index.add(entry)
        self._objects[entry.run_id] = self._put(file)
        stored = self._index.peek(entry.run_id) or entry
        await self._persist(stored)
        await self._drop(evicted, "room")
        fields = {"run_id": entry.run_id, **(origin.log_fields() if origin else {})}
        log.info("run %s is kept, %d let go for it", entry.run_id, len(evicted), extra=fields)
        return stored

    async def use(self, run_id: str) -> tuple[RunEntry, list[object]] | None:
        """``read``, and the run's time to live starts anew."""
        await self.touch(run_id)
        return await self.read(run_id)

    async def read(self, run_id: str) -> tuple[RunEntry, list[object]] | None:
        """Returns:
        The entry and, in a list so that Ray does not resolve it, a reference to the file as uint8 array;
        None for a run that is not live.
        """
        entry = self._index.peek(run_id)
        if entry is None:
            return None
        if run_id not in self._objects:
            try:
                data = await asyncio.to_thread(self._storage.read, bundle_path(run_id))
            except FileNotFoundError:
                await self.remove(run_id)
                return None
            self._objects.setdefault(run_id, self._put(np.frombuffer(data, np.uint8)))
        return entry, [self._objects[run_id]]

    async def touch(self, run_id: str) -> RunEntry | None:
        """Restarts the run's time to live without handing out its file."""
        entry = self._index.use(run_id)
        if entry is not None:
            written = self._persisted_expiry.get(run_id, 0)
            if entry.expires_at - written >= self._configuration.ttl_s / 60:
                await self._persist(entry)
        return entry

    async def peek(self, run_id: str) -> RunEntry | None:
        return self._index.peek(run_id)

    async def page(self, limit: int, cursor: str | None) -> Page[RunEntry]:
        return self._index.page(limit, cursor)

    async def remove(self, run_id: str) -> bool:
        removed = self._index.remove(run_id)
        if removed:
            self._forget([run_id])
            await asyncio.to_thread(self._delete_files, run_id)
            self._gone.discard(run_id)
        return removed

    async def save(self, run_id: str, model_id: str, overwrite: bool) -> str | None:
        """Copies a run's bundle to a saved model.

        Returns:
            Its path in storage; None for a run that is not live.

        Raises:
            ModelExistsError
        """
        if self._index.peek(run_id) is None:
            return None
        path = model_path(model_id)
        try:
            await asyncio.to_thread(self._storage.copy, bundle_path(run_id), path, exclusive=not overwrite)
        except FileExistsError:
            raise exists_error(model_id) from None
        return path

    async def status(self) -> RegistryStatus:
        await self._expire()
        return RegistryStatus(len(self._index), self._index.total_bytes, self._configuration)

    async def reset_breaker(self, service: str) -> None:
        """Tells all who ask for ``resets`` from now on, and closes this process's own."""
        self._resets[service] = self._clock()
        if (breaker := self._storage.breaker) is not None and breaker.service == service:
            breaker.reset()

    async def resets(self) -> dict[str, float]:
        """When an operator last reset the breaker of each service; forgotten with the process."""
        return self._resets

    async def claim_key(self, name: str, holder: str) -> StoredAnswer | None:
        """See ``core.idempotency``; the actor has the keys because it is one for all ingresses."""
        return await asyncio.to_thread(self._keys.claim, name, holder)

    async def renew_key(self, name: str, holder: str) -> None:
        self._keys.renew(name, holder)

    async def complete_key(self, name: str, answer: StoredAnswer, holder: str) -> None:
        await asyncio.to_thread(self._keys.complete, name, answer, holder)

    async def release_key(self, name: str, holder: str) -> None:
        self._keys.release(name, holder)

    async def sweep(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        """Drops expired runs, at most ``SWEEP_EVERY_S`` late, for ever; nobody need ask."""
        while True:
            await sleep(SWEEP_EVERY_S)
            await self._expire()

    def _restore(self) -> None:
        entries, orphans = [], {*self._storage.names(FOLDER, ".safetensors")}
        for name in self._storage.names(FOLDER, ".json"):
            text = self._storage.read(
                name
            )  # storage that fails ends the start, and the next call starts anew
            try:
                entry = RunEntry.from_json(text.decode())
            except (StorageError, UnicodeDecodeError):
                log.exception("%s is damaged and is passed over", name)
                self._storage.delete(name)
                continue
            if bundle_path(entry.run_id) in orphans:
                orphans.discard(bundle_path(entry.run_id))
                entries.append(entry)
                self._persisted_expiry[entry.run_id] = entry.expires_at
        for run_id in self._index.restore(entries):
            self._delete_files(run_id)
        for name in orphans:
            self._storage.delete(name)

    async def _persist(self, entry: RunEntry) -> None:
        self._persisted_expiry[entry.run_id] = entry.expires_at
        await asyncio.to_thread(self._storage.write, entry_path(entry.run_id), entry.to_json().encode())
        if self._index.peek(entry.run_id) is None:  # deleted while it was written
            await asyncio.to_thread(self._storage.delete, entry_path(entry.run_id))

    async def _expire(self) -> None:
        await self._drop(self._index.expire(), "expired")

    async def _drop(self, run_ids: list[str], reason: Literal["expired", "room"]) -> None:
        """Forgets runs and deletes their files, those of earlier ones too whose files could not be deleted.

        Storage that fails now spoils no other call: the next sweep tries again.
        """
        self.observer.evicted(len(run_ids), reason)
        self._forget(run_ids)
        for run_id in list(self._gone):
            try:
                await asyncio.to_thread(self._delete_files, run_id)
            except StorageError:
                log.exception("files of runs that are gone could not be deleted; the next sweep tries again")
                return
            self._gone.discard(run_id)

    def _forget(self, run_ids: list[str]) -> None:
        self.observer.kept(len(self._index), self._index.total_bytes)
        for run_id in run_ids:
            self._objects.pop(run_id, None)
            self._persisted_expiry.pop(run_id, None)
            self._gone.add(run_id)

    def _delete_files(self, run_id: str) -> None:
        self._storage.delete(entry_path(run_id))
        self._storage.delete(bundle_path(run_id))


class RegistryActor(BundleRegistry):
    """The registry as it runs: on the loop of its actor, sweeping by itself."""

    def __init__(self, configuration: RegistryConfiguration) -> None:
        super().__init__(configuration)
        self._sweeping = asyncio.get_running_loop().create_task(self.sweep(asyncio.sleep))


def bundle_path(run_id: str) -> str:
    return f"{FOLDER}/{run_id}.safetensors"


def entry_path(run_id: str) -> str:
    return f"{FOLDER}/{run_id}.json"


class RegistryClient:
    """The registry as replicas see it: finds or starts the actor, and outlasts its restarts.

    Every method may raise ServiceUnavailableError when the actor does not come back in time, and
    CircuitOpenError when it did not for others just now.
    Calls are repeated then: storing a run or claiming a key twice is doing it once, but a save or a removal
    whose answer was lost is refused the second time.
    """

    def __init__(self, settings: Settings) -> None:
        registry = settings.registry
        self._detached: Detached[RegistryActor] = Detached(
            RegistryActor,
            registry.name,
            registry.namespace,
            RegistryConfiguration.of(settings),
            {"num_cpus": 0.05},
            Caller("registry", POLICIES[Integration.REGISTRY]),
            _configuration_of,
        )

    @property
    def breaker(self) -> Breaker | None:
        return self._detached.breaker

    async def store(self, entry: RunEntry, file: bytes, origin: Origin | None = None) -> RunEntry:
        reference = ray.put(np.frombuffer(file, np.uint8))
        return await self._call(lambda actor: actor.store.remote(entry, reference, origin))

    async def use(self, run_id: str) -> tuple[RunEntry, memoryview]:
        """The entry and the bundle file, read from shared memory; the time to live starts anew.

        Raises:
            RunNotFoundError
        """
        return await self._fetch(run_id, "use")

    async def read(self, run_id: str) -> memoryview:
        """The bundle file, with the time to live left as it is; raises RunNotFoundError."""
        return (await self._fetch(run_id, "read"))[1]

    async def _fetch(self, run_id: str, how: Literal["use", "read"]) -> tuple[RunEntry, memoryview]:
        async def fetch(actor: ActorHandle[RegistryActor]) -> tuple[RunEntry, memoryview]:
            found = await getattr(actor, how).remote(run_id)
            if found is None:
                raise run_not_found(run_id)
            entry, [reference] = found
            return entry, memoryview(await reference)

        return await self._call(fetch)

    async def touch(self, run_id: str) -> RunEntry:
        """Raises RunNotFoundError."""
        entry: RunEntry | None = await self._call(lambda actor: actor.touch.remote(run_id))
        return _found(entry, run_id)

    async def peek(self, run_id: str) -> RunEntry:
        """Raises RunNotFoundError."""
        entry: RunEntry | None = await self._call(lambda actor: actor.peek.remote(run_id))
        return _found(entry, run_id)

    async def page(self, limit: int, cursor: str | None) -> Page[RunEntry]:
        return await self._call(lambda actor: actor.page.remote(limit, cursor))

    async def remove(self, run_id: str) -> None:
        """Raises RunNotFoundError."""
        if not await self._call(lambda actor: actor.remove.remote(run_id)):
            raise run_not_found(run_id)

    async def save(self, run_id: str, model_id: str, overwrite: bool) -> str:
        """Raises RunNotFoundError, ModelExistsError."""
        path: str | None = await self._call(lambda actor: actor.save.remote(run_id, model_id, overwrite))
        return _found(path, run_id)

    async def status(self) -> RegistryStatus:
        return await self._call(lambda actor: actor.status.remote())

    async def reset_breaker(self, service: str) -> None:
        await self._call(lambda actor: actor.reset_breaker.remote(service))

    async def resets(self) -> dict[str, float]:
        return await self._call(lambda actor: actor.resets.remote())

    async def claim_key(self, name: str, holder: str) -> StoredAnswer | None:
        return await self._call(lambda actor: actor.claim_key.remote(name, holder))

    async def renew_key(self, name: str, holder: str) -> None:
        await self._call(lambda actor: actor.renew_key.remote(name, holder))

    async def complete_key(self, name: str, answer: StoredAnswer, holder: str) -> None:
        await self._call(lambda actor: actor.complete_key.remote(name, answer, holder))

    async def release_key(self, name: str, holder: str) -> None:
        await self._call(lambda actor: actor.release_key.remote(name, holder))

    async def _call(self, call: Callable[["ActorHandle[RegistryActor]"], Awaitable[Result]]) -> Result:
        return await self._detached.call(call)


async def _configuration_of(actor: "ActorHandle[RegistryActor]") -> RegistryConfiguration:
    status: RegistryStatus = await actor.status.remote()
    return status.configuration


def run_not_found(run_id: str) -> RunNotFoundError:
    return RunNotFoundError(
        f"There is no run {run_id!r:.40}, or it has expired: train again.",
        run_id=run_id[:128],
    )


def _found(result: Result | None, run_id: str) -> Result:
    if result is None:
        raise run_not_found(run_id)
    return result
