"""The main job on a real cluster: upload, train, distil, predict, save, export."""

import asyncio
import hashlib
import io
import json

import httpx
import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
import ray

from core import errors
from core.bundles import Bundle
from core.exchange import ARROW

pytestmark = pytest.mark.cluster

ROWS = [
    {"x0": 1.5, "x1": 0.1, "x2": 0.3, "x3": 0, "x4": 0, "x5": 0, "colour": "red"},
    {"x0": -2.5, "x1": 0.1, "x2": 0.3, "x3": 0, "x4": 0, "x5": 0, "colour": "blue"},
]


def test_student_of_a_run_predicts_and_is_smaller(client: httpx.Client, dataset: str, teacher: dict) -> None:
    student = client.post(
        "/api/v1/distill",
        json={
            "dataset_id": dataset,
            "target_column": "kind",
            "teacher_run_id": teacher["run_id"],
            "epochs": 15,
        },
    )
    assert student.status_code == 200, student.text
    body = student.json()
    assert body["student_param_count"] < 0.25 * body["teacher_param_count"]
    assert body["metrics"]["test_metric_value"] > 0.75
    assert body["fidelity"] > 0.8
    assert body["teacher_metrics"]["test_metric_value"] == teacher["metrics"]["test_metric_value"]
    for run_id in (teacher["run_id"], body["run_id"]):
        answer = client.post("/api/v1/predict", json={"run_id": run_id, "rows": ROWS})
        assert answer.status_code == 200, answer.text
        assert answer.json()["predictions"] == ["oak", "ash"]
        assert answer.json()["classes"] == ["ash", "oak"]


def test_run_and_model_of_one_training_predict_the_same(client: httpx.Client, teacher: dict) -> None:
    by_run = client.post("/api/v1/predict", json={"run_id": teacher["run_id"], "rows": ROWS}).json()
    by_model = client.post("/api/v1/predict", json={"model_id": "teacher", "rows": ROWS}).json()
    assert by_run == by_model


def test_large_arrow_stream_is_answered_in_kind_and_order(client: httpx.Client, teacher: dict) -> None:
    rng = np.random.default_rng(1)
    columns = {f"x{i}": rng.normal(size=50_000) for i in range(6)} | {"colour": ["red", "blue"] * 25_000}
    sink = io.BytesIO()
    table = pa.table(columns)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    answer = client.post(
        "/api/v1/predict",
        params={"run_id": teacher["run_id"]},
        content=sink.getvalue(),
        headers={"Content-Type": ARROW},
    )
    assert answer.status_code == 200, answer.text
    predicted = pa.ipc.open_stream(answer.content).read_all()
    assert predicted.num_rows == 50_000
    few = client.post(
        "/api/v1/predict",
        json={"run_id": teacher["run_id"], "columns": {k: list(v[-100:]) for k, v in columns.items()}},
    ).json()
    assert predicted["prediction"].to_pylist()[-100:] == few["predictions"]


def test_large_upload_arrives_whole_through_the_proxy(client: httpx.Client) -> None:
    content = b"a,b\n" + b"".join(b"%d,%d\n" % (i, i * 7) for i in range(500_000))
    for chunk_bytes in (1 << 20, 999):
        chunks = (content[start : start + chunk_bytes] for start in range(0, len(content), chunk_bytes))
        answer = client.post(
            "/api/v1/datasets?name=large.csv", content=chunks, headers={"Content-Type": "text/csv"}
        )
        assert answer.status_code in (200, 201), answer.text
        assert answer.json()["sha256"] == hashlib.sha256(content).hexdigest()
    client.delete(f"/api/v1/datasets/{answer.json()['dataset_id']}").raise_for_status()


@pytest.mark.parametrize("given", ["id-1", "two words"])
def test_answer_carries_one_valid_id(client: httpx.Client, given: str) -> None:
    answer = client.get("/nowhere", headers={"X-Request-ID": given})
    [request_id] = answer.headers.get_list("X-Request-ID")
    assert (request_id == given) is (given == "id-1")
    assert " " not in request_id


def test_head_is_answered_behind_serve(client: httpx.Client, dataset: str) -> None:
    answer = client.head(f"/api/v1/datasets/{dataset}")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["Content-Length"]) > 100


def test_exported_models_are_whole_files(client: httpx.Client, teacher: dict) -> None:
    bundle = client.get("/api/v1/models/teacher/export")
    assert Bundle.from_bytes(bundle.content).classes == ("ash", "oak")
    assert client.get(f"/api/v1/runs/{teacher['run_id']}/bundle").content == bundle.content
    onnx = client.get("/api/v1/models/teacher/export", params={"format": "onnx"})
    assert onnx.status_code == 200, onnx.text
    session = onnxruntime.InferenceSession(onnx.content)
    assert session.get_inputs()[0].shape[1] == Bundle.from_bytes(bundle.content).architecture.inputs
    torchscript = client.get("/api/v1/models/teacher/export", params={"format": "torchscript"})
    assert torchscript.content[:2] == b"PK"


