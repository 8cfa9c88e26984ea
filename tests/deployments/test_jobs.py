"""Train and distil over HTTP (seed 000; contract, sections 3 to 5)."""

import asyncio
import io
import json
import re
import threading

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from core.bundles import Bundle
from core.errors import ServiceUnavailableError
from core.saved_models import model_path
from deployments.ingress import Ingress
from deployments.routes.examples import EXAMPLE_CSV
from deployments.settings import IngressSettings, TrainerSettings
from deployments.trainer import Trainer
from tests.deployments.local import (
    DATASETS,
    DISTILL,
    PROBLEM,
    QUICK,
    QUICK_STUDENT,
    RUNS,
    TRAIN,
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
ROUTES = (TRAIN, DISTILL)
TEACHER_NOT_FOUND = "Teacher run not found or expired."


class SpyingTrainer(Trainer):
    """Must never be reached."""

    def _train(self, work, request):
        raise AssertionError("validation should have refused this")


class BrokenTrainer(Trainer):
    def _train(self, work, request):
        raise ZeroDivisionError("lost /srv/stillhouse/scratch/part-0.bin while training")


class SilentlyBrokenTrainer(Trainer):
    def _train(self, work, request):
        raise KeyError


class WithoutTorch(Trainer):
    async def runtime_error(self):
        return "ModuleNotFoundError: No module named 'torch'"


class OvertakenTrainer(Trainer):
    """While it trains, somebody else saves a model of the same name."""

    def _train(self, work, request):
        outcome = super()._train(work, request)
        self._world.models.save(request.saving.model_id, outcome.file, overwrite=False)
        return outcome


class GatedTrainer(Trainer):
    """Trains when the gate is opened."""

    gate = threading.Event()

    def _train(self, work, request):
        assert self.gate.wait(60)
        return super()._train(work, request)


def kept(settings):
    """Files of runs and models."""
    return {name for name in stored_files(settings) if name.startswith(("runs/", "models/"))}


# ── Bodies ──────────────────────────────────────────────────────────────────────────────────────────────────

MALFORMED = {
    "empty": b"",
    "blank": b"  ",
    "truncated": b'{"target_column": "kind"',
    "trailing comma": b'{"epochs": 1,}',
    "two values": b"{} {}",
    "single quotes": b"{'epochs': 1}",
    "not UTF-8": b'{"target_column": "\xff"}',
    "binary": bytes(range(256)),
    "NaN": b'{"test_size": NaN}',
    "infinity": b'{"test_size": -Infinity}',
    "deep": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "deep list": b"[" * 100_000,
    "lone surrogate": b'{"target_column": "\\ud800"}',
    "text": b'"train"',
    "number": b"7",
    "null": b"null",
    "list": b'[{"target_column": "kind"}]',
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
async def test_body_that_is_no_json_object_is_400_before_anything_else(settings, connect, route, body):
    async with connect(local_service(settings, trainer=WithoutTorch)) as client:
        response = await client.post(route, content=body, headers={"content-type": "application/json"})
    message = failed(response, 400, "MALFORMED_BODY")
    assert "JSON" in message or "nested at most 200 deep" in message
    assert len(message) < 120


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/json"]
)
async def test_media_type_of_a_json_body_does_not_matter(client, route, media_type):
    response = await client.post(route, content=b"{}", headers={"content-type": media_type})
    assert "target_column is required" in failed(response, 400, "INVALID_DATA_TARGET")


async def test_numbers_beyond_every_float_are_400(client):
    dataset_id = await upload(client)
    for number in ("1e999", "1" * 400, "-" + "1" * 5000):
        body = f'{{"dataset_id": "{dataset_id}", "target_column": "kind", "test_size": {number}}}'
        response = await client.post(TRAIN, content=body)
        assert len(failed(response, 400, response.headers["x-error-code"])) < 200


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"target_column": None}, "INVALID_DATA_TARGET"),
        ({"dataset_id": "csv-unknown"}, "DATASET_NOT_FOUND"),
        ({"dataset_id": "../../etc/passwd"}, "DATASET_NOT_FOUND"),
        ({"dataset_id": "x" * 5000}, "DATASET_NOT_FOUND"),
        ({"dataset_id": None, "data_path": "/etc/passwd"}, "INVALID_DATA_TARGET"),
        ({"dataset_id": None, "data_path": "../storage"}, "INVALID_DATA_TARGET"),
        ({"save_model": True, "model_id": "../x"}, "INVALID_PARAMETER"),
        ({"epochs": "many"}, "INVALID_PARAMETER"),
        ({"test_size": 1.5}, "INVALID_PARAMETER"),
        ({"training_mode": "forest"}, "INVALID_MODEL"),
        ({"hidden_dim": 1}, "INVALID_CONFIG"),
    ],
)
async def test_validation_failure_is_400_with_its_code_and_nothing_is_trained(
    settings, connect, changes, code
):
    async with connect(local_service(settings, trainer=SpyingTrainer)) as client:
        dataset_id = await upload(client)
        response = await client.post(TRAIN, json=QUICK | {"dataset_id": dataset_id} | changes)
    failed(response, 400, code)
    assert kept(settings) == set()


