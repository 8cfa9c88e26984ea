import httpx
import pytest

from deployments.service import Service
from deployments.settings import TOKENS_VARIABLE
from deployments.web import build_web_app
from tests.deployments.local import local_service, settings_in


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True)
def no_tokens_in_the_environment(monkeypatch):
    monkeypatch.delenv(TOKENS_VARIABLE, raising=False)


@pytest.fixture(scope="session")
def connect():
    """Opens a client of a service, over ASGI."""

    def connect(service: Service, **options: object) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(build_web_app(service))
        return httpx.AsyncClient(transport=transport, base_url="http://stillhouse", **options)

    return connect


@pytest.fixture
def settings(tmp_path):
    return settings_in(tmp_path)


@pytest.fixture
def service(settings):
    return local_service(settings)


@pytest.fixture
async def client(service, connect):
    async with connect(service) as client:
        yield client
