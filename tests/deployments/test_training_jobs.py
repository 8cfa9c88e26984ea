"""Training jobs over HTTP: the acceptance table of jobs.md (section 14), row by row where it is told."""

import asyncio
import json
import threading

import pytest

from core.catalogue import CATALOGUE
from core.errors import CudaOutOfMemoryError, TrainerUnreachableError, TrainingDivergedError
from core.storage import Storage
from deployments.settings import JobSettings
from deployments.trainer import Trainer
from tests.deployments.local import (
    DISTILL,
    MODELS,
    PREDICT,
    QUICK,
    RUNS,
    TRAIN,
    local_service,
    settings_in,
    strict_json,
    upload,
)

pytestmark = pytest.mark.anyio
JOBS = "/api/v1/training-jobs"


class PausedTrainer(Trainer):
    """Stands still in the middle of a training until the gate is opened or it is stopped."""

    def __init__(self, *parts):
        super().__init__(*parts)
        self.gate, self.begun = threading.Event(), threading.Event()

    def _train(self, work, request):
        self.begun.set()
        while not self.gate.wait(0.01) and not work.stopped.is_set():
            pass
        return super()._train(work, request)


@pytest.fixture
async def service(settings):
    service = local_service(settings)
    yield service
    await service.desk.jobs.close()


@pytest.fixture
async def paused(settings, connect):
    """A service whose trainer stands still, with its client and its trainer."""
    service = local_service(settings, trainer=PausedTrainer)
    async with connect(service) as client:
        client.trainer, client.service = service._trainer._target, service
        yield client
        client.trainer.gate.set()
    await service.desk.jobs.close()