async def test_problem_details_are_sent_on_request(client):
    response = await client.post(TRAIN, json={}, headers={"accept": PROBLEM})
    assert response.headers["content-type"] == PROBLEM
    body = strict_json(response.content)
    assert (response.status_code, body["status"], body["code"]) == (400, 400, "INVALID_DATA_TARGET")
    assert body["trace_id"] == response.headers["x-trace-id"]


@pytest.mark.parametrize("route", ROUTES)
async def test_missing_runtime_is_503_with_its_reason(settings, connect, route):
    async with connect(local_service(settings, trainer=WithoutTorch)) as client:
        message = failed(await client.post(route, json={}), 503, "RUNTIME_UNAVAILABLE")
    assert "No module named 'torch'" in message


# ── Success ─────────────────────────────────────────────────────────────────────────────────────────────────

TRAIN_KEYS = {
    *("status", "run_id", "model_id", "model_path", "metrics", "expires_at", "epochs_run", "device", "rows"),
    *("timings_s", "warnings"),
}
DISTILL_KEYS = TRAIN_KEYS | {
    *("teacher_input_dim", "teacher_output_dim", "student_input_dim", "student_output_dim"),
    *("teacher_model_size_bytes", "student_model_size_bytes", "size_saved_bytes", "size_saved_percent"),
    *("teacher_param_count", "student_param_count", "param_saved_count", "param_saved_percent"),
    *("fidelity", "teacher_metrics"),
}
METRIC_KEYS = {"task", "train_loss", "test_loss", "test_metric_name", "test_metric_value", "extra", "details"}


def check_metrics(metrics, task):
    assert metrics.keys() == METRIC_KEYS
    name = {"classification": "accuracy", "regression": "rmse"}[task]
    assert (metrics["task"], metrics["test_metric_name"]) == (task, name)
    assert metrics["test_metric_value"] >= 0


