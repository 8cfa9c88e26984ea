"""What external trainers tell over HTTP (jobs.md, sections 5 and 13, and rows 45 to 53 of its table)."""

import asyncio
import base64
import json
from pathlib import Path

import pytest

from core.catalogue import CATALOGUE
from core.errors import DatabaseUnavailableError
from core.jobs.tokens import LIFE_S, Bearer
from core.redaction import REDACTED, redact_text
from deployments.edge.authentication import TRAINER_PATHS
from deployments.settings import TOKENS_VARIABLE, JobSettings
from deployments.web import build_web_app
from tests.deployments.local import local_service, settings_in, strict_json

pytestmark = pytest.mark.anyio
JOBS = "/api/v1/training-jobs"
FORMS = ("callback", "callback/progress", "callback/completion", "callback/logs")
EPOCH = {"epoch": 1, "total_epochs": 10, "metrics": {"loss": 0.5}}
WAITING = ("/bin/sh", "-c", "echo $STILLHOUSE_CALLBACK_TOKEN > token && mv token told; exec sleep 60")
USER = {"authorization": "Bearer user-token"}


class Place:
    """A service that asks users for tokens, and whose external trainers say nothing by themselves."""

    def __init__(self, service, client, folder: Path) -> None:
        self.service, self.client, self._folder = service, client, folder

    async def begun(self, **fields) -> tuple[str, str]:
        """A job that runs, and the token of its trainer."""
        body = {"executor": "external", "dataset_id": "d", "target_column": "kind"} | fields
        answer = await self.client.post(JOBS, json=body, headers=USER)
        assert answer.status_code == 200, answer.text
        return await self.token_of(answer.json()["job_id"])

    async def token_of(self, job_id: str, attempt: int = 1) -> tuple[str, str]:
        told = self._folder / job_id / f"{attempt:04d}" / "told"
        async with asyncio.timeout(60):
            while True:
                if told.exists():
                    return job_id, told.read_text().strip()
                await asyncio.sleep(0.02)

    async def tell(self, job_id: str, token: str, form: str = "callback", **body: object):
        headers = {"authorization": f"Bearer {token}"}
        return await self.client.post(f"{JOBS}/{job_id}/{form}", json=body, headers=headers)

    async def told(self, job_id: str, token: str, form: str = "callback", **body: object) -> tuple:
        """``(applied, job_status, cancel_requested)`` of an answer that is one."""
        answer = await self.tell(job_id, token, form, **body)
        assert answer.status_code == 200, answer.text
        said = answer.json()
        assert said.keys() == {"success", "message", "job_status", "applied", "cancel_requested"}
        assert said["success"] is True
        return said["applied"], said["job_status"], said["cancel_requested"]

    async def job(self, job_id: str) -> dict:
        return (await self.client.get(f"{JOBS}/{job_id}", headers=USER)).json()

    async def metrics(self, job_id: str) -> list:
        return (await self.client.get(f"{JOBS}/{job_id}/metrics", headers=USER)).json()["data"]

    async def cancel(self, job_id: str):
        return await self.client.post(f"{JOBS}/{job_id}/cancel", headers=USER)


@pytest.fixture
async def place(tmp_path, connect, monkeypatch):
    monkeypatch.setenv(TOKENS_VARIABLE, "user-token")
    jobs = JobSettings(
        database_url=f"sqlite:///{tmp_path}/jobs.db",
        external_command=WAITING,
        external_folder=f"{tmp_path}/external",
        external_processes=4,
        stop_within_s=5,
    )
    service = local_service(settings_in(tmp_path, jobs=jobs, allow_no_auth=False))
    async with connect(service) as client:
        here = Place(service, client, tmp_path / "external")
        yield here
        for job in (await client.get(JOBS, headers=USER)).json()["data"]:
            if job["status"] in ("pending", "queued", "running"):
                await here.cancel(job["job_id"])
        await service.desk.jobs.close()


def refused(answer, status: int, code: str) -> None:
    entry, error = CATALOGUE[code], strict_json(answer.content)["error"]
    assert (answer.status_code, error["code"], error["type"]) == (status, code, entry.type), answer.text


async def test_training_is_told_from_its_start_to_its_end(place):
    job = await place.begun()
    assert await place.told(*job, status="running", epoch=0, total_epochs=10) == (True, "running", False)
    assert await place.told(*job, form="callback/progress", **EPOCH) == (True, "running", False)
    final = {"accuracy": 0.0, "loss": 0.25}
    ended = await place.told(*job, form="callback/completion", status="completed", final_metrics=final)
    assert ended == (True, "completed", False)
    shown = await place.job(job[0])
    assert (shown["current_epoch"], shown["total_epochs"]) == (1, 10)
    assert shown["final_metrics"] == {"accuracy": 0.0, "train_loss": 0.25}


