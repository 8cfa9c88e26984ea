"""Runs of the registry and saved models (contract, sections 6 and 7)."""

import asyncio
import io
import json
import struct
import uuid

import numpy as np
import onnx
import pytest
import torch

from core.bundles import Bundle
from core.saved_models import model_path
from deployments.settings import RegistrySettings
from tests.deployments.local import (
    DISTILL,
    MODELS,
    PREDICT,
    QUICK_STUDENT,
    RUNS,
    Clock,
    failed,
    local_service,
    place_model,
    settings_in,
    stored_files,
    strict_json,
    trained,
    upload,
)

pytestmark = pytest.mark.anyio
SUMMARY = {"run_id", "kind", "task", "training_mode", "metric", "bytes", "created_at", "expires_at"}
MODEL_SUMMARY = {"model_id", "task", "training_mode", "metric", "bytes", "created_at"}
ROWS = [{"length": 1.5, "width": 0.4, "colour": "red"}]


@pytest.fixture
async def dataset_id(client):
    return await upload(client)


@pytest.fixture
async def run_id(client, dataset_id):
    return (await trained(client, dataset_id))["run_id"]


# ── Runs ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_runs_are_listed_newest_first_and_each_once(client, dataset_id):
    made = [(await trained(client, dataset_id, epochs=1))["run_id"] for _ in range(3)]
    shown, cursor = [], None
    for _ in range(3):
        params = {"limit": 1} | ({"cursor": cursor} if cursor else {})
        page = strict_json((await client.get(RUNS, params=params)).content)
        [item] = page["data"]
        assert item.keys() == SUMMARY
        shown.append(item["run_id"])
        cursor = page["next_cursor"]
        assert page["has_more"] == (cursor is not None)
    assert (shown, cursor) == (made[::-1], None)


async def test_run_is_shown_with_schema_and_lineage(client, run_id, dataset_id):
    body = strict_json((await client.get(f"{RUNS}/{run_id}")).content)
    assert body.keys() == SUMMARY | {"schema", "lineage"}
    assert (body["kind"], body["task"], body["training_mode"]) == ("train", "classification", "mlp_dense")
    assert body["metric"].keys() == {"name", "value"}
    assert body["lineage"] == {"teacher": None}
    assert body["schema"].keys() == {"columns", "target", "classes"}
    assert (body["schema"]["target"], body["schema"]["classes"]) == ("kind", ["ash", "oak"])
    roles = {column["name"]: column["role"] for column in body["schema"]["columns"]}
    assert roles == {"length": "feature", "width": "feature", "colour": "feature", "kind": "target"}
    assert {"name", "dtype", "role", "null_count"} <= body["schema"]["columns"][0].keys()
    [colour] = [column for column in body["schema"]["columns"] if column["name"] == "colour"]
    assert sorted(colour["categories"]) == ["blue", "green", "red"]


async def test_looking_at_a_run_does_not_keep_it_alive_and_using_it_does(settings, connect):
    clock = Clock()
    async with connect(local_service(settings, clock=clock)) as client:
        run_id = (await trained(client, await upload(client)))["run_id"]
        expires = (await client.get(f"{RUNS}/{run_id}")).json()["expires_at"]
        clock.now += 100
        for route in (f"{RUNS}/{run_id}", RUNS):
            await client.get(route)
        assert (await client.get(f"{RUNS}/{run_id}")).json()["expires_at"] == expires
        assert (await client.post(PREDICT, json={"run_id": run_id, "rows": ROWS})).status_code == 200
        assert (await client.get(f"{RUNS}/{run_id}")).json()["expires_at"] > expires
        clock.now += 899
        assert (await client.get(f"{RUNS}/{run_id}")).status_code == 200
        clock.now += 1
        failed(await client.get(f"{RUNS}/{run_id}"), 404, "RUN_NOT_FOUND")
        failed(await client.post(PREDICT, json={"run_id": run_id, "rows": ROWS}), 404, "RUN_NOT_FOUND")
        assert (await client.get(RUNS)).json()["data"] == []