async def test_train_answers_with_the_contracts_keys(client, settings):
    body = await trained(client, await upload(client))
    assert body.keys() == TRAIN_KEYS
    assert (body["status"], body["model_id"], body["model_path"], body["warnings"]) == ("ok", None, None, [])
    check_metrics(body["metrics"], "classification")
    assert body["metrics"]["extra"].keys() == {"f1_macro", "roc_auc", "log_loss", "ece"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", body["expires_at"])
    assert body["epochs_run"] == 3
    assert body["device"].startswith(("cpu", "cuda"))
    assert body["rows"].keys() == {"train", "validation", "test"}
    assert (sum(body["rows"].values()), body["rows"]["test"]) == (60, 12)
    assert body["timings_s"].keys() == {"load", "train", "total"}
    assert kept(settings) == {f"runs/{body['run_id']}.safetensors", f"runs/{body['run_id']}.json"}


async def test_distil_answers_with_the_contracts_keys(client):
    dataset_id = await upload(client)
    teacher = await trained(client, dataset_id, hidden_dim=32, num_hidden_layers=2)
    payload = QUICK_STUDENT | {"dataset_id": dataset_id, "teacher_run_id": teacher["run_id"]}
    response = await client.post(DISTILL, json=payload)
    body = strict_json(response.content)
    assert response.status_code == 200
    assert body.keys() == DISTILL_KEYS
    check_metrics(body["metrics"], "classification")
    check_metrics(body["teacher_metrics"], "classification")
    assert body["teacher_metrics"]["test_metric_value"] == teacher["metrics"]["test_metric_value"]
    assert 0 <= body["fidelity"] <= 1
    assert body["teacher_output_dim"] == body["student_output_dim"] == 2
    assert body["size_saved_bytes"] == body["teacher_model_size_bytes"] - body["student_model_size_bytes"] > 0
    assert body["param_saved_count"] == body["teacher_param_count"] - body["student_param_count"] > 0
    run = (await client.get(f"{RUNS}/{body['run_id']}")).json()
    assert (run["kind"], run["lineage"]) == ("distill", {"teacher": {"run_id": teacher["run_id"]}})


async def test_regression_is_reported_in_its_own_terms(client):
    dataset_id = await upload(client)
    body = await trained(client, dataset_id, target_column="length")
    check_metrics(body["metrics"], "regression")
    payload = QUICK_STUDENT | {"dataset_id": dataset_id, "teacher_run_id": body["run_id"]}
    student = (await client.post(DISTILL, json=payload | {"target_column": "length"})).json()
    check_metrics(student["metrics"], "regression")


async def test_saved_model_is_named_in_the_answer_and_is_the_run(client, settings):
    body = await trained(client, await upload(client), save_model="true", model_id="trees-1")
    assert (body["model_id"], body["model_path"]) == ("trees-1", model_path("trees-1"))
    files = [
        await client.get(f"{RUNS}/{body['run_id']}/bundle"),
        await client.get("/api/v1/models/trees-1/export"),
    ]
    assert files[0].content == files[1].content
    assert Bundle.from_bytes(files[0].content).target_column == "kind"


async def test_saved_model_is_not_replaced_unless_asked(client):
    dataset_id = await upload(client)
    await trained(client, dataset_id, save_model=True, model_id="trees")
    saving = {"save_model": True, "model_id": "trees"}
    payload = QUICK | {"dataset_id": dataset_id} | saving
    message = failed(await client.post(TRAIN, json=payload), 400, "MODEL_EXISTS")
    assert message == "Model 'trees' already exists: choose another model_id or set overwrite"
    assert (await trained(client, dataset_id, **saving, overwrite=True))["model_id"] == "trees"


async def test_train_reads_a_file_below_a_data_root(client, settings, tmp_path):
    (tmp_path / "data" / "deep").mkdir()
    (tmp_path / "data" / "deep" / "trees.csv").write_text(EXAMPLE_CSV)
    body = await trained(client, "ignored", data_path="deep/trees.csv")
    assert body["warnings"] == ["dataset_id is ignored because data_path is given"]
    assert str(tmp_path) not in json.dumps(body)


@pytest.mark.parametrize(
    ("limits", "words"),
    [({"rows": 59}, "59 rows and this one has 60"), ({"columns": 3}, "3 columns and this one has 4")],
)
async def test_limits_hold_for_a_data_path_too(tmp_path, connect, limits, words):
    async with connect(local_service(settings_in(tmp_path))) as client:
        await trained(client, await upload(client), save_model=True, model_id="teacher")
    (tmp_path / "data" / "trees.csv").write_text(EXAMPLE_CSV)
    settings = settings_in(tmp_path, limits=limits)
    before = stored_files(settings)
    async with connect(local_service(settings)) as client:
        for route, payload in ((TRAIN, QUICK), (DISTILL, QUICK_STUDENT | {"teacher_model_id": "teacher"})):
            answer = await client.post(route, json=payload | {"data_path": "trees.csv", "save_model": True})
            assert words in failed(answer, 400, "DATASET_TOO_LARGE")
    assert stored_files(settings) == before


async def test_link_out_of_a_data_root_is_not_followed(client, tmp_path):
    (tmp_path / "outside.csv").write_text(EXAMPLE_CSV)
    (tmp_path / "data" / "link.csv").symlink_to(tmp_path / "outside.csv")
    response = await client.post(TRAIN, json=QUICK | {"data_path": "link.csv"})
    assert str(tmp_path) not in failed(response, 400, "INVALID_DATA_TARGET")


async def test_unknown_fields_come_back_as_warnings(client):
    body = await trained(client, await upload(client), epoch=7)
    assert body["warnings"] == ["unknown field 'epoch' is ignored; did you mean epochs?"]


async def test_same_request_gives_the_same_bundle(client):
    dataset_id = await upload(client)
    runs = [(await trained(client, dataset_id, device="cpu"))["run_id"] for _ in range(2)]
    first, second = [(await client.get(f"{RUNS}/{run_id}/bundle")).content for run_id in runs]
    assert first == second


async def test_python_handle_answers_what_http_sends(service, connect):
    async with connect(service) as client:
        dataset_id = await upload(client)
        status, body = await service.handle_train_request(QUICK | {"dataset_id": dataset_id})
        assert (status, body.keys()) == (200, TRAIN_KEYS)
        for payload in ({}, {"target_column": "kind"}, {"dataset_id": dataset_id, "target_column": "colr"}):
            response = await client.post(TRAIN, json=payload)
            assert await service.handle_train_request(payload) == (response.status_code, response.json())
        assert (await service.handle_distill_request(["no object"]))[0] == 400


# ── Teachers ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_teacher_source_is_asked_for_before_anything_is_parsed(client):
    payload = {"dataset_id": await upload(client), "target_column": "kind", "epochs": "x", "save_model": 7}
    message = failed(await client.post(DISTILL, json=payload), 400, "INVALID_TEACHER")
    assert message == "Give a teacher: one of teacher_run_id, teacher_model_path or teacher_model_id."


@pytest.mark.parametrize("run_id", ["never-known", "../../etc/passwd", "x" * 3000, "a\nb"])
async def test_unknown_teacher_run_is_404_in_fixed_words(client, run_id):
    payload = QUICK_STUDENT | {"dataset_id": await upload(client), "teacher_run_id": run_id}
    assert failed(await client.post(DISTILL, json=payload), 404, "RUN_NOT_FOUND") == TEACHER_NOT_FOUND


async def test_wrong_request_is_refused_without_asking_the_registry_for_its_teacher(service, client):
    class Hanging:
        async def peek(self, run_id):
            await asyncio.Event().wait()

    payload = QUICK_STUDENT | {"dataset_id": await upload(client), "teacher_run_id": "r"}
    service._registry = Hanging()
    async with asyncio.timeout(10):
        for wrong in ({"epochs": 0}, {"target_column": None}, {"training_mode": "forest"}):
            assert (await client.post(DISTILL, json=payload | wrong)).status_code == 400


async def test_expired_teacher_run_is_404_and_using_one_keeps_it_alive(settings, connect):
    clock = Clock()
    async with connect(local_service(settings, clock=clock)) as client:
        dataset_id = await upload(client)
        teacher = await trained(client, dataset_id)
        payload = QUICK_STUDENT | {"dataset_id": dataset_id, "teacher_run_id": teacher["run_id"]}
        for _ in range(2):  # each use restarts the 900 seconds
            clock.now += 600
            assert (await client.post(DISTILL, json=payload)).status_code == 200
        clock.now += 900
        assert failed(await client.post(DISTILL, json=payload), 404, "RUN_NOT_FOUND") == TEACHER_NOT_FOUND


async def test_lookup_of_a_teacher_run_holds_no_thread_and_speaks_at_its_turn(client, service, monkeypatch):
    async def lost(run_id):
        assert service.validated
        raise ServiceUnavailableError("The registry does not answer.")

    def validated(*arguments):
        request = validate(*arguments)
        service.validated = True
        return request

    service.validated, validate = False, service._validated
    monkeypatch.setattr(service, "get_run", lost)
    monkeypatch.setattr(service, "_validated", validated)
    payload = QUICK_STUDENT | {"dataset_id": await upload(client), "teacher_run_id": "r"}
    failed(await client.post(DISTILL, json=payload | {"epochs": -1}), 400, "INVALID_PARAMETER")
    assert not service.validated
    failed(await client.post(DISTILL, json=payload), 503, "SERVICE_UNAVAILABLE")


async def test_places_in_the_queue_are_shared_out_whole(tmp_path):
    trainer, ingress = TrainerSettings(queue_capacity=5), IngressSettings(replicas=2)
    assert local_service(settings_in(tmp_path, trainer=trainer, ingress=ingress)).queue()["capacity"] == 3


async def test_deleted_teacher_run_is_404(client):
    dataset_id = await upload(client)
    teacher = await trained(client, dataset_id)
    await client.delete(f"{RUNS}/{teacher['run_id']}")
    payload = QUICK_STUDENT | {"dataset_id": dataset_id, "teacher_run_id": teacher["run_id"]}
    failed(await client.post(DISTILL, json=payload), 404, "RUN_NOT_FOUND")


@pytest.mark.parametrize(
    "teacher",
    [
        {"teacher_model_id": "unknown"},
        {"teacher_model_id": "../x"},
        {"teacher_model_path": "models/unknown.safetensors"},
        {"teacher_model_path": "/etc/passwd"},
        {"teacher_model_path": "../../../etc/passwd"},
        {"teacher_model_path": "trees.csv"},
        {"teacher_model_path": "."},
    ],
)
async def test_teacher_model_that_cannot_be_used_is_400(client, tmp_path, teacher):
    (tmp_path / "data" / "trees.csv").write_text(EXAMPLE_CSV)
    payload = QUICK_STUDENT | {"dataset_id": await upload(client)} | teacher
    message = failed(await client.post(DISTILL, json=payload), 400, "INVALID_TEACHER")
    assert str(tmp_path) not in message


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"\xff" * 200, EXAMPLE_CSV.encode()])
async def test_damaged_teacher_model_is_400(client, tmp_path, content):
    dataset_id = await upload(client)
    place_model(tmp_path / "storage", "damaged", content)
    for teacher in ({"teacher_model_id": "damaged"}, {"teacher_model_path": model_path("damaged")}):
        payload = QUICK_STUDENT | {"dataset_id": dataset_id} | teacher
        failed(await client.post(DISTILL, json=payload), 400, "INVALID_TEACHER")