async def create(client, **fields):
    answer = await client.post(JOBS, json=QUICK | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def until(client, job_id, *states):
    """The job once it is in one of the states."""
    async with asyncio.timeout(60):
        while True:
            job = (await client.get(f"{JOBS}/{job_id}")).json()
            if job["status"] in states:
                return job
            await asyncio.sleep(0.02)


async def ended(client, **fields):
    job = await create(client, **fields)
    return await until(client, job["job_id"], "completed", "failed", "cancelled")


def refused(answer, status, code):
    """Asserts an error in the platform dialect; returns its object."""
    entry = CATALOGUE[code]
    assert (answer.status_code, answer.headers["x-error-code"]) == (status, code), answer.text
    body = strict_json(answer.content)
    assert body.keys() == {"error"}
    error = body["error"]
    assert (error["code"], error["type"], error["severity"]) == (code, entry.type, error["severity"])
    assert len(error["message"]) < 100
    assert error["suggested_action"]
    assert error["trace_id"] == answer.headers["x-trace-id"]
    assert error["request_id"] == answer.headers["x-request-id"]
    return error


# ── The tests of seed 001 ───────────────────────────────────────────────────────────────────────────────────


async def test_job_on_a_dataset_that_is_missing_fails_later_and_permanently(client):
    answer = await client.post(
        JOBS, json={"model": "yolo11n", "dataset_id": "invalid-dataset", "epochs": 100}
    )
    assert answer.status_code == 200
    job = await until(client, answer.json()["job_id"], "failed")
    assert job["error"]["type"] == "permanent"
    assert "dataset" in job["error"]["message"].lower()
    assert job["error"]["suggested_action"] is not None
    assert (job["error"]["code"], job["retryable"]) == ("DATASET_NOT_FOUND", False)


async def test_trainer_that_fails_twice_is_called_three_times_before_the_answer(client, service):
    jobs = service.desk.jobs
    jobs.failures = [TrainerUnreachableError(), TrainerUnreachableError()]
    answer = await client.post(JOBS, json=QUICK | {"dataset_id": await upload(client)})
    assert answer.status_code == 200
    assert jobs.checks == 3


async def test_job_without_trainers_is_refused_and_kept_as_failed(client, service):
    service.desk.jobs.failures = [TrainerUnreachableError() for _ in range(3)]
    answer = await client.post(JOBS, json=QUICK | {"dataset_id": await upload(client)})
    error = refused(answer, 503, "TRAINER_UNREACHABLE")
    assert answer.headers["retry-after"] == "30"
    job = (await client.get(f"{JOBS}/{error['context']['job_id']}")).json()
    assert (job["status"], job["error"]["code"]) == ("failed", "TRAINER_UNREACHABLE")


# ── From beginning to end ───────────────────────────────────────────────────────────────────────────────────


async def test_job_trains_saves_and_predicts(client):
    dataset = await upload(client)
    answer = await client.post(
        JOBS, json=QUICK | {"dataset_id": dataset, "experiment_name": "trees", "tags": ["a"], "priority": 3}
    )
    job_id = answer.json()["job_id"]
    assert answer.headers["location"] == f"{JOBS}/{job_id}"
    job = await until(client, job_id, "completed", "failed")
    assert (job["status"], job["current_epoch"], job["progress_percent"]) == ("completed", 3, 100)
    assert (job["experiment_name"], job["tags"], job["priority"]) == ("trees", ["a"], 3)
    assert job["error"] is None
    assert job["started_at"] <= job["completed_at"]
    snapshot = job["snapshot"]
    assert (snapshot["rows"], snapshot["sha256"][:32]) == (
        job["result"]["rows"]["train"] + sum(job["result"]["rows"][part] for part in ("validation", "test")),
        dataset.partition("-")[2],
    )
    assert (await client.get(f"{MODELS}/{job['model_id']}")).status_code == 200
    assert (await client.get(f"{RUNS}/{job['run_id']}")).status_code == 200


async def test_student_job_learns_from_a_teacher_job(client):
    dataset = await upload(client)
    teacher = await ended(client, dataset_id=dataset)
    order = {"kind": "distill", "dataset_id": dataset, "target_column": "kind", "epochs": 3}
    answer = await client.post(JOBS, json=order | {"teacher_run_id": teacher["run_id"]})
    student = await until(client, answer.json()["job_id"], "completed", "failed")
    assert (student["status"], student["kind"]) == ("completed", "distill"), student["error"]
    assert student["result"]["teacher_param_count"] > 0


async def test_epochs_are_kept_one_by_one_and_the_latest_shown_first(client):
    job = await ended(client, dataset_id=await upload(client), epochs=5, early_stopping_patience=5)
    page = (await client.get(f"{JOBS}/{job['job_id']}/metrics", params={"limit": 2})).json()
    assert [row["epoch"] for row in page["data"]] == [4, 5]
    from_one = await client.get(f"{JOBS}/{job['job_id']}/metrics", params={"from_epoch": 1})
    assert [row["epoch"] for row in from_one.json()["data"]] == [1, 2, 3, 4, 5]
    status = (await client.get(f"{JOBS}/{job['job_id']}/status")).json()
    assert len(status["recent_metrics"]) == 5
    schema = (await client.get(f"{JOBS}/{job['job_id']}/metric-schema")).json()
    assert "validation_loss" in schema["metrics"]


async def test_history_has_each_state_once_and_can_be_read_from_any_point(client):
    job = await ended(client, dataset_id=await upload(client))
    events = (await client.get(f"{JOBS}/{job['job_id']}/events")).json()
    assert [event["seq"] for event in events["data"]] == list(range(1, len(events["data"]) + 1))
    moves = [event["new"] for event in events["data"] if event["type"] == "status_change"]
    assert moves == ["pending", "running", "completed"]
    rest = (await client.get(f"{JOBS}/{job['job_id']}/events", params={"after": 2})).json()
    assert rest["data"] == events["data"][2:]


async def test_live_events_end_with_the_job(client):
    job = await create(client, dataset_id=await upload(client))
    headers = {"accept": "text/event-stream"}
    async with asyncio.timeout(60):
        answer = await client.get(f"{JOBS}/{job['job_id']}/events", headers=headers)
    frames = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    states = [frame["new"] for frame in frames if frame["type"] == "status_change"]
    assert states == ["pending", "running", "completed"]
    assert frames[-1]["type"] == "completed"
    assert frames[-1]["result"]["status"] == "ok"
    again = await client.get(f"{JOBS}/{job['job_id']}/events", headers=headers | {"last-event-id": "2"})
    assert "id: 2\n" not in again.text
    assert "id: 3\n" in again.text


@pytest.mark.parametrize("path", [TRAIN, DISTILL])
async def test_request_that_need_not_wait_becomes_a_job(client, path):
    fields = {"dataset_id": await upload(client), "target_column": "kind", "epochs": 2}
    if path == DISTILL:
        fields["teacher_run_id"] = (await ended(client, dataset_id=fields["dataset_id"]))["run_id"]
    answer = await client.post(path, json=fields, headers={"prefer": "respond-async, wait=10"})
    assert answer.status_code == 202, answer.text
    job = await until(client, answer.json()["job_id"], "completed", "failed")
    assert answer.headers["location"] == f"{JOBS}/{job['job_id']}"
    assert (job["status"], job["kind"]) == ("completed", path.rsplit("/")[-1])


# ── Rows 1 to 8: what is refused at once ────────────────────────────────────────────────────────────────────


async def test_body_that_is_no_json_is_refused(client):
    answer = await client.post(JOBS, content=b"{", headers={"content-type": "application/json"})
    refused(answer, 400, "MALFORMED_BODY")


WRONG = {
    "no data": {"target_column": "kind"},
    "epochs of 0": {"dataset_id": "d", "epochs": 0},
    "negative epochs": {"dataset_id": "d", "epochs": -5},
    "too many epochs": {"dataset_id": "d", "epochs": 10_001},
    "epochs as a word": {"dataset_id": "d", "epochs": "many"},
    "batch of 0": {"dataset_id": "d", "batch_size": 0},
    "learning rate of 0": {"dataset_id": "d", "learning_rate": 0},
    "learning rate above 1": {"dataset_id": "d", "learning_rate": 1.5},
    "priority": {"dataset_id": "d", "priority": 11},
    "kind": {"dataset_id": "d", "kind": "guess"},
    "tags": {"dataset_id": "d", "tags": "a,b"},
    "callback": {"dataset_id": "d", "callback_url": "ftp://example.com"},
    "callback with a password": {"dataset_id": "d", "callback_url": "https://u:p@example.com"},
    "time limit": {"dataset_id": "d", "time_limit_s": 0},
    "on_oom": {"dataset_id": "d", "on_oom": "pray"},
    "strict": {"dataset_id": "d", "strict": "yes"},
    "no teacher": {"dataset_id": "d", "kind": "distill"},
    "notes": {"dataset_id": "d", "notes": "x" * 10_001},
}


@pytest.mark.parametrize("case", WRONG)
async def test_wrong_field_is_named(client, case):
    error = refused(await client.post(JOBS, json=WRONG[case]), 400, "VALIDATION_FAILED")
    [violation] = error["errors"]
    assert violation["param"] in (*WRONG[case], "dataset_id", "teacher_run_id")
    assert error["type"] == "user_error"
    assert (await client.get(JOBS)).json()["total"] == 0


async def test_all_wrong_fields_are_listed_together(client):
    fields = {"epochs": -5, "batch_size": 0, "learning_rate": 2, "test_size": 5, "tags": 3}
    error = refused(await client.post(JOBS, json=fields), 400, "VALIDATION_FAILED")
    assert {found["param"] for found in error["errors"]} == {*fields, "dataset_id"}
    assert "5 more" in error["message"]


async def test_fields_that_cannot_be_together_are_an_invalid_configuration(client):
    fields = {"dataset_id": "d", "epochs": 5, "early_stopping_patience": 9}
    error = refused(await client.post(JOBS, json=fields), 422, "INVALID_CONFIG")
    assert error["param"] == "early_stopping_patience"


async def test_unknown_model_and_unknown_framework_or_task_are_refused(client):
    mode = await client.post(JOBS, json={"dataset_id": "d", "training_mode": "yolo11n"})
    assert refused(mode, 422, "INVALID_MODEL")["retry_mode"] == "after_change"
    for field in ({"framework": "keras"}, {"task": "ranking"}):
        refused(await client.post(JOBS, json={"dataset_id": "d"} | field), 422, "INVALID_CONFIG")


async def test_missing_dataset_is_404_at_once_where_the_order_is_strict(client):
    for answer in (
        await client.post(JOBS, json={"dataset_id": "gone", "strict": True}),
        await client.post(JOBS, params={"strict": "true"}, json={"dataset_id": "gone"}),
    ):
        refused(answer, 404, "DATASET_NOT_FOUND")
    assert (await client.get(JOBS)).json()["total"] == 0


async def test_problem_details_are_given_where_asked_for(client):
    answer = await client.post(JOBS, json={"epochs": 0}, headers={"accept": "application/problem+json"})
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "VALIDATION_FAILED"


# ── Rows 16 to 42: what is the job's failure ────────────────────────────────────────────────────────────────

BROKEN_TABLES = {
    "not a table": (b"\x00\x01\x02", {}),
    "no rows": (b"a,kind\n", {}),
    "one row": (b"a,kind\n1,x\n", {}),
    "one class": (b"a,kind\n" + b"1,x\n" * 30, {}),
    "no target": (b"a,b\n" + b"1,2\n" * 30, {}),
}


@pytest.mark.parametrize("case", BROKEN_TABLES)
async def test_data_that_cannot_be_learnt_from_fails_the_job(client, settings, case):
    content, fields = BROKEN_TABLES[case]
    file = settings.roots()[0] / "table.csv"
    file.write_bytes(content)
    answer = await client.post(JOBS, json=QUICK | {"data_path": str(file)} | fields)
    job = await until(client, answer.json()["job_id"], "failed", "completed")
    assert (job["status"], job["error"]["code"]) == ("failed", "DATASET_INVALID_FORMAT")
    assert job["error"]["type"] == "user_error"
    assert str(file.parent) not in json.dumps(job["error"])


async def test_job_without_a_target_fails_with_its_name(client):
    answer = await client.post(JOBS, json={"dataset_id": await upload(client)})
    job = await until(client, answer.json()["job_id"], "failed", "completed")
    assert (job["error"]["code"], job["error"]["param"]) == ("INVALID_DATA_TARGET", "target_column")


async def test_file_that_changed_breaks_the_next_attempt_until_a_new_snapshot(client, settings, service):
    file = settings.roots()[0] / "table.csv"
    rows = [f"{n},{n % 7},{'ab'[n % 2]}" for n in range(60)]
    file.write_text("\n".join(["x,y,kind", *rows]))
    job = await ended(client, data_path=str(file))
    assert job["status"] == "completed"
    file.write_text("\n".join(["x,y,kind", *rows, "99,9,a"]))
    await client.post(f"{JOBS}/{job['job_id']}/retry")
    broken = await until(client, job["job_id"], "failed", "completed")
    assert (broken["error"]["code"], broken["snapshot_status_at_start"]) == ("DATASET_BROKEN", "broken")
    await client.post(f"{JOBS}/{job['job_id']}/retry", json={"new_snapshot": True})
    whole = await until(client, job["job_id"], "failed", "completed")
    assert (whole["status"], whole["snapshot"]["rows"], whole["attempt"]) == ("completed", 61, 3)


class FailingTrainer(Trainer):
    failure: Exception

    def _train(self, work, request):
        raise self.failure


FAILURES = {
    "CUDA_OOM": CudaOutOfMemoryError(batch_size=64, allocated_bytes=1, total_bytes=2),
    "TRAINING_DIVERGED": TrainingDivergedError("The loss is no longer finite."),
    "TRAINING_FAILED": ZeroDivisionError("of /srv/secret/place"),
}


@pytest.mark.parametrize("code", FAILURES)
async def test_failure_of_a_training_is_the_jobs(settings, connect, code):
    service = local_service(settings, trainer=FailingTrainer)
    service._trainer._target.failure = FAILURES[code]
    async with connect(service) as client:
        job = await ended(client, dataset_id=await upload(client))
        entry = CATALOGUE[code]
        assert (job["error"]["code"], job["error"]["type"]) == (code, entry.type)
        assert job["error"]["retry_mode"] == entry.retry
        assert "/srv" not in json.dumps(job)
    await service.desk.jobs.close()


async def test_attempt_that_passes_its_limit_fails_with_it(client):
    job = await ended(
        client, dataset_id=await upload(client), epochs=10_000, time_limit_s=0.2, early_stopping_patience=0
    )
    assert (job["error"]["code"], job["error"]["type"]) == ("TRAINING_TIMEOUT", "permanent")


# ── Rows 54 to 60: cancelling and retrying ──────────────────────────────────────────────────────────────────


async def test_running_job_is_cancelled_and_leaves_nothing(paused):
    job = await create(paused, dataset_id=await upload(paused))
    await until(paused, job["job_id"], "running")
    answer = await paused.post(f"{JOBS}/{job['job_id']}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    again = await paused.post(f"{JOBS}/{job['job_id']}/stop")
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")
    assert (await paused.get(RUNS)).json()["data"] == []
    assert (await paused.get(MODELS)).json()["data"] == []


async def test_waiting_job_is_told_its_place_and_can_be_cancelled(paused):
    dataset = await upload(paused)
    first = await create(paused, dataset_id=dataset)
    await until(paused, first["job_id"], "running")
    second, third = [await create(paused, dataset_id=dataset) for _ in range(2)]
    assert second["status"] == "queued"
    shown = (await paused.get(f"{JOBS}/{third['job_id']}")).json()
    assert shown["queue"] == {"position": 2, "reason": "1 job is ahead of this one."}
    cancelled = await paused.post(f"{JOBS}/{second['job_id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")


async def test_job_that_has_ended_cannot_be_cancelled(client):
    job = await ended(client, dataset_id=await upload(client))
    error = refused(await client.post(f"{JOBS}/{job['job_id']}/cancel"), 409, "JOB_STATE_CONFLICT")
    assert error["context"]["state"] == "completed"
    assert error["retryable"] is False


async def test_running_job_cannot_be_retried_yet(paused):
    job = await create(paused, dataset_id=await upload(paused))
    await until(paused, job["job_id"], "running")
    error = refused(await paused.post(f"{JOBS}/{job['job_id']}/retry"), 409, "JOB_STATE_CONFLICT")
    assert (error["retryable"], error["retry_mode"]) == (True, "after_delay")


async def test_retry_changes_the_request_and_keeps_the_first_attempt(client):
    job = await ended(client, dataset_id=await upload(client), epochs=2)
    answer = await client.post(f"{JOBS}/{job['job_id']}/retry", json={"epochs": 4})
    assert (answer.status_code, answer.json()["attempt"]) == (200, 2)
    again = await until(client, job["job_id"], "completed", "failed")
    assert (again["status"], again["current_epoch"], again["request"]["epochs"]) == ("completed", 4, 4)
    first, second = (await client.get(f"{JOBS}/{job['job_id']}/attempts")).json()["data"]
    assert (first["outcome"], second["reason"], second["changes"]) == ("completed", "retry", {"epochs": 4})
    old = await client.get(f"{JOBS}/{job['job_id']}/metrics", params={"attempt": 1})
    assert len(old.json()["data"]) == 2


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"epochs": 0}, 400, "VALIDATION_FAILED"),
        ({"kind": "distill"}, 400, "VALIDATION_FAILED"),
        ({"resume_from": 7}, 400, "VALIDATION_FAILED"),
        ({"training_mode": "magic"}, 422, "INVALID_MODEL"),
        ({"resume_from": "last"}, 409, "CHECKPOINT_INVALID"),
    ],
)
async def test_retry_that_cannot_be_is_refused_and_changes_nothing(client, body, status, code):
    job = await ended(client, dataset_id=await upload(client))
    refused(await client.post(f"{JOBS}/{job['job_id']}/retry", json=body), status, code)
    assert (await client.get(f"{JOBS}/{job['job_id']}")).json() == job | {"queue": None}


