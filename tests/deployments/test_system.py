"""Limits, the catalogue, health and the documentation (contract, section 7)."""

import re

import pytest
from ray.exceptions import RayTaskError

from core.catalogue import CATALOGUE
from core.contract.fields import DISTILL_NUMBERS, HIDDEN_NUMBERS, TRAIN_NUMBERS
from core.contract.validation import DISTILL_FIELDS, TRAIN_FIELDS
from core.errors import StorageError, class_of
from deployments.dialects import Asked, render
from deployments.routes.failures import EDGE, OPEN
from deployments.service import Service
from deployments.settings import Limits, RegistrySettings
from tests.deployments.local import (
    DATASETS,
    DISTILL,
    PREDICT,
    PROBLEM,
    TRAIN,
    failed,
    local_service,
    settings_in,
    strict_json,
    trained,
    upload,
)

pytestmark = pytest.mark.anyio


# ── Limits and errors ───────────────────────────────────────────────────────────────────────────────────────


async def test_limits_are_those_in_force(tmp_path, connect):
    limits = Limits(body_bytes=1000, json_bytes=500, rows=50, columns=5)
    registry = RegistrySettings(ttl_seconds=60, max_items=3, max_bytes=10_000)
    async with connect(local_service(settings_in(tmp_path, limits=limits, registry=registry))) as client:
        body = strict_json((await client.get("/api/v1/limits")).content)
    assert {"body_bytes", "rows", "columns", "train", "distill", "registry", "queue"} <= body.keys()
    assert (body["body_bytes"], body["rows"], body["columns"]) == (1000, 50, 5)
    assert body["registry"] == {"ttl_seconds": 60, "max_items": 3, "max_bytes": 10_000}
    assert body["queue"] == {"capacity": 64, "free": 64}
    assert body["train"].keys() == {*TRAIN_NUMBERS, *HIDDEN_NUMBERS}
    assert body["distill"].keys() == {*DISTILL_NUMBERS}


async def test_limits_of_fields_are_the_contracts(client):
    body = (await client.get("/api/v1/limits")).json()
    assert body["train"]["epochs"] == {"min": 1, "max": 10_000, "default": 100}
    assert body["distill"]["epochs"] == {"min": 1, "max": 10_000, "default": 60}
    assert body["train"]["test_size"] == {
        "min": 0,
        "max": 1,
        "default": 0.2,
        "exclusive_min": True,
        "exclusive_max": True,
    }
    assert body["distill"]["temperature"] == {"min": 0, "max": 20, "default": 2.5, "exclusive_min": True}
    assert body["train"]["batch_size"] == {"min": 2, "max": 65_536, "default": None}
    assert body["train"]["random_seed"]["max"] == 2**32 - 1


async def test_values_at_the_published_limits_are_accepted(client):
    dataset_id = await upload(client)
    limits = (await client.get("/api/v1/limits")).json()["train"]
    for name in ("learning_rate", "batch_size", "dropout", "random_seed"):
        await trained(client, dataset_id, epochs=1, **{name: limits[name]["max"]})


async def test_errors_are_the_whole_catalogue(client):
    body = strict_json((await client.get("/api/v1/errors")).content)
    keys = {"code", "type", "severity", "retryable", "status", "message", "suggested_action"}
    assert body.keys() == {"data"}
    assert all(keys <= item.keys() for item in body["data"])
    assert [item["code"] for item in body["data"]] == list(CATALOGUE)
    for item in body["data"]:
        assert item["retryable"] == CATALOGUE[item["code"]].retryable
        assert item["status"] == CATALOGUE[item["code"]].status


# ── Health ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_health_names_its_components(client):
    await trained(client, await upload(client))
    response = await client.get("/health")
    body = strict_json(response.content)
    assert (response.status_code, body["status"]) == (200, "ok")
    components = body["components"]
    assert components.keys() == {"registry", "predictor", "trainer"}
    assert components["registry"]["items"] == 1
    assert components["registry"]["bytes"] > 0
    assert components["predictor"]["status"] == "ok"


@pytest.mark.parametrize("probe", ["live", "ready"])
async def test_probes_answer(client, probe):
    response = await client.get(f"/health/{probe}")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def ill(_self: Service) -> tuple[bool, dict[str, object]]:
    return False, {"predictor": {"status": "unavailable"}}


async def test_health_is_503_when_requests_cannot_be_served(service, connect):
    service.health = ill.__get__(service)
    async with connect(service) as client:
        response = await client.get("/health")
    assert response.status_code == 503
    assert response.json() == {
        "status": "unavailable",
        "components": {"predictor": {"status": "unavailable"}},
    }


# ── Documentation ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("error", [StorageError(), RayTaskError("status", "Traceback …", OSError())])
async def test_health_is_503_when_the_registry_fails(service, client, error):
    async def status():
        raise error

    service._registry.status = status
    response = await client.get("/health")
    assert response.status_code == 503
    assert response.json()["components"]["registry"] == {"status": "unavailable"}


async def test_documentation_loads_everything_from_the_service_itself(client):
    page = await client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    loaded = re.findall(r"""(?:src|href)=["']([^"']+)""", page.text)
    assert len(loaded) >= 3  # a script, a style, an icon
    for address in loaded:
        assert address.startswith("/"), address
        asset = await client.get(address)
        assert (asset.status_code, len(asset.content) > 100) == (200, True), address
    assert not re.search(r"https?://(?!stillhouse)", page.text)
    assert "/openapi.json" in page.text