async def test_teacher_is_found_by_name_by_path_and_below_a_data_root(client, tmp_path):
    dataset_id = await upload(client)
    await trained(client, dataset_id, save_model=True, model_id="teacher")
    file = (await client.get("/api/v1/models/teacher/export")).content
    (tmp_path / "data" / "teacher.safetensors").write_bytes(file)
    for teacher in (
        {"teacher_model_id": "teacher"},
        {"teacher_model_path": model_path("teacher")},
        {"teacher_model_path": "teacher.safetensors"},
    ):
        response = await client.post(DISTILL, json=QUICK_STUDENT | {"dataset_id": dataset_id} | teacher)
        assert response.status_code == 200, response.text
        run = (await client.get(f"{RUNS}/{response.json()['run_id']}")).json()
        [(field, name)] = teacher.items()
        key = "path" if field == "teacher_model_path" else "model_id"
        assert run["lineage"] == {"teacher": {key: name}}


@pytest.mark.parametrize(
    "mode", ["tabresnet", "imbalance_aware", "calibrated_classifier", "linear_glm_baseline"]
)
async def test_every_bundle_can_be_a_teacher_whatever_mode_made_it(client, mode):
    dataset_id = await upload(client)
    teacher = await trained(client, dataset_id, training_mode=mode)
    payload = QUICK_STUDENT | {"dataset_id": dataset_id, "teacher_run_id": teacher["run_id"]}
    response = await client.post(DISTILL, json=payload)
    assert response.status_code == 200, response.text