def test_progress_comes_as_events_while_training_runs(client: httpx.Client, dataset: str) -> None:
    payload = {
        "dataset_id": dataset,
        "target_column": "kind",
        "epochs": 40,
        "early_stopping_patience": 0,
        "batch_size": 16,
    }
    headers = {"Accept": "text/event-stream"}
    with client.stream("POST", "/api/v1/train", json=payload, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert [event["event"] for event in events][:2] == ["started", "epoch"]
    assert events[-1]["event"] == "result"
    assert events[-1]["body"]["epochs_run"] == 40
    epochs = [event["epoch"] for event in events if event["event"] == "epoch"]
    assert len(epochs) >= 2
    assert epochs == sorted(epochs)


def test_python_handle_answers_what_http_sends(
    service, client: httpx.Client, dataset: str, teacher: dict
) -> None:
    volatile = {"run_id", "expires_at", "timings_s"}
    payload = {"dataset_id": dataset, "target_column": "kind", "epochs": 2}
    status, body = service.handle.handle_train_request.remote(payload).result(timeout_s=60)
    sent = client.post("/api/v1/train", json=payload).json()
    assert status == 200
    assert {k: v for k, v in body.items() if k not in volatile} == {
        k: v for k, v in sent.items() if k not in volatile
    }
    wrong = {"dataset_id": dataset, "target_column": "kind"}
    assert service.handle.handle_distill_request.remote(wrong).result(timeout_s=60) == (
        400,
        client.post("/api/v1/distill", json=wrong).json(),
    )
    rows = {"run_id": teacher["run_id"], "rows": ROWS}
    assert service.handle.predict.remote(rows).result(timeout_s=60) == (
        200,
        client.post("/api/v1/predict", json=rows).json(),
    )
    unknown = {"run_id": "nobody", "rows": ROWS}
    status, body = service.handle.predict.remote(unknown).result(timeout_s=60)
    assert (status, list(body)) == (404, ["detail"])
    assert service.handle.handle_train_request.remote([]).result(timeout_s=60)[0] == 400


def test_expired_teacher_run_is_the_fixed_404(client: httpx.Client, dataset: str) -> None:
    answer = client.post(
        "/api/v1/distill", json={"dataset_id": dataset, "target_column": "kind", "teacher_run_id": "gone"}
    )
    assert answer.status_code == 404
    assert answer.json() == {"status": "error", "error": "Teacher run not found or expired."}


def test_failure_inside_a_trainer_is_400_and_stores_nothing(
    service, client: httpx.Client, dataset: str
) -> None:
    before = service.stored()
    answer = client.post("/api/v1/train", json={"dataset_id": dataset, "target_column": "nonsense"})
    assert answer.status_code == 400
    assert "nonsense" in answer.json()["error"]
    assert answer.headers["X-Error-Code"] == "DATASET_INVALID_FORMAT"
    assert service.stored() == before


@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_absent_device_is_400(client: httpx.Client, dataset: str, device: str) -> None:
    answer = client.post(
        "/api/v1/train", json={"dataset_id": dataset, "target_column": "kind", "device": "cuda:7"}
    )
    assert answer.status_code == 400
    assert "device" in answer.json()["error"]


def test_malformed_row_spoils_no_other_request(service, teacher: dict) -> None:
    bad = [*ROWS, {**ROWS[0], "x0": "abc"}]

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
            calls = [
                client.post("/api/v1/predict", json={"run_id": teacher["run_id"], "rows": rows})
                for rows in [ROWS, bad] * 10
            ]
            return await asyncio.gather(*calls)

    answers = asyncio.run(ask())
    assert [answer.status_code for answer in answers] == [200, 422] * 10
    assert all("2" in answer.json()["detail"] and "x0" in answer.json()["detail"] for answer in answers[1::2])


def all_errors() -> list[type[errors.StillhouseError]]:
    found, stack = [], [errors.StillhouseError]
    while stack:
        found.append(stack.pop())
        stack += found[-1].__subclasses__()
    return found


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_arrives_from_another_process_as_it_left(
    service, kind: type[errors.StillhouseError]
) -> None:
    @ray.remote(num_cpus=0)
    def fail(kind: type[errors.StillhouseError]) -> None:
        raise kind("something must hold", field="x", value=3)

    with pytest.raises(kind) as caught:
        ray.get(fail.remote(kind))
    assert caught.value.cause.message == "something must hold"
    assert caught.value.cause.details == {"field": "x", "value": 3}
    assert type(caught.value.cause) is kind
