"""Both clients against the service itself: whatever it can do, they can, and with types."""

import inspect
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest

import stillhouse
from core.bundles import Bundle
from core.catalogue import CATALOGUE
from core.contract.validation import DISTILL_FIELDS, TRAIN_FIELDS
from core.jobs.orders import OPTION_FIELDS
from deployments.routes.examples import EXAMPLE_CSV
from stillhouse import calls, job_calls, requests
from stillhouse.fields import DistillFields, JobOptions, TrainFields
from tests.client.service import over
from tests.deployments.local import QUICK, QUICK_STUDENT, local_service, settings_in

FRAME = pd.read_csv(io.StringIO(EXAMPLE_CSV))
FEATURES = FRAME.drop(columns="kind")


@pytest.fixture
def dataset(client) -> stillhouse.Dataset:
    return client.datasets.upload(EXAMPLE_CSV.encode(), name="trees.csv")


@pytest.fixture
def teacher(client, dataset) -> stillhouse.Trained:
    return client.train(dataset_id=dataset.dataset_id, **QUICK)


# ── Datasets ────────────────────────────────────────────────────────────────────────────────────────────────


def test_upload_of_bytes_describes_the_table(dataset):
    assert (dataset.name, dataset.format, dataset.rows) == ("trees.csv", "csv", 60)
    assert [column.name for column in dataset.columns] == ["length", "width", "colour", "kind"]
    assert {type(column) for column in dataset.columns} == {stillhouse.Column}
    assert abs(datetime.now(UTC) - dataset.created_at) < timedelta(minutes=1)


@pytest.mark.parametrize("as_text", [True, False])
def test_upload_of_a_path_sends_the_file_under_its_name(client, dataset, tmp_path, as_text):
    file = tmp_path / "trees.csv"
    file.write_text(EXAMPLE_CSV)
    assert client.datasets.upload(str(file) if as_text else file) == dataset


def test_upload_of_a_file_larger_than_a_chunk_arrives_whole(client, tmp_path):
    file = tmp_path / "long.csv"
    file.write_text("number\n" + "".join(f"{number}\n" for number in range(50_000)))
    dataset = client.datasets.upload(file)
    assert (dataset.rows, dataset.bytes) == (50_000, file.stat().st_size)


@pytest.mark.parametrize("frame_format", ["parquet", "arrow"])
def test_upload_of_a_frame_keeps_columns_and_types(client, frame_format):
    dataset = client.datasets.upload(FRAME, frame_format=frame_format)
    assert (dataset.format, dataset.rows) == (frame_format, 60)
    preview = client.datasets.preview(dataset.dataset_id, rows=3)
    assert preview.columns == tuple(FRAME.columns)
    assert [list(row) for row in preview.rows] == FRAME.head(3).values.tolist()


def test_datasets_are_listed_looked_at_and_deleted(client, dataset):
    assert list(client.datasets.list()) == [dataset]
    assert client.datasets.get(dataset.dataset_id) == dataset
    assert client.datasets.delete(dataset.dataset_id) is None
    assert list(client.datasets.list()) == []


KEPT = {"save_model": True, "model_id": "kept", "overwrite": True}

# ── Jobs ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_train_answers_with_types(client, teacher):
    assert isinstance(teacher, stillhouse.Trained)
    assert teacher.metrics.test_metric_name == "accuracy"
    assert 0 <= teacher.metrics.test_metric_value <= 1
    assert teacher.rows.train + teacher.rows.validation + teacher.rows.test == 60
    assert timedelta(minutes=14) < teacher.expires_at - datetime.now(UTC) < timedelta(minutes=16)
    assert (teacher.epochs_run, teacher.model_id, teacher.warnings) == (3, None, ())


def test_an_ensemble_is_a_run_that_predicts_teaches_and_is_exported(client, dataset):
    trained = client.train(dataset_id=dataset.dataset_id, ensemble_size=3, **KEPT, **QUICK)
    assert [member.kept for member in trained.members] == [True] * 3
    assert len({member.random_seed for member in trained.members}) == 3
    assert client.models.get("kept").architecture["members"] == 3
    assert len(client.predict(FEATURES, run_id=trained.run_id)) == len(FEATURES)
    student = client.distill(dataset_id=dataset.dataset_id, teacher_run_id=trained.run_id, **QUICK_STUDENT)
    assert student.teacher_param_count > 3 * student.student_param_count / 2
    assert client.models.export("kept", "onnx")


def test_a_sweep_tells_its_members_and_keeps_the_best(client, dataset):
    sweep = {"learning_rate": [0.001, 0.01], "dropout": [0, 0.5]}
    trained = client.train(dataset_id=dataset.dataset_id, sweep=sweep, **QUICK)
    found = [(member.learning_rate, member.dropout) for member in trained.members]
    assert found == [(0.001, 0), (0.001, 0.5), (0.01, 0), (0.01, 0.5)]
    [kept] = [member for member in trained.members if member.kept]
    assert kept.validation_loss == min(member.validation_loss for member in trained.members)


