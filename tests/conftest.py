import sys

import pytest


@pytest.fixture(autouse=True)
def no_services_of_other_tests():
    """FastAPI caches facts of thousands of endpoints, each of which holds a whole service of a test."""
    yield
    for cached in vars(sys.modules.get("fastapi.dependencies.models", object)).values():
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()