# ── Who may speak (rows 48 and 49; defect 7) ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", [*FORMS, "data"])
async def test_nobody_speaks_for_a_job_without_its_token(place, form):
    (job_id, token), (other, _) = await place.begun(), await place.begun()
    claims, signature = token.rsplit(".", 1)
    head, body = claims.split(".")
    raised = json.loads(base64.urlsafe_b64decode(body + "==")) | {"sub": other}
    forged = base64.urlsafe_b64encode(json.dumps(raised).encode()).decode().rstrip("=")
    wrong = ["", "nonsense", "user-token", f"{claims}.", f"{head}.{forged}.{signature}", token[:-2], "é"]
    for given in wrong:
        headers = {"authorization": f"Bearer {given}".encode("latin-1")}
        answer = await ask(place, form, job_id, headers)
        refused(answer, 401, "INVALID_TOKEN")
        assert answer.headers["www-authenticate"] == "Bearer"
    refused(await ask(place, form, job_id, {}), 401, "INVALID_TOKEN")
    refused(await ask(place, form, other, {"authorization": f"Bearer {token}"}), 403, "CALLBACK_REJECTED")
    assert {(await place.job(name))["status"] for name in (job_id, other)} == {"running"}


async def ask(place, form: str, job_id: str, headers: dict):
    url = f"{JOBS}/{job_id}/{form}"
    if form == "data":
        return await place.client.get(url, headers=headers)
    return await place.client.post(url, json={"status": "failed"}, headers=headers)


async def test_every_route_that_passes_without_a_token_of_users_asks_for_that_of_the_job(place):
    paths = build_web_app(place.service).openapi()["paths"]
    named = {path.replace("{job_id}", "j"): list(methods) for path, methods in paths.items()}
    asked = [(path, m) for path, methods in named.items() for m in methods if TRAINER_PATHS.fullmatch(path)]
    assert len(asked) == len(FORMS) + 1
    for path, method in asked:
        answer = await place.client.request(method, path, json={})
        refused(answer, 401, "INVALID_TOKEN")


async def test_token_expires_but_not_before_its_job(place):
    job_id, token = await place.begun()
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert claims["sub"] == job_id
    desk = place.service.desk.jobs._dispatcher._desk
    old = desk._tokens.issue(Bearer(job_id, 1), life_s=-1)
    refused(await place.tell(job_id, old, **EPOCH), 401, "INVALID_TOKEN")
    assert LIFE_S == 48 * 3600


async def test_token_of_the_trainer_is_no_token_of_a_user(place):
    job_id, token = await place.begun()
    headers = {"authorization": f"Bearer {token}"}
    assert (await place.client.get(f"{JOBS}/{job_id}", headers=headers)).status_code == 401


async def test_token_is_shown_nowhere_and_taken_out_of_texts(place):
    job_id, token = await place.begun()
    await place.told(job_id, token, form="callback/logs", seq=1, logs=["it begins"])
    for path in ("", "/status", "/events", "/logs", "/attempts", "/checkpoints", "/metrics"):
        assert token not in (await place.client.get(f"{JOBS}/{job_id}{path}", headers=USER)).text
    assert token not in redact_text(f"it said {token}!")
    assert REDACTED in redact_text(f"it said {token}!")


async def test_attempt_must_be_that_of_the_token(place):
    job = await place.begun()
    assert await place.told(*job, **EPOCH, attempt=1, status="running") == (True, "running", False)
    refused(await place.tell(*job, **EPOCH, attempt=2, status="running"), 403, "CALLBACK_REJECTED")


# ── What is no callback (row 50; defect 1) ──────────────────────────────────────────────────────────────────

WRONG = {
    "no status": {},
    "unknown status": {"status": "paused"},
    "status that only the service gives": {"status": "cancelling"},
    "queued": {"status": "queued"},
    "status that is no text": {"status": ["running"]},
    "metrics that are words": {"status": "running", **EPOCH, "metrics": {"loss": "low"}},
    "metrics that are true": {"status": "running", **EPOCH, "metrics": {"loss": True}},
    "metrics that are null": {"status": "running", **EPOCH, "metrics": {"loss": None}},
    "metrics that are a list": {"status": "running", **EPOCH, "metrics": [0.5]},
    "nested metrics": {"status": "running", **EPOCH, "metrics": {"extra_metrics": {"f1": "x"}}},
    "negative epoch": {"status": "running", **EPOCH, "epoch": -1},
    "epoch beyond the last": {"status": "running", **EPOCH, "epoch": 11},
    "epoch without the last": {"status": "running", "epoch": 1},
    "fractional epoch": {"status": "running", **EPOCH, "epoch": 1.5},
    "huge epoch": {"status": "running", "epoch": 2**40, "total_epochs": 2**41},
    "logs that are no list": {"status": "running", "logs": "x"},
    "log line without a message": {"status": "running", "logs": [{"level": "info"}]},
    "exit code that is none": {"status": "failed", "exit_code": "1"},
    "final metrics": {"status": "completed", "final_metrics": {"accuracy": "high"}},
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG)
async def test_callback_that_cannot_be_understood_is_refused_and_changes_nothing(place, body):
    job = await place.begun()
    before = await place.job(job[0])
    refused(await place.tell(*job, **body), 400, "CALLBACK_REJECTED")
    after = await place.job(job[0])
    assert (after["status"], after["current_epoch"]) == (before["status"], 0)
    assert await place.metrics(job[0]) == []


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"metrics": {"loss": NaN}, "status": "running"}'])
async def test_body_that_is_no_json_object_is_refused(place, content):
    job_id, token = await place.begun()
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    answer = await place.client.post(f"{JOBS}/{job_id}/callback", content=content, headers=headers)
    assert answer.status_code == 400