# ── Checkpoints ─────────────────────────────────────────────────────────────────────────────────────────────


class LostTrainer(Trainer):
    """Dies, as far as its first attempt at a job can tell, when it has kept two checkpoints."""

    def _train(self, work, request):
        if work.checkpoints.assignment.attempt == 1:
            keep = work.checkpoints.keep

            def keep_and_die(epoch, state):
                keep(epoch, state)
                if epoch >= 4:
                    work.stopped.set()

            work.checkpoints.keep = keep_and_die
        return super()._train(work, request)


async def test_job_whose_trainer_is_lost_ends_with_the_same_bits(tmp_path, connect):
    bundles = []
    for number, trainer in enumerate((Trainer, LostTrainer)):
        folder = tmp_path / str(number)
        folder.mkdir()
        jobs = JobSettings(database_url=f"sqlite:///{folder}/jobs.db", checkpoint_every_s=1e-9)
        service = local_service(settings_in(folder, jobs=jobs), trainer=trainer)
        async with connect(service) as client:
            job = await ended(client, dataset_id=await upload(client), epochs=12, early_stopping_patience=12)
            assert job["status"] == "completed", job["error"]
            answer = await client.get(f"{RUNS}/{job['run_id']}/bundle")
            assert answer.status_code == 200
            bundles.append(answer.content)
            kept = (await client.get(f"{JOBS}/{job['job_id']}/checkpoints")).json()["data"]
            if trainer is LostTrainer:
                assert job["attempt"] == 2
                assert {point["attempt"] for point in kept} == {1, 2}
        await service.desk.jobs.close()
    assert bundles[0] == bundles[1]