async def test_full_registry_lets_the_oldest_go(tmp_path, connect):
    settings = settings_in(tmp_path, registry=RegistrySettings(max_items=2))
    async with connect(local_service(settings)) as client:
        dataset_id = await upload(client)
        runs = [(await trained(client, dataset_id, epochs=1))["run_id"] for _ in range(3)]
        failed(await client.get(f"{RUNS}/{runs[0]}"), 404, "RUN_NOT_FOUND")
        assert len((await client.get(RUNS)).json()["data"]) == 2
    assert not any(runs[0] in name for name in stored_files(settings))


RUN_CALLS = {
    "get": ("GET", ""),
    "delete": ("DELETE", ""),
    "save": ("POST", "/save"),
    "bundle": ("GET", "/bundle"),
}


@pytest.mark.parametrize("call", RUN_CALLS)
async def test_deleted_run_is_gone_for_everybody(client, run_id, settings, call):
    response = await client.delete(f"{RUNS}/{run_id}")
    assert (response.status_code, response.content) == (204, b"")
    assert not any(name.startswith("runs/") for name in stored_files(settings))
    method, ending = RUN_CALLS[call]
    assert run_id in failed(await client.request(method, f"{RUNS}/{run_id}{ending}"), 404, "RUN_NOT_FOUND")


@pytest.mark.parametrize("run_id", ["unknown", ".hidden", "a b", "x" * 200, "%00", "%C3%BC"])
@pytest.mark.parametrize("call", RUN_CALLS)
async def test_never_known_run_is_404(client, run_id, call):
    method, ending = RUN_CALLS[call]
    message = failed(await client.request(method, f"{RUNS}/{run_id}{ending}"), 404, "RUN_NOT_FOUND")
    assert len(message) < 180


async def test_bundle_of_a_run_is_a_file_that_loads(client, run_id):
    response = await client.get(f"{RUNS}/{run_id}/bundle")
    assert response.headers["content-disposition"] == f'attachment; filename="{run_id}.safetensors"'
    bundle = Bundle.from_bytes(response.content)
    assert (bundle.classes, bundle.target_column) == (("ash", "oak"), "kind")
    assert len(response.content) == (await client.get(f"{RUNS}/{run_id}")).json()["bytes"]


# ── Saving ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_saved_run_is_a_model_that_does_not_expire(settings, connect):
    clock = Clock()
    async with connect(local_service(settings, clock=clock)) as client:
        run_id = (await trained(client, await upload(client)))["run_id"]
        response = await client.post(f"{RUNS}/{run_id}/save", json={"model_id": "kept"})
        assert response.status_code == 201
        assert response.json() == {"model_id": "kept", "model_path": model_path("kept")}
        clock.now += 10_000
        assert (await client.post(PREDICT, json={"model_id": "kept", "rows": ROWS})).status_code == 200


@pytest.mark.parametrize("body", [None, {}, {"model_id": None}])
async def test_run_saved_without_a_name_gets_a_uuid(client, run_id, body):
    kwargs = {} if body is None else {"json": body}
    response = await client.post(f"{RUNS}/{run_id}/save", **kwargs)
    assert response.status_code == 201
    assert uuid.UUID(response.json()["model_id"]).version == 4


async def test_saving_over_a_model_is_409_unless_asked(client, run_id, dataset_id):
    save = f"{RUNS}/{run_id}/save"
    assert (await client.post(save, json={"model_id": "m"})).status_code == 201
    message = failed(await client.post(save, json={"model_id": "m"}), 409, "MODEL_EXISTS")
    assert message == "Model 'm' already exists: choose another model_id or set overwrite"
    other = (await trained(client, dataset_id, epochs=1))["run_id"]
    response = await client.post(f"{RUNS}/{other}/save", json={"model_id": "m", "overwrite": True})
    assert response.status_code == 201
    files = [await client.get(f"{RUNS}/{other}/bundle"), await client.get(f"{MODELS}/m/export")]
    assert files[0].content == files[1].content


