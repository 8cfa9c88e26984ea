"""Training jobs: what filing, running, listing and following them costs."""

import asyncio
import json
import statistics
import tempfile
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import httpx
from sklearn.datasets import load_wine
from sqlalchemy import insert
from websockets.asyncio.client import connect

from benchmarks.report import Section, Table, Target, load_average
from core.jobs import tables
from core.jobs.database import Database
from core.jobs.inquiries import Inquiries, Wanted
from core.jobs.moves import Rules
from core.jobs.records import NewJob
from core.jobs.rows import first_row
from core.jobs.states import JobState
from core.resilience import POLICIES, Caller, Integration
from deployments.demo import running_service

JOBS: Final = "/api/v1/training-jobs"
FILED: Final = 1000
TRAINERS: Final = 4
LISTED: Final = 100_000
READERS: Final = 500
CREATE_LIMIT_MS: Final = 20
LIST_LIMIT_MS: Final = 50
SHARE_LIMIT: Final = 0.95
WORK: Final[Mapping[str, object]] = {
    "target_column": "target",
    "epochs": 60,
    "early_stopping_patience": 0,
    "hidden_dim": 64,
}
STATES: Final = ["pending", "running", "completed"]


def measure() -> Section:
    load = load_average()
    with tempfile.TemporaryDirectory() as folder:
        first_ms, deep_ms = list_many(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        jobs = {"database_url": f"sqlite:///{folder}/jobs.db", "running_per_user": 100}
        trainer = {"min_replicas": TRAINERS, "max_replicas": TRAINERS, "cpus_per_trainer": 0.25}
        with running_service(place, jobs=jobs, trainer=trainer) as url:
            work = {**WORK, "dataset_id": upload(url)}
            requests_rate = rate_of_requests(url, work)
            create_ms, jobs_rate, lost, repeated = run_many(url, work)
            in_order = asyncio.run(follow_many(url, work))
    share = jobs_rate / requests_rate
    return Section(
        name="Training jobs",
        about=f"{FILED} jobs on {TRAINERS} trainers, against the same requests from as many synchronous "
        f"clients as there are trainers; a ledger of {LISTED:,} jobs in SQLite; {READERS} WebSockets on "
        "one job. Clients, trainers and service share the machine.",
        packages=("ray", "sqlalchemy"),
        started_load=load,
        tables=(
            Table(
                ("what", "measured"),
                (
                    ("filing a job, median", f"{create_ms:.1f} ms"),
                    ("jobs a second", f"{jobs_rate:.2f}"),
                    ("synchronous requests a second", f"{requests_rate:.2f}"),
                    (f"first page of {LISTED:,}", f"{first_ms:.1f} ms"),
                    ("page in the middle", f"{deep_ms:.1f} ms"),
                    ("readers that got every state in order", f"{in_order} of {READERS}"),
                ),
            ),
        ),
        targets=(
            Target(
                "Filing a job", f"< {CREATE_LIMIT_MS} ms", f"{create_ms:.1f} ms", create_ms < CREATE_LIMIT_MS
            ),
            Target("None lost, none run twice", "0, 0", f"{lost}, {repeated}", not lost and not repeated),
            Target("Throughput against requests", f"≥ {SHARE_LIMIT}", f"{share:.2f}", share >= SHARE_LIMIT),
            Target(
                "A page of the list",
                f"< {LIST_LIMIT_MS} ms",
                f"{max(first_ms, deep_ms):.1f} ms",
                max(first_ms, deep_ms) < LIST_LIMIT_MS,
            ),
            Target("Readers", f"{READERS}", f"{in_order}", in_order == READERS),
        ),
    )


def upload(url: str) -> str:
    table = load_wine(as_frame=True).frame.to_csv(index=False).encode()
    answer = httpx.post(
        f"{url}/api/v1/datasets?name=wine.csv", content=table, headers={"content-type": "text/csv"}
    )
    return str(answer.json()["dataset_id"])


def rate_of_requests(url: str, work: Mapping[str, object]) -> float:
    """Requests a second that the trainers answer, each of which trains as a job would."""
    count = FILED // 5

    def train(_: int) -> int:
        return httpx.post(f"{url}/api/v1/train", json=dict(work), timeout=600).status_code

    with ThreadPoolExecutor(TRAINERS) as clients:
        list(clients.map(train, range(TRAINERS * 2)))  # every trainer is warm
        started = time.perf_counter()
        statuses = set(clients.map(train, range(count)))
    assert statuses == {200}, statuses
    return count / (time.perf_counter() - started)


def run_many(url: str, work: Mapping[str, object]) -> tuple[float, float, int, int]:
    """Median ms of filing one, jobs a second, how many were lost and how many ran twice."""
    seconds, ids = [], []
    with httpx.Client(base_url=url, timeout=600) as client:
        started = time.perf_counter()
        for _ in range(FILED):
            asked = time.perf_counter()
            ids.append(client.post(JOBS, json={**work, "save_model": False}).json()["job_id"])
            seconds.append(time.perf_counter() - asked)
        while client.get(JOBS, params={"status": "completed", "limit": 1}).json()["total"] < FILED:
            assert time.perf_counter() - started < 3600
            time.sleep(0.5)
        rate = FILED / (time.perf_counter() - started)
        found = [client.get(f"{JOBS}/{job_id}").json() for job_id in ids]
    lost = sum(job["status"] != "completed" for job in found)
    return 1000 * statistics.median(seconds), rate, lost, sum(job["attempt"] > 1 for job in found)


def list_many(folder: Path) -> tuple[float, float]:
    """Milliseconds of the first page and of one in the middle, the best of five."""
    database = Database(f"sqlite:///{folder}/jobs.db", Caller("database", POLICIES[Integration.DATABASE]))
    rows = [
        first_row(
            NewJob(str(uuid.uuid4()), f"user {number % 50}", "train", dict(WORK), {}, "0" * 32),
            JobState.COMPLETED,
            float(number),
        )
        for number in range(LISTED)
    ]
    database.run("fill", lambda connection: connection.execute(insert(tables.jobs), rows))
    ask = Inquiries(database, Rules())
    cursor = ask.page(Wanted(None), 100, None)[0].next_cursor
    for _ in range(20):
        cursor = ask.page(Wanted(None), 100, cursor)[0].next_cursor

    def best_ms(cursor: str | None) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            ask.page(Wanted(None), 100, cursor)
            times.append(time.perf_counter() - started)
        return 1000 * min(times)

    return best_ms(None), best_ms(cursor)


async def follow_many(url: str, work: Mapping[str, object]) -> int:
    """How many readers of one running job got every change of its state, in order."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        order = {**work, "epochs": 10_000}
        job_id = (await client.post(JOBS, json=order)).json()["job_id"]
        everyone = asyncio.gather(*(_read(url, job_id) for _ in range(READERS)))
        return sum(states == STATES for states in await everyone)


async def _read(url: str, job_id: str) -> list[str]:
    address = f"{url.replace('http', 'ws')}/ws/training-jobs/{job_id}?after=0"
    async with connect(address, open_timeout=120) as socket:
        frames = [json.loads(message) async for message in socket]
    return [frame["new"] for frame in frames if frame["type"] == "status_change"]