def test_distil_compares_student_and_teacher(client, dataset, teacher):
    student = client.distill(
        dataset_id=dataset.dataset_id, teacher_run_id=teacher.run_id, alpha=0.3, **QUICK_STUDENT
    )
    assert isinstance(student, stillhouse.Distilled)
    ours, told = teacher.metrics, student.teacher_metrics
    assert (told.task, told.test_metric_value) == (ours.task, ours.test_metric_value)
    assert told.extra == pytest.approx(ours.extra, rel=1e-5)  # computed twice, in float32
    saved = student.teacher_param_count - student.student_param_count
    assert (student.param_saved_count, student.teacher_input_dim) == (saved, student.student_input_dim)
    assert 0 <= student.fidelity <= 1


def test_progress_is_told_epoch_by_epoch(client, dataset):
    reports: list[stillhouse.EpochReport] = []
    trained = client.train(dataset_id=dataset.dataset_id, progress=reports.append, **QUICK)
    assert isinstance(trained, stillhouse.Trained)
    assert reports[0].epoch == 1
    assert {report.epochs for report in reports} == {3}
    assert all(report.train_loss > 0 for report in reports)


def test_progress_changes_nothing_of_the_answer(client, dataset, teacher):
    followed = client.train(dataset_id=dataset.dataset_id, progress=lambda _: None, **QUICK)
    assert followed.metrics == teacher.metrics
    assert followed.run_id != teacher.run_id


def test_server_side_file_is_trained_on(client, settings):
    root = Path(settings.data_roots[0])
    root.mkdir(parents=True, exist_ok=True)
    (root / "trees.csv").write_text(EXAMPLE_CSV)
    assert client.train(data_path="trees.csv", **QUICK).epochs_run == 3


# ── Predictions ─────────────────────────────────────────────────────────────────────────────────────────────


def test_frames_and_rows_and_files_are_predicted_alike(client, teacher):
    frame = client.predict(FEATURES, run_id=teacher.run_id)
    rows = client.predict_rows(FEATURES.to_dict("records"), run_id=teacher.run_id)
    file = client.predict_table(FEATURES.to_csv(index=False).encode(), run_id=teacher.run_id)
    assert list(frame.columns) == ["prediction", "probability_ash", "probability_oak"]
    assert rows.classes == ("ash", "oak")
    assert frame.prediction.tolist() == list(rows.predictions)
    assert pd.read_csv(io.BytesIO(file.content)).prediction.tolist() == list(rows.predictions)
    probabilities = frame[["probability_ash", "probability_oak"]].to_numpy()
    assert np.allclose(probabilities, rows.probabilities, atol=1e-6)  # float32 as text


def test_predicted_frame_has_the_index_and_the_warnings_of_its_rows(client, teacher):
    asked = FEATURES.head(2).assign(colour="violet").set_axis([7, 9])
    predicted = client.predict(asked, run_id=teacher.run_id)
    assert predicted.index.tolist() == [7, 9]
    assert any("colour" in warning for warning in predicted.attrs["warnings"])


@pytest.mark.parametrize("given", [[{"length": 1.0}], {"length": [1.0]}, "file.csv", None])
def test_what_is_no_frame_is_refused_with_the_method_that_takes_it(client, given):
    with pytest.raises(TypeError, match=f"takes a DataFrame, got {type(given).__name__}: use predict_rows"):
        client.predict(given, run_id="r")


def test_file_is_answered_in_the_type_that_is_asked_for(client, teacher):
    csv = FEATURES.to_csv(index=False).encode()
    answer = client.predict_table(csv, answer_as=requests.PARQUET, run_id=teacher.run_id)
    assert answer.media_type == requests.PARQUET
    assert len(pd.read_parquet(io.BytesIO(answer.content))) == 60


# ── Runs and models ─────────────────────────────────────────────────────────────────────────────────────────


def test_runs_are_listed_looked_at_downloaded_and_deleted(client, teacher):
    [run] = client.runs.list()
    details = client.runs.get(teacher.run_id)
    assert (run.run_id, run.kind, run.metric.name) == (teacher.run_id, "train", "accuracy")
    assert (details.schema["target"], details.lineage) == ("kind", {"teacher": None})
    assert Bundle.from_bytes(client.runs.download(teacher.run_id)).classes == ("ash", "oak")
    client.runs.delete(teacher.run_id)
    assert list(client.runs.list()) == []


def test_saved_run_is_a_model(client, teacher):
    saved = client.runs.save(teacher.run_id, model_id="oaks")
    assert saved.model_id == "oaks"
    [model] = client.models.list()
    details = client.models.get("oaks")
    assert (model.model_id, model.training_mode) == ("oaks", "mlp_dense")
    assert details.metrics["test_metric_value"] == teacher.metrics.test_metric_value
    assert client.models.export("oaks") == client.runs.download(teacher.run_id)
    assert client.models.export("oaks", "onnx") != client.models.export("oaks", "torchscript")
    assert client.predict(FEATURES, model_id="oaks").prediction.isin(["ash", "oak"]).all()
    client.models.delete("oaks")
    assert list(client.models.list()) == []