# ── Failures of the work itself ─────────────────────────────────────────────────────────────────────────────

CONSTANT_CSV = "a,kind\n" + "1,x\n" * 30


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"target_column": "species"}, "'species'"),
        ({"target_column": "s" * 10_000}, "'sss"),
        ({"exclude_columns": ["nowhere"]}, "'nowhere'"),
        ({"date_columns": ["colour"]}, "colour"),
        ({"exclude_columns": "length,width,colour"}, ""),
        ({"target_column": "length", "training_mode": "imbalance_aware"}, "classification"),
        ({"target_column": "colour", "task": "regression"}, "colour"),
        ({"device": "cuda:99"}, "cuda"),
        ({"sheet_name": "Sheet1"}, "sheet"),
    ],
)
async def test_what_only_the_data_or_the_device_can_tell_is_400_and_nothing_is_stored(
    client, settings, changes, says
):
    payload = QUICK | {"dataset_id": await upload(client), "save_model": True} | changes
    response = await client.post(TRAIN, json=payload)
    message = failed(response, 400, response.headers["x-error-code"])
    assert says in message
    assert len(message) < 400
    assert kept(settings) == set()
    assert (await client.get(RUNS)).json()["data"] == []


async def test_one_class_is_400(client, settings):
    dataset_id = await upload(client, CONSTANT_CSV, "constant.csv")
    response = await client.post(TRAIN, json=QUICK | {"dataset_id": dataset_id})
    failed(response, 400, "DATASET_INVALID_FORMAT")
    assert kept(settings) == set()