async def test_damaged_checkpoint_fails_the_retry_and_says_so(tmp_path, connect):
    jobs = JobSettings(database_url=f"sqlite:///{tmp_path}/jobs.db", checkpoint_every_s=1e-9)
    settings = settings_in(tmp_path, jobs=jobs)
    service = local_service(settings)
    async with connect(service) as client:
        job = await ended(client, dataset_id=await upload(client))
        storage = Storage(settings.expanded_storage_url())
        for name in storage.names(f"jobs/{job['job_id']}/checkpoints"):
            storage.write(name, storage.read(name)[:-9])
        await client.post(f"{JOBS}/{job['job_id']}/retry", json={"resume_from": "last"})
        again = await until(client, job["job_id"], "failed", "completed")
        assert (again["error"]["code"], again["error"]["type"]) == ("CHECKPOINT_INVALID", "permanent")
    await service.desk.jobs.close()


# ── Lists, owners, keys ─────────────────────────────────────────────────────────────────────────────────────


async def test_unknown_job_is_not_found_on_every_route(client):
    for route in ("", "/status", "/events", "/metrics", "/logs", "/checkpoints", "/attempts"):
        refused(await client.get(f"{JOBS}/nope{route}"), 404, "JOB_NOT_FOUND")
    for route in ("cancel", "stop", "retry", "restart"):
        refused(await client.post(f"{JOBS}/nope/{route}"), 404, "JOB_NOT_FOUND")


