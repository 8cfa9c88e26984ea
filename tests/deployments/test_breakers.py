"""Breakers around the calls of predictors and of the registry, and resets that reach every replica."""

import asyncio
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from core.errors import CircuitOpenError, RunNotFoundError, ServiceUnavailableError, StorageError
from core.resilience import POLICIES, Breaker, BreakerPolicy, Caller, Integration
from deployments.breakers import Breakers
from deployments.detached import Detached
from deployments.registry import BundleRegistry, RegistryClient, RegistryConfiguration
from tests.deployments.local import (
    PREDICT,
    Clock,
    LocalHandle,
    LocalObject,
    failed,
    local_service,
    settings_in,
)

pytestmark = pytest.mark.anyio
BREAKERS = "/api/v1/breakers"
ASKED = {"run_id": "r", "rows": [{}]}


class Lost:
    """A predictor that fails in one way at every request, and counts them."""

    def __init__(self, error: Exception) -> None:
        self.asked, self._error = 0, error

    async def predict(self, call):
        self.asked += 1
        raise self._error


async def states(client) -> dict[str, str]:
    return {shown["service"]: shown["state"] for shown in (await client.get(BREAKERS)).json()["data"]}


@pytest.fixture
def without_waiting(service):
    async def sleep(seconds):
        pass

    service._predicting._sleep = sleep


async def test_every_service_that_is_called_has_a_breaker(tmp_path, connect):
    async with connect(local_service(settings_in(tmp_path))) as client:
        assert await states(client) == dict.fromkeys(("trainer", "predictor", "registry"), "closed")


async def test_predictors_that_are_lost_are_spared_until_an_operator_says_so(
    service, client, without_waiting
):
    service._predictor = LocalHandle(lost := Lost(ActorUnavailableError("lost", None)))
    for _ in range(2):
        failed(await client.post(PREDICT, json=ASKED), 503, "SERVICE_UNAVAILABLE")
    assert lost.asked == 5
    assert "predictor" in failed(await client.post(PREDICT, json=ASKED), 503, "CIRCUIT_OPEN")
    assert lost.asked == 5
    assert (await states(client))["predictor"] == "open"
    assert (await client.post(f"{BREAKERS}/predictor/reset")).status_code == 204
    assert (await states(client))["predictor"] == "closed"


@pytest.mark.parametrize("error", [KeyError("a bug"), RunNotFoundError("none"), StorageError("full")])
async def test_failing_at_a_request_is_not_counted_against_predictors(service, client, error):
    service._predictor = LocalHandle(lost := Lost(error))
    for _ in range(7):
        assert (await client.post(PREDICT, json=ASKED)).status_code >= 400
    assert lost.asked == 7
    assert service.breakers["predictor"].state == "closed"


class AbsentActor(Detached):
    """Is not there for so many attempts to reach it, then for good; waiting takes no time."""

    def __init__(self, there: LocalHandle) -> None:
        self.clock, self.absent, self._there = Clock(), 10**9, there
        policy = POLICIES[Integration.REGISTRY]
        caller = Caller("registry", policy, clock=self.clock, sleep=self._wait, draw=lambda: 0.0)
        super().__init__(BundleRegistry, "registry", "tests", None, {}, caller, None)

    async def _wait(self, seconds) -> None:
        self.clock.now += seconds

    async def _connect(self):
        self.absent -= 1
        if self.absent >= 0:
            raise ActorDiedError
        return self._there

    def lose(self, attempts: int) -> None:
        self._actor, self.absent = None, attempts


@pytest.fixture
def actor(tmp_path) -> LocalHandle:
    configuration = RegistryConfiguration.of(settings_in(tmp_path))
    return LocalHandle(BundleRegistry(configuration, put=LocalObject))


@pytest.fixture
def registry(tmp_path, actor) -> RegistryClient:
    client = RegistryClient(settings_in(tmp_path))
    client._detached = AbsentActor(actor)
    return client