# ── What comes twice, late or in disorder (rows 51 and 52; defects 1, 2 and 5) ──────────────────────────────


@pytest.mark.parametrize("form", ["callback", "callback/progress"])
async def test_progress_told_again_makes_no_second_row(place, form):
    job = await place.begun()
    body = EPOCH | {"status": "running", "logs": ["once"]}
    assert await place.told(*job, form=form, **body) == (True, "running", False)
    assert await place.told(*job, form=form, **body) == (False, "running", False)
    assert [row["epoch"] for row in await place.metrics(job[0])] == [1]
    logs = await place.client.get(f"{JOBS}/{job[0]}/logs", headers=USER)
    assert [line["message"] for line in logs.json()["data"]] == ["once"]


async def test_same_epoch_by_two_forms_is_one(place):
    job = await place.begun()
    assert (await place.told(*job, form="callback/progress", **EPOCH))[0]
    assert not (await place.told(*job, status="running", **EPOCH))[0]


async def test_log_lines_have_numbers_by_which_repeated_ones_are_known(place):
    job = await place.begun()
    for seq, applied in ((2, True), (1, True), (2, False), (1, False)):
        line = {"level": "WARNING", "message": f"line {seq}"}
        assert (await place.told(*job, form="callback/logs", seq=seq, logs=[line]))[0] is applied
    shown = (await place.client.get(f"{JOBS}/{job[0]}/logs", headers=USER)).json()["data"]
    assert [(line["level"], line["message"]) for line in shown] == [
        ("warning", "line 2"),
        ("warning", "line 1"),
    ]


async def test_metric_of_zero_is_a_metric(place):
    job = await place.begun()
    await place.told(*job, form="callback/progress", epoch=1, total_epochs=2, metrics={"loss": 0.0, "f": 0})
    shown = await place.job(job[0])
    assert shown["current_metrics"] == {"train_loss": 0.0, "f": 0}


@pytest.mark.parametrize("late", ["running", "completed", "failed", "stopped"])
async def test_late_callback_does_not_revive_a_job_that_has_ended(place, late):
    job = await place.begun()
    await place.cancel(job[0])
    assert await place.told(*job, status=late, **EPOCH) == (False, "cancelled", True)
    assert (await place.job(job[0]))["status"] == "cancelled"
    assert await place.metrics(job[0]) == []


async def test_first_end_wins_and_the_same_again_is_acknowledged(place):
    job = await place.begun()
    assert await place.told(*job, status="completed") == (True, "completed", False)
    assert await place.told(*job, status="completed") == (False, "completed", False)
    assert await place.told(*job, status="failed") == (False, "completed", False)
    assert (await place.job(job[0]))["error"] is None


async def test_callback_of_an_earlier_attempt_changes_nothing_and_is_told_to_end(place):
    job_id, first = await place.begun()
    await place.told(job_id, first, status="failed", error={"code": "TRAINING_FAILED"})
    await place.client.post(f"{JOBS}/{job_id}/retry", headers=USER)
    _, second = await place.token_of(job_id, 2)
    assert await place.told(job_id, first, status="completed") == (False, "running", True)
    assert await place.told(job_id, second, form="callback/progress", **EPOCH) == (True, "running", False)
    assert (await place.job(job_id))["attempt"] == 2


async def test_history_of_the_first_attempt_stays_after_a_retry(place):
    job_id, token = await place.begun()
    await place.told(job_id, token, form="callback/progress", **EPOCH)
    await place.told(job_id, token, status="failed")
    await place.client.post(f"{JOBS}/{job_id}/retry", headers=USER)
    await place.token_of(job_id, 2)
    old = await place.client.get(f"{JOBS}/{job_id}/metrics?attempt=1", headers=USER)
    assert [row["epoch"] for row in old.json()["data"]] == [1]


