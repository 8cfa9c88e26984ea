"""The registry of runs with an injected clock: lifetimes, room, restarts."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from core.errors import ModelExistsError, StorageError
from core.registry_index import RunEntry
from core.saved_models import model_path
from core.storage import Storage
from deployments.registry import (
    SWEEP_EVERY_S,
    BundleRegistry,
    RegistryConfiguration,
    bundle_path,
    entry_path,
)

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def configuration(tmp_path: Path) -> RegistryConfiguration:
    return RegistryConfiguration(
        storage_url=f"file://{tmp_path}", storage_options={}, ttl_s=900, max_items=3, max_bytes=1000
    )


def start(configuration: RegistryConfiguration, clock: Clock) -> BundleRegistry:
    return BundleRegistry(configuration, clock=clock, put=lambda data: data.tobytes())


def entry(run_id: str, size: int = 10) -> RunEntry:
    return RunEntry(
        run_id=run_id,
        kind="train",
        task="classification",
        training_mode="mlp_dense",
        metric_name="accuracy",
        metric_value=0.9,
        size_bytes=size,
        created_at=0,
        expires_at=0,
        last_used_at=None,
        schema={},
        lineage={},
    )


def file(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


async def test_stored_run_is_used_with_its_file(configuration, clock: Clock) -> None:
    registry = start(configuration, clock)
    stored = await registry.store(entry("a"), file("bundle of a"))
    assert stored.expires_at == clock.now + 900
    assert await registry.use("a") == (dataclasses.replace(stored, last_used_at=clock.now), [b"bundle of a"])
    assert await registry.use("b") is None


async def test_run_expires_to_the_second_and_leaves_no_file(configuration, clock: Clock) -> None:
    registry = start(configuration, clock)
    await registry.store(entry("a"), file("x"))
    clock.now += 899.9
    assert await registry.peek("a") is not None
    clock.now += 0.1
    assert await registry.peek("a") is None
    assert await registry.use("a") is None
    assert (await registry.status()).items == 0
    assert Storage(configuration.storage_url).names("runs") == []


class EnoughError(Exception):
    pass


def sleeps(clock: Clock, count: int, before: list[list[str]], storage: Storage):
    """Lets time pass that often, noting which files lie there, and ends the sweeping."""

    async def sleep(seconds: float) -> None:
        before.append(storage.names("runs"))
        if len(before) > count:
            raise EnoughError
        clock.now += seconds

    return sleep


async def test_expired_files_go_though_nobody_asks(configuration, clock: Clock) -> None:
    registry, storage = start(configuration, clock), Storage(configuration.storage_url)
    await registry.store(entry("a"), file("x"))
    seen: list[list[str]] = []
    with pytest.raises(EnoughError):
        await registry.sweep(sleeps(clock, round(configuration.ttl_s / SWEEP_EVERY_S), seen, storage))
    assert all(names == [entry_path("a"), bundle_path("a")] for names in seen[:-1])
    assert seen[-1] == []


class Forgetful(BundleRegistry):
    """Its storage fails when it deletes for the first time."""

    failures = 1

    def _delete_files(self, run_id: str) -> None:
        if self.failures:
            self.failures -= 1
            raise StorageError("the disk is away")
        super()._delete_files(run_id)


async def test_files_that_could_not_be_deleted_are_tried_again(configuration, clock: Clock) -> None:
    registry = Forgetful(configuration, clock=clock, put=lambda data: data.tobytes())
    await registry.store(entry("a"), file("x"))
    clock.now += configuration.ttl_s
    seen: list[list[str]] = []
    with pytest.raises(EnoughError):
        await registry.sweep(sleeps(clock, 2, seen, Storage(configuration.storage_url)))
    assert [len(names) for names in seen] == [2, 2, 0]


async def test_use_restarts_the_lifetime_and_looking_does_not(configuration, clock: Clock) -> None:
    registry = start(configuration, clock)
    await registry.store(entry("used"), file("x"))
    await registry.store(entry("seen"), file("x"))
    clock.now += 600
    await registry.touch("used")
    await registry.peek("seen")
    await registry.page(20, None)
    clock.now += 600
    assert await registry.peek("used") is not None
    assert await registry.peek("seen") is None


async def test_room_is_made_by_what_would_expire_first(configuration, clock: Clock) -> None:
    registry = start(configuration, clock)
    for run_id in "abc":
        await registry.store(entry(run_id), file("x"))
        clock.now += 1
    await registry.touch("a")
    await registry.store(entry("d"), file("x"))
    assert {e.run_id for e in (await registry.page(20, None)).data} == {"a", "c", "d"}
    assert not Storage(configuration.storage_url).exists(bundle_path("b"))


async def test_byte_budget_evicts_but_never_refuses(configuration, clock: Clock) -> None:
    registry = start(configuration, clock)
    await registry.store(entry("small", 400), file("x"))
    await registry.store(entry("huge", 5000), file("x"))
    assert {e.run_id for e in (await registry.page(20, None)).data} == {"huge"}


async def test_restart_keeps_every_run_with_its_remaining_life(configuration, clock: Clock) -> None:
    registry = start(configuration, clock)
    await registry.store(entry("a"), file("bundle of a"))
    clock.now += 500
    await registry.store(entry("b"), file("bundle of b"))
    again = start(configuration, clock)
    assert await again.use("a") is not None
    _, [data] = await again.use("b")
    assert data == b"bundle of b"
    third = start(configuration, clock)
    clock.now += 899
    assert await third.peek("a") is not None, "the use before the restart was forgotten"
    clock.now += 1
    assert await third.peek("a") is None


async def test_restart_after_the_lifetime_finds_nothing_and_cleans_up(configuration, clock: Clock) -> None:
    await start(configuration, clock).store(entry("a"), file("x"))
    clock.now += 901
    assert (await start(configuration, clock).status()).items == 0
    assert Storage(configuration.storage_url).names("runs") == []


async def test_restart_passes_over_damage_and_removes_orphans(configuration, clock: Clock) -> None:
    registry = start(configuration, clock)
    await registry.store(entry("good"), file("x"))
    storage = Storage(configuration.storage_url)
    storage.write(bundle_path("orphan"), b"no entry")
    storage.write(entry_path("damaged"), b"{")
    storage.write(bundle_path("damaged"), b"x")
    storage.write(entry_path("empty"), entry("empty").to_json().encode())
    again = start(configuration, clock)
    assert [e.run_id for e in (await again.page(20, None)).data] == ["good"]
    assert not storage.exists(bundle_path("orphan"))
    assert not storage.exists(bundle_path("damaged"))


async def test_frequent_uses_are_written_down_rarely(configuration, clock: Clock) -> None:
    registry = start(configuration, clock)
    await registry.store(entry("a"), file("x"))
    storage = Storage(configuration.storage_url)
    written = set()
    for _ in range(60):
        clock.now += 1
        await registry.touch("a")
        written.add(storage.read(entry_path("a")))
    assert len(written) == 5, "a minute of uses, one every 15 s, and the first"


async def test_removed_run_is_gone_with_its_files(configuration, clock: Clock) -> None:
    registry = start(configuration, clock)
    await registry.store(entry("a"), file("x"))
    assert await registry.remove("a")
    assert not await registry.remove("a")
    assert Storage(configuration.storage_url).names("runs") == []


async def test_saved_run_is_a_model_that_outlives_it(configuration, clock: Clock) -> None:
    registry = start(configuration, clock)
    await registry.store(entry("a"), file("bundle"))
    assert await registry.save("a", "kept", overwrite=False) == model_path("kept")
    with pytest.raises(ModelExistsError):
        await registry.save("a", "kept", overwrite=False)
    assert await registry.save("a", "kept", overwrite=True)
    assert await registry.save("nobody", "kept", overwrite=True) is None
    await registry.remove("a")
    assert Storage(configuration.storage_url).read(model_path("kept")) == b"bundle"


async def test_storage_that_cannot_delete_does_not_spoil_the_next_store(configuration, clock: Clock) -> None:
    registry = Forgetful(configuration, clock=clock, put=lambda data: data.tobytes())
    storage = Storage(configuration.storage_url)
    await registry.store(entry("a"), file("x"))
    clock.now += configuration.ttl_s
    assert (await registry.store(entry("b"), file("y"))).run_id == "b"
    assert entry_path("b") in storage.names("runs")
    await registry.status()  # the next call that lets runs go deletes what was left
    assert storage.names("runs") == [entry_path("b"), bundle_path("b")]


async def test_storage_that_fails_at_a_restart_loses_no_run(configuration, clock: Clock, monkeypatch) -> None:
    await start(configuration, clock).store(entry("a"), file("x"))
    with monkeypatch.context() as broken:
        broken.setattr(Storage, "read", lambda storage, name: (_ for _ in ()).throw(StorageError("away")))
        with pytest.raises(StorageError):
            start(configuration, clock)
    assert (await start(configuration, clock).peek("a")).run_id == "a"