async def test_columns_that_the_teacher_needs_are_named(client):
    teacher = await trained(client, await upload(client))
    other = await upload(client, EXAMPLE_CSV.replace("colour", "shade"), "other.csv")
    payload = QUICK_STUDENT | {"dataset_id": other, "teacher_run_id": teacher["run_id"]}
    assert "'colour'" in failed(await client.post(DISTILL, json=payload), 400, "DATASET_INVALID_FORMAT")


async def test_missing_columns_are_named_up_to_a_length(client):
    table = pa.table({f"column-{i:04}": np.random.default_rng(i).normal(size=40) for i in range(300)})
    wide = table.append_column("kind", pa.array(["ash", "oak"] * 20))
    sink = io.BytesIO()
    pyarrow.csv.write_csv(wide, sink)
    teacher = await trained(client, await upload(client, sink.getvalue(), "wide.csv"))
    payload = QUICK_STUDENT | {"dataset_id": await upload(client), "teacher_run_id": teacher["run_id"]}
    message = failed(await client.post(DISTILL, json=payload), 400, "DATASET_INVALID_FORMAT")
    assert "'column-0000'" in message
    assert len(message) < 600


async def test_task_other_than_the_teachers_is_400(client):
    dataset_id = await upload(client)
    teacher = await trained(client, dataset_id)
    payload = {"dataset_id": dataset_id, "teacher_run_id": teacher["run_id"], "task": "regression"}
    failed(await client.post(DISTILL, json=QUICK_STUDENT | payload), 400, "INVALID_PARAMETER")


async def test_unexpected_exception_is_400_with_its_message_without_paths(settings, connect):
    async with connect(local_service(settings, trainer=BrokenTrainer)) as client:
        payload = QUICK | {"dataset_id": await upload(client), "save_model": True}
        message = failed(await client.post(TRAIN, json=payload), 400, "TRAINING_FAILED")
    assert message == "lost <path> while training"
    assert kept(settings) == set()


async def test_unexpected_exception_without_a_message_is_named(settings, connect):
    async with connect(local_service(settings, trainer=SilentlyBrokenTrainer)) as client:
        response = await client.post(TRAIN, json=QUICK | {"dataset_id": await upload(client)})
    assert failed(response, 400, "TRAINING_FAILED") == "KeyError"