async def test_of_many_savers_of_one_name_one_wins(client, run_id):
    saves = (client.post(f"{RUNS}/{run_id}/save", json={"model_id": "m"}) for _ in range(5))
    statuses = sorted([response.status_code for response in await asyncio.gather(*saves)])
    assert statuses == [201, 409, 409, 409, 409]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"model_id": "../x"}, "model_id"),
        ({"model_id": ""}, "model_id"),
        ({"model_id": "x\n"}, "model_id"),
        ({"model_id": "x" * 129}, "model_id"),
        ({"model_id": 7}, "model_id"),
        ({"overwrite": "perhaps"}, "overwrite"),
        ({"overwrite": None}, "overwrite"),
        ({"modelid": "x"}, "modelid"),
    ],
)
async def test_malformed_save_is_422_as_an_array(client, run_id, body, field):
    [violation] = failed(await client.post(f"{RUNS}/{run_id}/save", json=body), 422, "SCHEMA_VIOLATION")
    assert violation.keys() == {"type", "loc", "msg", "input"}
    assert violation["loc"] == ["body", field]


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'"x"', b"7", b'{"overwrite": NaN}', b'{"overwrite": 1e999}', b"\xff"]
)
async def test_save_with_a_body_that_is_no_object_is_refused_in_valid_json(client, run_id, body):
    headers = {"content-type": "application/json"}
    response = await client.post(f"{RUNS}/{run_id}/save", content=body, headers=headers)
    assert response.status_code in (400, 422)
    failed(response, response.status_code, response.headers["x-error-code"])


# ── Models ──────────────────────────────────────────────────────────────────────────────────────────────────


async def save(client, run_id, *names):
    for name in names:
        response = await client.post(f"{RUNS}/{run_id}/save", json={"model_id": name})
        assert response.status_code == 201