async def test_list_filters_by_state_with_aliases_and_pages(client):
    dataset = await upload(client)
    for _ in range(3):
        await ended(client, dataset_id=dataset)
    page = (await client.get(JOBS, params={"status": "succeeded", "limit": 2})).json()
    assert (len(page["data"]), page["total"], page["has_more"]) == (2, 3, True)
    rest = (await client.get(JOBS, params={"limit": 2, "cursor": page["next_cursor"]})).json()
    assert (len(rest["data"]), rest["has_more"]) == (1, False)
    assert (await client.get(JOBS, params={"status": "failed,running"})).json()["total"] == 0
    refused(await client.get(JOBS, params={"status": "sleeping"}), 400, "INVALID_PARAMETER")
    refused(await client.get(JOBS, params={"limit": 0}), 422, "SCHEMA_VIOLATION")
    refused(await client.get(JOBS, params={"cursor": "xx"}), 400, "INVALID_REQUEST")


async def test_jobs_of_others_are_not_there_but_for_operators(tmp_path, connect):
    tokens = tmp_path / "tokens"
    tokens.write_text("ada train\nbob train\nroot admin\n")
    settings = settings_in(tmp_path, allow_no_auth=False, tokens_file=str(tokens))
    service = local_service(settings)

    def header(name):
        return {"authorization": f"Bearer {name}"}

    async with connect(service) as client:
        answer = await client.post(JOBS, json={"dataset_id": "d"}, headers=header("ada"))
        url = f"{JOBS}/{answer.json()['job_id']}"
        refused(await client.get(url, headers=header("bob")), 404, "JOB_NOT_FOUND")
        refused(await client.post(f"{url}/cancel", headers=header("bob")), 404, "JOB_NOT_FOUND")
        assert (await client.get(JOBS, headers=header("bob"))).json()["total"] == 0
        for name in ("ada", "root"):
            assert (await client.get(url, headers=header(name))).status_code == 200
        refused(await client.get(url), 401, "INVALID_TOKEN")
        assert "ada" not in (await client.get(url, headers=header("ada"))).text
    await service.desk.jobs.close()