async def test_training_past_its_time_is_400(tmp_path, connect):
    settings = settings_in(tmp_path, trainer=TrainerSettings(job_timeout_s=0.2))
    async with connect(local_service(settings)) as client:
        payload = {"dataset_id": await upload(client), "epochs": 10_000, "early_stopping_patience": 0}
        message = failed(await client.post(TRAIN, json=QUICK | payload), 400, "TRAINING_TIMEOUT")
    assert "0.2 s" in message
    assert kept(settings) == set()


async def test_run_whose_model_could_not_be_saved_is_not_kept(settings, connect):
    async with connect(local_service(settings, trainer=OvertakenTrainer)) as client:
        payload = {"dataset_id": await upload(client), "save_model": True, "model_id": "contested"}
        failed(await client.post(TRAIN, json=QUICK | payload), 400, "MODEL_EXISTS")
        assert (await client.get(RUNS)).json()["data"] == []
    assert kept(settings) == {model_path("contested")}


async def test_full_queue_is_503_at_once_and_shows_in_the_limits(tmp_path, connect):
    settings = settings_in(tmp_path, trainer=TrainerSettings(queue_capacity=1))
    service = local_service(settings, trainer=GatedTrainer)
    GatedTrainer.gate.clear()
    async with connect(service) as client, asyncio.timeout(60):
        payload = QUICK | {"dataset_id": await upload(client)}
        first = asyncio.create_task(client.post(TRAIN, json=payload))
        await _until_full(service)
        assert (await client.get("/api/v1/limits")).json()["queue"] == {"capacity": 1, "free": 0}
        failed(await client.post(TRAIN, json=payload), 503, "QUEUE_FULL")
        GatedTrainer.gate.set()
        assert (await first).status_code == 200
        assert (await client.post(TRAIN, json=payload)).status_code == 200


async def _until_full(service: Ingress) -> None:
    while service.queue()["free"]:  # noqa: ASYNC110  # the service tells nobody when it is full
        await asyncio.sleep(0)


# ── Streams of events ───────────────────────────────────────────────────────────────────────────────────────


def events_of(response):
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("\n\n")
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        event, data = block.split("\n")
        report = strict_json(data.removeprefix("data: "))
        assert event == f"event: {report['event']}"
        yield report


STREAM = {"accept": "text/event-stream"}


async def test_stream_starts_tells_epochs_and_ends_with_the_answer(client):
    payload = QUICK | {"dataset_id": await upload(client)}
    response = await client.post(TRAIN, json=payload, headers=STREAM)
    reports = list(events_of(response))
    assert [report["event"] for report in reports][:: len(reports) - 1] == ["started", "result"]
    assert {report["event"] for report in reports[1:-1]} == {"epoch"}
    assert reports[-1]["body"].keys() == TRAIN_KEYS
    assert reports[0]["run_id"] == reports[-1]["body"]["run_id"]
    assert reports[1]["epochs"] == 3


async def test_stream_that_fails_validation_is_a_plain_error(client):
    failed(await client.post(TRAIN, json={}, headers=STREAM), 400, "INVALID_DATA_TARGET")


async def test_stream_ends_with_the_error_of_the_work(settings, connect):
    async with connect(local_service(settings, trainer=BrokenTrainer)) as client:
        payload = QUICK | {"dataset_id": await upload(client)}
        response = await client.post(TRAIN, json=payload, headers=STREAM)
    assert response.status_code == 200
    *_, last = events_of(response)
    body = {"status": "error", "error": "lost <path> while training"}
    described = last.pop("problem")
    assert last == {"event": "error", "status_code": 400, "body": body}
    assert (described["code"], described["retryable"]) == ("TRAINING_FAILED", False)
    assert described["detail"] == body["error"]
    assert described["trace_id"] == response.headers["x-trace-id"]
    assert kept(settings) == set()


async def test_upload_example_is_what_these_tests_train_on(client):
    response = await client.get(f"{DATASETS}/{await upload(client)}")
    assert (response.json()["rows"], len(response.json()["columns"])) == (60, 4)


async def test_request_of_too_many_fields_is_refused(client):
    fields = {f"field{number}": number for number in range(1001)}
    assert "1000 fields" in failed(await client.post(TRAIN, json=fields), 400, "MALFORMED_BODY")