async def test_models_are_listed_by_name_and_each_once(client, run_id):
    await save(client, run_id, "b", "a.2", "a", "a-1", "C")
    shown, cursor = [], None
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = strict_json((await client.get(MODELS, params=params)).content)
        assert all(item.keys() == MODEL_SUMMARY for item in page["data"])
        shown += [item["model_id"] for item in page["data"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert shown == sorted(["b", "a.2", "a", "a-1", "C"])


async def test_model_is_shown_with_schema_metrics_and_lineage(client, run_id):
    await save(client, run_id, "m")
    body = strict_json((await client.get(f"{MODELS}/m")).content)
    assert body.keys() == MODEL_SUMMARY | {"schema", "metrics", "lineage", "settings", "architecture"}
    run = (await client.get(f"{RUNS}/{run_id}")).json()
    for name in ("schema", "lineage", "metric", "task", "bytes"):
        assert body[name] == run[name]
    assert body["settings"]["epochs"] == 3


async def test_deleted_model_is_404(client, run_id):
    await save(client, run_id, "m")
    response = await client.delete(f"{MODELS}/m")
    assert (response.status_code, response.content) == (204, b"")
    for gone in (
        await client.get(f"{MODELS}/m"),
        await client.delete(f"{MODELS}/m"),
        await client.get(f"{MODELS}/m/export"),
        await client.get(f"{MODELS}/m/export", params={"format": "onnx"}),
        await client.post(PREDICT, json={"model_id": "m", "rows": ROWS}),
    ):
        assert "'m'" in failed(gone, 404, "MODEL_NOT_FOUND")


MODEL_CALLS = {"get": ("GET", ""), "delete": ("DELETE", ""), "export": ("GET", "/export")}


@pytest.mark.parametrize("model_id", ["unknown", ".hidden", "a b", "_x", "x" * 129, "%00", "%C3%BC", "a%0A"])
@pytest.mark.parametrize("call", MODEL_CALLS)
async def test_unknown_and_impossible_model_ids_are_404(client, model_id, call):
    method, ending = MODEL_CALLS[call]
    message = failed(await client.request(method, f"{MODELS}/{model_id}{ending}"), 404, "MODEL_NOT_FOUND")
    assert len(message) < 120


async def test_model_id_beyond_measure_is_422(client):
    [violation] = failed(await client.get(f"{MODELS}/{'x' * 201}"), 422, "SCHEMA_VIOLATION")
    assert violation["loc"] == ["path", "model_id"]


def bundle_file(header, tensors=b""):
    """A safetensors file whose metadata say whatever they like of Stillhouse."""
    start = json.dumps({"__metadata__": {"stillhouse": json.dumps(header)}}).encode()
    return struct.pack("<Q", len(start)) + start + tensors


DAMAGED = {
    "empty": b"",
    "short": b"\x10\0\0",
    "noise": bytes(range(256)),
    "huge header": b"\xff" * 16,
    "other JSON": struct.pack("<Q", 2) + b"{}",
    "list": bundle_file([1]),
    "bare": bundle_file({"format_version": 1}),
    "incomplete": bundle_file({"format_version": 1, "task": "regression", "metrics": {}}),
    "another version": bundle_file({"format_version": 99}),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
async def test_damaged_file_spoils_no_listing_and_is_named_when_it_is_asked_for(
    client, run_id, tmp_path, content
):
    await save(client, run_id, "a", "z")
    place_model(tmp_path / "storage", "damaged", content)
    page = strict_json((await client.get(MODELS)).content)
    assert [item["model_id"] for item in page["data"]] == ["a", "z"]
    failed(await client.get(f"{MODELS}/damaged"), 400, "BUNDLE_INVALID")
    failed(await client.post(PREDICT, json={"model_id": "damaged", "rows": ROWS}), 400, "BUNDLE_INVALID")
    failed(await client.get(f"{MODELS}/damaged/export", params={"format": "onnx"}), 400, "BUNDLE_INVALID")


async def test_model_with_one_flipped_byte_is_refused(client, run_id, tmp_path):
    file = bytearray((await client.get(f"{RUNS}/{run_id}/bundle")).content)
    file[-1] ^= 1
    place_model(tmp_path / "storage", "flipped", bytes(file))
    response = await client.post(PREDICT, json={"model_id": "flipped", "rows": ROWS})
    assert "checksum" in failed(response, 400, "BUNDLE_INVALID")


# ── Exports ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("wanted", [{}, {"format": "safetensors"}])
async def test_safetensors_is_the_file_as_it_is_stored(client, run_id, wanted):
    await save(client, run_id, "m")
    response = await client.get(f"{MODELS}/m/export", params=wanted)
    assert response.content == (await client.get(f"{RUNS}/{run_id}/bundle")).content
    assert response.headers["content-disposition"] == 'attachment; filename="m.safetensors"'


async def test_torchscript_and_onnx_load_and_describe_their_features(client, run_id):
    await save(client, run_id, "m")
    script = await client.get(f"{MODELS}/m/export", params={"format": "torchscript"})
    assert script.headers["content-disposition"] == 'attachment; filename="m.pt"'
    extra = {"stillhouse.json": ""}
    module = torch.jit.load(io.BytesIO(script.content), _extra_files=extra)
    features = json.loads(extra["stillhouse.json"])["features"]
    assert np.allclose(module(torch.zeros(3, len(features))).sum(dim=1).tolist(), 1)
    graph = await client.get(f"{MODELS}/m/export", params={"format": "onnx"})
    assert graph.headers["content-disposition"] == 'attachment; filename="m.onnx"'
    model = onnx.load_model_from_string(graph.content)
    onnx.checker.check_model(model)
    assert [value.name for value in model.graph.input] == ["features"]


@pytest.mark.parametrize("wanted", ["pickle", "", "ONNX"])
async def test_unknown_format_is_422_as_an_array(client, wanted):
    response = await client.get(f"{MODELS}/m/export", params={"format": wanted})
    [violation] = failed(response, 422, "SCHEMA_VIOLATION")
    assert violation["loc"] == ["query", "format"]
    assert "'onnx'" in violation["msg"]


async def test_student_of_a_saved_model_says_so(client, run_id, dataset_id):
    await save(client, run_id, "teacher")
    payload = QUICK_STUDENT | {"dataset_id": dataset_id, "teacher_model_id": "teacher"}
    saving = {"save_model": True, "model_id": "student"}
    assert (await client.post(DISTILL, json=payload | saving)).status_code == 200
    assert (await client.get(f"{MODELS}/student")).json()["lineage"] == {"teacher": {"model_id": "teacher"}}
