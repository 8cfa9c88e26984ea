import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

import stillhouse
from deployments.routes.examples import EXAMPLE_CSV
from deployments.settings import TOKENS_VARIABLE
from tests.client.service import Clock, Crossing, Scripted, Terminal, client_of, over
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
def serving(settings, portal):
    """Makes services, whose jobs are put away in the end."""
    made = []

    def serving(**options: Any):
        made.append(local_service(settings, **options))
        return made[-1]

    yield serving
    for service in made:
        portal.call(service.desk.jobs.close)


@pytest.fixture
def service(serving):
    return serving()


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


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def scripted(connect, clock):
    """A client of scripted answers on a clock of its own; waits are never shortened by chance."""

    def scripted(*answers, **options):
        transport = Scripted(*answers)
        options = {"clock": clock, "sleep": clock.sleep, "uniform": lambda: 1.0} | options
        return connect(transport, **options), transport.requests

    return scripted


@pytest.fixture
def terminal_over(portal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("trees.csv").write_text(EXAMPLE_CSV)

    def terminal_over(transport) -> Terminal:
        return Terminal(
            functools.partial(stillhouse.Client, transport=Crossing(portal, transport), sleep=lambda _: None)
        )

    return terminal_over


@pytest.fixture
def terminal(terminal_over, service):
    return terminal_over(over(service))