def test_run_saved_without_a_name_gets_one(client, teacher):
    assert client.models.get(client.runs.save(teacher.run_id).model_id).task == "classification"


def test_lists_walk_over_all_pages(client):
    ids = {client.datasets.upload(f"number\n{i}\n".encode(), name="n.csv").dataset_id for i in range(101)}
    listed = [dataset.dataset_id for dataset in client.datasets.list()]
    assert len(ids) == 101  # more than one page holds
    assert listed == sorted(ids)


# ── The service ─────────────────────────────────────────────────────────────────────────────────────────────


def test_limits_errors_and_health_are_typed(client, settings):
    limits = client.limits()
    assert (limits.rows, limits.train["epochs"].max) == (settings.limits.rows, 10_000)
    assert (limits.train["test_size"].exclusive_min, limits.queue.free) == (True, limits.queue.capacity)
    assert {entry.code: entry.suggested_action for entry in client.errors()} == {
        code: entry.suggested_action for code, entry in CATALOGUE.items()
    }
    assert (client.health().status, client.health().components["predictor"]["status"]) == ("ok", "ok")


def test_health_of_an_unavailable_service_is_an_answer(connect, settings):
    service = local_service(settings)

    async def failing():
        return False, {"registry": {"status": "unavailable"}}

    service.health = failing
    assert connect(over(service)).health().status == "unavailable"


def test_token_opens_the_service(connect, tmp_path):
    accepted = "of-the-house"
    file = tmp_path / "tokens"
    file.write_text(f"{accepted}\n")
    service = local_service(settings_in(tmp_path, tokens_file=str(file)))
    assert list(connect(over(service), token=accepted).runs.list()) == []
    with pytest.raises(stillhouse.errors.AuthenticationError) as raised:
        connect(over(service), token=accepted[::-1]).limits()
    assert raised.value.status == 401


# ── The description ─────────────────────────────────────────────────────────────────────────────────────────


JOB_FIELDS = OPTION_FIELDS - {"kind", "framework"}  # an argument of its own, and one of a single value


@pytest.mark.parametrize(
    ("fields", "known"),
    [(TrainFields, TRAIN_FIELDS), (DistillFields, DISTILL_FIELDS), (JobOptions, JOB_FIELDS)],
)
def test_fields_are_those_of_the_contract(fields, known):
    assert fields.__annotations__.keys() == known


def test_both_clients_offer_the_same_methods():
    def offered(thing: object) -> dict[str, list[str]]:
        methods = {name: value for name, value in inspect.getmembers(thing, callable) if name[0] != "_"}
        return {name: list(inspect.signature(value).parameters) for name, value in methods.items()}

    blocking, awaiting = stillhouse.Client(), stillhouse.AsyncClient()
    assert offered(blocking) == offered(awaiting)
    for part in ("datasets", "runs", "models", "jobs"):
        assert offered(getattr(blocking, part)) == offered(getattr(awaiting, part)) != {}


def test_every_call_is_a_method_of_the_clients():
    described = {
        value
        for module in (calls, job_calls)
        for name, value in inspect.getmembers(module, inspect.isfunction)
        if name[0] != "_" and value.__module__ == module.__name__
    }
    client = stillhouse.Client()
    offered = {
        inspect.unwrap(value)
        for thing in (client, client.datasets, client.runs, client.models, client.jobs)
        for _, value in inspect.getmembers(type(thing), inspect.isfunction)
    }
    assert {call for call in described if not call.__name__.endswith("_page")} <= offered


# ── Idempotency ─────────────────────────────────────────────────────────────────────────────────────────────


class Losing(httpx.AsyncBaseTransport):
    """Loses the first answer to a POST on its way back."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner, self.answers = inner, []

    async def handle_async_request(self, request):
        answer = await self._inner.handle_async_request(request)
        await answer.aread()
        if request.method == "POST" and request.url.path.endswith("/train"):
            self.answers.append(answer)
            if len(self.answers) == 1:
                raise httpx.ReadError("reset")
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


@pytest.mark.parametrize("progress", [None, lambda _: None])
def test_training_whose_answer_was_lost_is_not_done_twice(connect, service, progress):
    transport = Losing(over(service))
    client = connect(transport, sleep=lambda _: None)
    dataset = client.datasets.upload(EXAMPLE_CSV.encode(), name="trees.csv")
    trained = client.train(dataset_id=dataset.dataset_id, progress=progress, **QUICK)
    assert [run.run_id for run in client.runs.list()] == [trained.run_id]
    assert [answer.headers.get("idempotent-replayed") for answer in transport.answers] == [None, "true"]
