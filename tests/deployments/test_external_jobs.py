"""Jobs that run as processes of their own and tell of themselves over HTTP: the reference trainer."""

import ast
import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import uvicorn

from core.catalogue import CATALOGUE
from deployments.settings import JobSettings
from deployments.web import build_web_app
from tests.deployments.local import local_service, settings_in, upload

pytestmark = pytest.mark.anyio
JOBS = "/api/v1/training-jobs"
TRAINER = Path(__file__).with_name("external_trainer.py")


@contextlib.asynccontextmanager
async def listening(folder: Path, command: tuple[str, ...], **changes: object):
    """The service on a port of its own, which its external trainers reach; yields a client of it."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        url = f"http://127.0.0.1:{door.getsockname()[1]}"
        own = {"external_command": command, "external_url": url, "external_folder": f"{folder}/external"}
        jobs = JobSettings(database_url=f"sqlite:///{folder}/jobs.db", **own | changes)
        service = local_service(settings_in(folder, jobs=jobs))
        server = uvicorn.Server(uvicorn.Config(build_web_app(service), log_level="error", lifespan="off"))
        serving = asyncio.create_task(server.serve([door]))
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            client.service = service
            try:
                yield client
            finally:
                await end_all(client)
                await service.desk.jobs.close()
                server.should_exit = True
                await serving


async def end_all(client) -> None:
    """No process outlives its test."""
    for job in (await client.get(JOBS)).json()["data"]:
        if job["status"] not in ("completed", "failed", "cancelled"):
            await client.post(f"{JOBS}/{job['job_id']}/cancel")


def reference(*arguments: str) -> tuple[str, ...]:
    """Isolated: neither the working folder nor ``PYTHONPATH`` gives it modules."""
    return (sys.executable, "-I", str(TRAINER), *arguments)


async def create(client, **fields) -> str:
    body = {"executor": "external", "target_column": "kind", "epochs": 3} | fields
    if "dataset_id" not in body:
        body["dataset_id"] = await upload(client)
    answer = await client.post(JOBS, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["job_id"]


async def until(client, job_id: str, *states: str) -> dict:
    async with asyncio.timeout(60):
        while True:
            job = (await client.get(f"{JOBS}/{job_id}")).json()
            if job["status"] in states:
                return job
            await asyncio.sleep(0.05)


async def until_true(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while True:
            if holds():
                return
            await asyncio.sleep(0.02)


async def ended(folder: Path, *arguments: str, **fields) -> tuple[dict, list, Path]:
    """The job after the reference trainer ended, the metrics by epoch, and the folder it worked in."""
    async with listening(folder, reference(*arguments)) as client:
        job_id = await create(client, **fields)
        job = await until(client, job_id, "completed", "failed", "cancelled")
        metrics = (await client.get(f"{JOBS}/{job_id}/metrics")).json()["data"]
        return job, metrics, folder / "external" / job_id / "0001"


async def test_trainer_that_knows_the_service_by_http_alone_completes_its_job(tmp_path):
    async with listening(tmp_path, reference()) as client:
        job_id = await create(client)
        job = await until(client, job_id, "completed", "failed")
        rows = (await client.get(f"{JOBS}/{job_id}/metrics")).json()["data"]
        logs = (await client.get(f"{JOBS}/{job_id}/logs")).json()["data"]
        events = (await client.get(f"{JOBS}/{job_id}/events")).json()["data"]
    assert (job["status"], job["error"], job["attempt"]) == ("completed", None, 1)
    assert 0 < job["final_metrics"]["accuracy"] <= 1
    assert job["final_metrics"]["zero"] == 0.0
    assert job["result"]["artifact_path"] == "model.json"
    assert (job["current_epoch"], job["total_epochs"], job["progress_percent"]) == (3, 3, 100.0)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["metrics"]["zero"] for row in rows] == [0.0] * 3
    assert "rows" in logs[0]["message"]
    assert [e["new"] for e in events if e["type"] == "status_change"] == ["pending", "running", "completed"]


async def test_failure_in_the_shape_of_the_customer_is_classified_by_its_code(tmp_path):
    job, _, folder = await ended(tmp_path, "oom")
    error, entry = job["error"], CATALOGUE["CUDA_OOM"]
    assert job["status"] == "failed"
    assert (error["code"], error["type"], error["severity"]) == ("CUDA_OOM", entry.type, entry.severity)
    assert "64" in error["suggested_action"]
    assert error["context"]["allocated_memory"] == 8_000
    last = json.loads((folder / "stderr.jsonl").read_text().splitlines()[-1])
    assert (last["level"], last["code"], last["exit_code"]) == ("error", "CUDA_OOM", 1)


async def test_crash_without_a_callback_is_classified_by_its_last_line(tmp_path):
    job, _, _ = await ended(tmp_path, "crash")
    assert (job["status"], job["error"]["code"]) == ("failed", "DISK_FULL")


async def test_end_without_a_word_is_a_failure_although_the_exit_code_is_0(tmp_path):
    job, _, _ = await ended(tmp_path, "mute")
    assert (job["status"], job["error"]["code"]) == ("failed", "TRAINING_FAILED")


async def test_completion_that_could_not_be_delivered_is_picked_up(tmp_path):
    job, _, folder = await ended(tmp_path, "lost", "--wait", "0.01")
    assert (folder / "exit_code").read_text().strip() == "2"
    assert (job["status"], job["attempt"]) == ("completed", 1)
    assert job["final_metrics"] == json.loads((folder / "model.json").read_text())


async def test_callbacks_that_come_twice_change_nothing(tmp_path):
    job, rows, _ = await ended(tmp_path, "twice")
    assert job["status"] == "completed"
    assert [row["epoch"] for row in rows] == [1, 2, 3]


async def test_epochs_out_of_order_are_all_kept_and_the_job_never_goes_back(tmp_path):
    job, rows, _ = await ended(tmp_path, "disordered")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert (job["status"], job["current_epoch"], job["best_epoch"]) == ("completed", 3, 3)


async def test_missing_dataset_is_the_failure_of_the_job(tmp_path):
    job, _, _ = await ended(tmp_path, dataset_id="gone")
    assert (job["status"], job["error"]["code"]) == ("failed", "DATASET_NOT_FOUND")


async def test_cancel_ends_the_process_and_then_the_job(tmp_path):
    async with listening(tmp_path, reference("slow", "--wait", "60")) as client:
        job_id = await create(client)
        folder = tmp_path / "external" / job_id / "0001"
        await until_true((folder / "ready").exists)
        answer = await client.post(f"{JOBS}/{job_id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        await until_true(lambda: is_gone(folder))
        assert (folder / "exit_code").read_text().strip() == "143"


async def test_process_that_does_not_end_when_asked_is_killed(tmp_path):
    async with listening(tmp_path, reference("deaf", "--wait", "60")) as client:
        job_id = await create(client)
        folder = tmp_path / "external" / job_id / "0001"
        await until_true((folder / "ready").exists)
        answer = await client.post(f"{JOBS}/{job_id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        await until_true(lambda: is_gone(folder))


async def test_process_that_takes_too_long_is_ended(tmp_path):
    async with listening(tmp_path, reference("slow", "--wait", "60")) as client:
        job_id = await create(client, time_limit_s=2)
        job = await until(client, job_id, "failed", "completed", "cancelled")
        assert job["error"]["code"] == "TRAINING_TIMEOUT"
        await until_true(lambda: is_gone(tmp_path / "external" / job_id / "0001"))


async def test_job_whose_process_cannot_start_fails(tmp_path):
    async with listening(tmp_path, ("no-such-program",)) as client:
        job = await until(client, await create(client), "failed")
    assert (job["error"]["code"], job["attempt"]) == ("RUNTIME_UNAVAILABLE", 1)


async def test_process_that_was_ended_though_nobody_asked_is_run_again(tmp_path):
    command = ("/bin/sh", "-c", "[ $STILLHOUSE_ATTEMPT = 3 ] && exit 1; kill -TERM $$")
    async with listening(tmp_path, command) as client:
        job = await until(client, await create(client), "failed")
    assert (job["error"]["code"], job["attempt"]) == ("TRAINING_FAILED", 3)


async def test_what_a_process_left_running_ends_with_it(tmp_path):
    async with listening(tmp_path, ("/bin/sh", "-c", "sleep 60 & exit 1")) as client:
        job_id = await create(client)
        await until(client, job_id, "failed")
        await until_true(lambda: is_gone(tmp_path / "external" / job_id / "0001"))


async def test_process_that_is_killed_from_outside_ran_out_of_memory(tmp_path):
    async with listening(tmp_path, ("/bin/sh", "-c", "kill -9 $$")) as client:
        job = await until(client, await create(client), "failed")
    assert job["error"]["code"] == "HOST_OOM"


async def test_process_outlives_the_dispatcher_and_the_next_one_watches_over_it(tmp_path):
    async with listening(tmp_path, reference("slow", "--wait", "1")) as client:
        job_id = await create(client, epochs=2)
        folder = tmp_path / "external" / job_id / "0001"
        await until_true((folder / "ready").exists)
        await restart_dispatcher(client)
        job = await until(client, job_id, "completed", "failed")
    assert (job["status"], job["attempt"], job["current_epoch"]) == ("completed", 1, 2)


async def test_process_that_went_down_with_the_dispatcher_is_run_again(tmp_path):
    async with listening(tmp_path, reference("slow", "--wait", "0.5")) as client:
        job_id = await create(client, epochs=1)
        folder = tmp_path / "external" / job_id / "0001"
        await until_true((folder / "ready").exists)
        await client.service.desk.jobs.close()
        os.killpg(int((folder / "pid").read_text()), signal.SIGKILL)
        client.service.desk.jobs._dispatcher = None
        job = await until(client, job_id, "completed", "failed")
    assert (job["status"], job["attempt"]) == ("completed", 2)


async def restart_dispatcher(client) -> None:
    await client.service.desk.jobs.close()
    client.service.desk.jobs._dispatcher = None  # the next call makes another


async def test_process_inherits_no_secrets_and_begins_in_an_empty_folder(tmp_path, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "STILLHOUSE_CALLBACK_SECRET", "DATABASE_PASSWORD", "PYTHONPATH"):
        monkeypatch.setenv(name, "hidden-from-trainers")
    command = ("/bin/sh", "-c", "env > told; ls > seen; exit 1")
    async with listening(tmp_path, command) as client:
        job_id = await create(client)
        await until(client, job_id, "failed")
    folder = tmp_path / "external" / job_id / "0001"
    told = dict(line.split("=", 1) for line in (folder / "told").read_text().splitlines())
    assert "hidden-from-trainers" not in told.values()
    assert (told["STILLHOUSE_JOB_ID"], told["HOME"]) == (job_id, str(folder))
    assert told["STILLHOUSE_CALLBACK_URL"].endswith(f"{JOBS}/{job_id}/callback")
    seen = set((folder / "seen").read_text().split())
    assert seen == {"job.json", "pid", "seen", "stderr.jsonl", "stdout.log", "told"}
    assert told["STILLHOUSE_CALLBACK_TOKEN"] not in (folder / "job.json").read_text()


async def test_external_jobs_wait_for_a_free_place(tmp_path):
    async with listening(tmp_path, reference("slow", "--wait", "0.2"), external_processes=1) as client:
        jobs = [await create(client, epochs=1) for _ in range(3)]
        shown = [await until(client, job_id, "completed", "failed") for job_id in jobs]
    assert [job["status"] for job in shown] == ["completed"] * 3
    times = sorted((job["started_at"], job["completed_at"]) for job in shown)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(times))


@pytest.mark.parametrize("path", [JOBS, f"{JOBS}/validate"])
async def test_external_job_is_refused_where_no_command_is_configured(client, path):
    body = {"executor": "external", "dataset_id": "d", "target_column": "kind"}
    answer = await client.post(path, json=body)
    error = answer.json()["errors"][0] if path.endswith("validate") else answer.json()["error"]
    assert answer.status_code == (200 if path.endswith("validate") else 422)
    assert (error["code"], error["param"]) == ("INVALID_CONFIG", "executor")


def test_reference_trainer_needs_nothing_but_the_standard_library():
    nodes = list(ast.walk(ast.parse(TRAINER.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert names
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


async def test_reference_trainer_without_its_environment_says_so(tmp_path):
    process = await asyncio.create_subprocess_exec(
        *reference(), cwd=tmp_path, env={}, stderr=asyncio.subprocess.PIPE
    )
    _, stderr = await process.communicate()
    assert process.returncode == 3
    assert json.loads(stderr)["code"] == "INVALID_CONFIG"
    assert list(tmp_path.iterdir()) == []


def is_gone(folder: Path) -> bool:
    """Whether the trainer and the shell around it are gone."""
    try:
        os.killpg(int((folder / "pid").read_text()), 0)
    except ProcessLookupError:
        return True
    return False