# ── How it ended (defects 8, 16 and 17; seed 001) ───────────────────────────────────────────────────────────


async def test_error_is_what_its_code_says_and_not_what_the_caller_says(place):
    job = await place.begun()
    told = {
        "type": "user_error",
        "severity": "low",
        "code": "CUDA_OOM",
        "message": "GPU out of memory in /srv/secret/train.py, token=hunter2secret",
        "details": {"batch_size": 32, "retry_after": 1e9, "is_retryable": False, "message": "x", "peak": 9},
    }
    assert await place.told(*job, status="failed", error=told) == (True, "failed", False)
    error, entry = (await place.job(job[0]))["error"], CATALOGUE["CUDA_OOM"]
    assert (error["type"], error["severity"], error["retryable"]) == (entry.type, entry.severity, True)
    assert (error["retry_after"], error["context"]) == (None, {"batch_size": 32, "peak": 9})
    assert "32" in error["suggested_action"]
    assert "hunter2secret" not in json.dumps(error)
    assert "/srv/secret" not in json.dumps(error)


@pytest.mark.parametrize("code", ["NO_SUCH_CODE", 5, None, "SIDECAR_UNREACHABLE"])
async def test_error_of_an_unknown_code_is_a_failed_training(place, code):
    job = await place.begun()
    await place.told(*job, status="failed", error={"code": code, "message": "odd"})
    assert (await place.job(job[0]))["error"]["code"] == "TRAINING_FAILED"


@pytest.mark.parametrize(
    ("exit_code", "code"),
    [
        *[(1, "TRAINING_FAILED"), (3, "INVALID_CONFIG"), (4, "DATASET_INVALID_FORMAT"), (5, "HOST_OOM")],
        *[(6, "STORAGE_ERROR"), (124, "TRAINING_TIMEOUT"), (137, "HOST_OOM"), (-9, "HOST_OOM")],
    ],
)
async def test_exit_code_outranks_the_status_and_names_the_error(place, exit_code, code):
    job = await place.begun()
    applied = await place.told(*job, form="callback/completion", status="succeeded", exit_code=exit_code)
    assert applied == (True, "failed", False)
    events = (await place.client.get(f"{JOBS}/{job[0]}/events", headers=USER)).json()["data"]
    assert events[-1]["type"] == "failed"  # what readers hear is what is stored
    assert (await place.job(job[0]))["error"]["code"] == code


async def test_exit_code_of_a_failure_that_names_its_code_does_not_hide_it(place):
    job = await place.begun()
    error = {"code": "TRAINING_DIVERGED", "message": "The loss is not a number."}
    await place.told(*job, form="callback/completion", status="failed", exit_code=1, error=error)
    assert (await place.job(job[0]))["error"]["code"] == "TRAINING_DIVERGED"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"status": "succeeded"}, "completed"),
        ({"status": "stopped"}, "cancelled"),
        ({"status": "cancelled"}, "cancelled"),
        ({"status": "failed", "exit_code": 0}, "completed"),
        ({"exit_code": 0}, "completed"),
        ({"status": "failed", "error": "a text"}, "failed"),
    ],
)
async def test_end_is_understood_in_both_vocabularies(place, body, status):
    job = await place.begun()
    assert (await place.told(*job, form="callback/completion", **body))[:2] == (True, status)


async def test_loss_of_a_gpu_runs_the_job_again(place):
    job_id, token = await place.begun()
    told = await place.told(job_id, token, status="failed", error={"code": "WORKER_DIED"})
    assert told[0]
    await place.token_of(job_id, 2)
    assert (await place.job(job_id))["attempt"] == 2


async def test_batch_that_was_too_large_is_halved_where_the_job_allows_it(place):
    job_id, token = await place.begun(on_oom="reduce_batch")
    error = {"code": "CUDA_OOM", "message": "GPU out of memory", "details": {"batch_size": 64}}
    await place.told(job_id, token, status="failed", error=error)
    await place.token_of(job_id, 2)
    assert (await place.job(job_id))["request"]["batch_size"] == 32


async def test_ledger_that_is_down_is_told_to_the_trainer_so_that_it_comes_again(place):
    """Row 53."""
    job_id, token = await place.begun()
    dispatcher = place.service.desk.jobs._dispatcher
    working = dispatcher._ledger.report

    def failing(*_: object) -> None:
        raise DatabaseUnavailableError

    dispatcher._ledger.report = failing
    answer = await place.tell(job_id, token, form="callback/progress", **EPOCH)
    refused(answer, 503, "DATABASE_ERROR")
    assert answer.headers["retry-after"] == "5"
    dispatcher._ledger.report = working
    assert (await place.told(job_id, token, form="callback/progress", **EPOCH))[0]