@pytest.fixture
async def openapi(client):
    return strict_json((await client.get("/openapi.json")).content)


def nodes(value):
    """Every object inside a JSON value."""
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(child)


async def test_every_reference_in_the_schema_leads_somewhere(openapi):
    references = [node["$ref"] for node in nodes(openapi) if isinstance(node.get("$ref"), str)]
    assert references
    for reference in references:
        place = openapi
        assert reference.startswith("#/")
        for key in reference[2:].split("/"):
            place = place[key]


async def test_operations_have_names_of_their_own(openapi):
    operations = [operation for path in openapi["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["responses"] for operation in operations)


async def test_every_route_of_the_contract_is_documented(openapi):
    routes = """POST /train|POST /distill|GET /runs|GET /runs/{run_id}|DELETE /runs/{run_id}|
        POST /runs/{run_id}/save|GET /runs/{run_id}/bundle|POST /datasets|GET /datasets|
        GET /datasets/{dataset_id}|GET /datasets/{dataset_id}/preview|DELETE /datasets/{dataset_id}|
        GET /models|GET /models/{model_id}|DELETE /models/{model_id}|GET /models/{model_id}/export|
        POST /predict|GET /limits|GET /errors"""
    for route in routes.split("|"):
        method, path = route.split()
        assert method.lower() in openapi["paths"][f"/api/v1{path}"], route
    assert {"/health", "/health/live", "/health/ready"} <= openapi["paths"].keys()


def variants(code):
    """The error of a code, and those that differ from it in status or advice."""
    origin = class_of(code)
    return [origin, *(error for error in origin.__subclasses__() if error.code == code)]


async def test_every_failure_is_documented_with_its_codes_in_each_dialect(openapi):
    failures = [
        (path, int(status), response)
        for path, operations in openapi["paths"].items()
        for operation in operations.values()
        for status, response in operation["responses"].items()
        if int(status) >= 400 and "X-Error-Code" in response.get("headers", {})
    ]
    assert len(failures) > 100
    for path, status, response in failures:
        codes = response["headers"]["X-Error-Code"]["schema"]["enum"]
        rendered = [
            next(
                answer
                for error in variants(code)
                if (answer := render(error(), Asked(path))).status == status
            )
            for code in codes
        ]
        assert response["content"].keys() == {"application/json", PROBLEM}
        assert ("Retry-After" in response["headers"]) == any("Retry-After" in r.headers for r in rendered)


async def test_every_operation_documents_what_the_edge_says_of_any_request(openapi):
    for path, operations in openapi["paths"].items():
        for operation in operations.values():
            documented = {
                code
                for response in operation["responses"].values()
                for code in response.get("headers", {}).get("X-Error-Code", {"schema": {"enum": []}})[
                    "schema"
                ]["enum"]
            }
            expected = OPEN if path.startswith("/health") else EDGE
            assert {error.code for error in expected} <= documented, path


@pytest.mark.parametrize(("path", "names"), [(TRAIN, TRAIN_FIELDS), (DISTILL, DISTILL_FIELDS)])
async def test_documented_fields_are_the_known_ones(openapi, path, names):
    content = openapi["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    assert content["schema"]["properties"].keys() == names
    assert content["example"].keys() <= names


@pytest.mark.parametrize("path", [TRAIN, DISTILL])
async def test_error_shape_of_handlers_is_documented(openapi, path):
    responses = openapi["paths"][path]["post"]["responses"]
    assert {"200", "400", "503"} <= responses.keys()
    assert "500" not in responses
    shape = openapi["components"]["schemas"]["HandlerError"]
    assert (shape["properties"].keys(), set(shape["required"])) == ({"status", "error"}, {"status", "error"})


def example_of(openapi, path, media_type):
    return openapi["paths"][path]["post"]["requestBody"]["content"][media_type]["example"]


async def test_examples_work_when_they_are_sent_in_order_and_once_more(client, openapi):
    table = example_of(openapi, DATASETS, "text/csv")
    [name] = [p for p in openapi["paths"][DATASETS]["post"]["parameters"] if p["name"] == "name"]
    for expected in (201, 200):
        uploaded = await client.post(
            DATASETS,
            params={"name": name["schema"].get("examples", name.get("examples"))[0]},
            content=table,
            headers={"content-type": "text/csv"},
        )
        assert uploaded.status_code == expected
        for path in (TRAIN, DISTILL, PREDICT):
            response = await client.post(path, json=example_of(openapi, path, "application/json"))
            assert response.status_code == 200, response.text
            assert not any("ignored" in warning for warning in response.json()["warnings"])
        assert len(response.json()["predictions"]) == 2


async def test_examples_out_of_order_say_what_is_missing(client, openapi):
    train, distill, predict = (
        example_of(openapi, path, "application/json") for path in (TRAIN, DISTILL, PREDICT)
    )
    failed(await client.post(TRAIN, json=train), 400, "DATASET_NOT_FOUND")
    await upload(client)
    failed(await client.post(DISTILL, json=distill), 400, "INVALID_TEACHER")
    failed(await client.post(PREDICT, json=predict), 404, "MODEL_NOT_FOUND")