async def test_quota_of_a_user_is_refused_without_a_time(tmp_path, connect):
    jobs = JobSettings(database_url=f"sqlite:///{tmp_path}/jobs.db", active_per_user=1)
    service = local_service(settings_in(tmp_path, jobs=jobs), trainer=PausedTrainer)
    async with connect(service) as client:
        await create(client, dataset_id=await upload(client))
        answer = await client.post(JOBS, json={"dataset_id": "d"})
        error = refused(answer, 429, "QUOTA_EXCEEDED")
        assert "retry-after" not in answer.headers
        assert (error["context"]["limit"], error["type"]) == (1, "user_error")
        service._trainer._target.gate.set()
    await service.desk.jobs.close()


async def test_same_key_gives_the_same_job(client):
    fields = QUICK | {"dataset_id": await upload(client)}
    answers = [await client.post(JOBS, json=fields, headers={"idempotency-key": "k"}) for _ in range(2)]
    assert answers[0].json()["job_id"] == answers[1].json()["job_id"]
    assert answers[1].headers["idempotent-replayed"] == "true"
    refused(
        await client.post(JOBS, json=fields | {"epochs": 9}, headers={"idempotency-key": "k"}),
        422,
        "IDEMPOTENCY_KEY_REUSED",
    )
    assert (await client.get(JOBS)).json()["total"] == 1