async def test_registry_that_stays_away_is_spared_and_found_again(registry):
    for _ in range(5):
        with pytest.raises(ServiceUnavailableError, match="registry"):
            await registry.status()
    absence = registry._detached
    attempts = absence.absent
    with pytest.raises(CircuitOpenError) as caught:
        await registry.status()
    assert caught.value.details == {"service": "registry", "retry_after": pytest.approx(15)}
    assert absence.absent == attempts
    absence.clock.now += 15
    absence.lose(3)  # the probe outlasts these
    assert (await registry.status()).items == 0
    assert registry.breaker.state == "closed"


async def test_restarts_and_refusals_of_the_registry_are_no_failures(registry):
    for _ in range(10):
        registry._detached.lose(8)
        with pytest.raises(RunNotFoundError):
            await registry.peek("none")
        assert registry._detached.absent < 0, "it was not waited for"
    assert registry.breaker.state == "closed"


def opened(service: str) -> Breaker:
    breaker = Breaker(service, BreakerPolicy(1, 3600))
    with pytest.raises(OSError, match="gone"), breaker.guard():
        raise OSError("gone")
    assert breaker.state == "open"
    return breaker


async def looked(breakers: Breakers, registry: RegistryClient) -> None:
    breakers.obey(registry)
    await breakers._looking


async def test_reset_reaches_replicas_that_look_and_is_done_once(registry):
    registry._detached.absent = 0
    trainer, storage = opened("trainer"), opened("storage")
    here, there = Breakers(opened("trainer")), Breakers(trainer, storage, None)
    await looked(there, registry)
    await here.reset("trainer", registry)
    assert (trainer.state, here.by_service["trainer"].state) == ("open", "closed")
    await looked(there, registry)
    assert (trainer.state, storage.state) == ("closed", "open")
    with pytest.raises(OSError, match="again"), trainer.guard():
        raise OSError("again")
    await looked(there, registry)
    assert trainer.state == "open", "the same reset does not close it twice"


async def test_replica_that_starts_later_does_not_obey_what_was_before(registry):
    registry._detached.absent = 0
    await Breakers(opened("trainer")).reset("trainer", registry)
    late = Breakers(opened("trainer"))
    await looked(late, registry)
    assert late.by_service["trainer"].state == "open"


async def test_reset_after_a_restart_of_the_registry_is_obeyed(registry, tmp_path):
    registry._detached.absent = 0
    there = Breakers(opened("trainer"))
    await looked(there, registry)
    await Breakers(opened("trainer")).reset("trainer", registry)
    await looked(there, registry)
    configuration = RegistryConfiguration.of(settings_in(tmp_path))
    registry._detached._actor = LocalHandle(BundleRegistry(configuration, put=LocalObject))
    await looked(there, registry)
    with pytest.raises(OSError, match="again"), there.by_service["trainer"].guard():
        raise OSError("again")
    await Breakers(opened("trainer")).reset("trainer", registry)
    await looked(there, registry)
    assert there.by_service["trainer"].state == "closed"


async def test_reset_without_a_registry_closes_the_breaker_here(registry):
    here = Breakers(opened("trainer"))
    await here.reset("trainer", registry)
    assert here.by_service["trainer"].state == "closed"
    await looked(here, registry)  # nor does it hurt whoever looks


async def test_look_that_hangs_is_not_begun_twice():
    asked, answered = [], asyncio.Event()

    async def resets():
        asked.append(1)
        await answered.wait()
        return {}

    breakers = Breakers()
    for _ in range(3):
        breakers.obey(SimpleNamespace(resets=resets))
        await asyncio.sleep(0)
    answered.set()
    await breakers._looking
    assert asked == [1]


async def test_registry_closes_its_own_breaker_of_storage(tmp_path, actor):
    own = opened("storage")
    registry = actor._target
    registry._storage = SimpleNamespace(breaker=own)
    await registry.reset_breaker("trainer")
    assert own.state == "open"
    await registry.reset_breaker("storage")
    assert own.state == "closed"
