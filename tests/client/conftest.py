from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from deployments.settings import TOKENS_VARIABLE
from tests.client.service import client_of, over
from tests.deployments.local import local_service, settings_in


@pytest.fixture(scope="session")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture(autouse=True)
def no_tokens_in_the_environment(monkeypatch):
    monkeypatch.delenv(TOKENS_VARIABLE, raising=False)


@pytest.fixture
def settings(tmp_path):
    return settings_in(tmp_path)


@pytest.fixture
def service(settings):
    return local_service(settings)


@pytest.fixture(params=["blocking", "awaiting"])
def connect(request, portal) -> Callable[..., Any]:
    """Makes a client of either kind over a transport."""

    def connect(transport: httpx.AsyncBaseTransport, **options: Any) -> Any:
        return client_of(request.param, portal, transport, **options)

    return connect


@pytest.fixture
def client(connect, service):
    client = connect(over(service))
    yield client
    client.close()