async def test_dry_run_lists_what_is_wrong_and_makes_nothing(client):
    dataset = await upload(client)
    good = (await client.post(f"{JOBS}/validate", json=QUICK | {"dataset_id": dataset})).json()
    assert (good["valid"], good["errors"], good["dataset"]["rows"] > 0) == (True, [], True)
    assert good["estimate"]["steps"] == QUICK["epochs"]
    assert good["estimate"]["memory_bytes"] > 4 * good["dataset"]["rows"]
    mode = (await client.post(f"{JOBS}/validate", json={"dataset_id": "d", "training_mode": "x"})).json()
    assert [found["code"] for found in mode["errors"]] == ["INVALID_MODEL"]
    bad = (await client.post(f"{JOBS}/validate", json={"epochs": 0, "batch_size": 1})).json()
    assert {found["param"] for found in bad["errors"]} == {"epochs", "batch_size", "dataset_id"}
    absent = await client.post(f"{JOBS}/validate", json={"dataset_id": dataset, "target_column": "nope"})
    assert [found["code"] for found in absent.json()["errors"]] == ["DATASET_INVALID_FORMAT"]
    gone = (await client.post(f"{JOBS}/validate", json=QUICK | {"dataset_id": "gone"})).json()
    assert [found["code"] for found in gone["errors"]] == ["DATASET_NOT_FOUND"]
    assert (await client.get(JOBS)).json()["total"] == 0


async def test_jobs_survive_the_service(settings, connect):
    service = local_service(settings, trainer=PausedTrainer)
    async with connect(service) as client:
        job = await create(client, dataset_id=await upload(client))
        await until(client, job["job_id"], "running")
    await service.desk.jobs.close()
    service._trainer._target.gate.set()
    successor = local_service(settings)
    async with connect(successor) as client:
        seen = (await client.get(f"{JOBS}/{job['job_id']}")).json()
        assert seen["status"] in ("running", "queued")
    await successor.desk.jobs.close()


async def test_predict_by_a_jobs_model(client):
    job = await ended(client, dataset_id=await upload(client))
    schema = (await client.get(f"{RUNS}/{job['run_id']}")).json()["schema"]
    row = {column["name"]: None for column in schema["columns"]}
    answer = await client.post(PREDICT, json={"model_id": job["model_id"], "rows": [row]})
    assert answer.status_code == 200, answer.text
