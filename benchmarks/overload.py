"""Far more clients than trainers: what each is answered, how fast, and what is left when they stop."""

import asyncio
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
from sklearn.datasets import load_wine

from benchmarks.processes import find_replica, private_bytes
from benchmarks.report import Section, Table, Target, load_average
from deployments.demo import running_service

CLIENTS: Final = 200
SECONDS: Final = 60.0
PAUSE_S: Final = 0.5
IDLE_WITHIN_S: Final = 5.0
TRAINERS: Final = 2
QUEUE: Final = 16
DEADLINE_S: Final = 60.0
GROWTH_LIMIT_MB: Final = 20
POLITE: Final = frozenset({200, 429, 503})


@dataclass(slots=True)
class Seen:
    """What the clients met.

    Attributes:
        impolite: Answers that no client should get.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: dict[int, list[float]] = field(default_factory=dict)
    impolite: list[str] = field(default_factory=list)

    def note(self, answer: httpx.Response, seconds: float) -> None:
        status = answer.status_code
        self.statuses[f"{status} {answer.headers.get('x-error-code', '')}".strip()] += 1
        self.seconds.setdefault(status, []).append(seconds)
        hinted = status == 200 or int(answer.headers.get("retry-after", 0)) >= 1
        ours = answer.headers.get("content-type") == "application/json"
        if status not in POLITE or not hinted or not ours:
            self.impolite.append(f"{status} {answer.text[:200]}")


def measure() -> Section:
    load = load_average()
    with (
        tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as name,
        running_service(
            Path(name),
            trainer={
                "min_replicas": TRAINERS,
                "max_replicas": TRAINERS,
                "cpus_per_trainer": 0.5,
                "queue_capacity": QUEUE,
                "queue_timeout_s": DEADLINE_S,
            },
            edge={"rates": {"train": "6000/minute"}},
        ) as url,
    ):
        seen, growth_mb, idle_s = asyncio.run(_hammered(url))
    slowest = max(max(times) for times in seen.seconds.values())
    refused = [t for status, times in seen.seconds.items() if status != 200 for t in times]
    return Section(
        name="overload",
        title="Overload",
        about=(
            f"{CLIENTS} clients send small trainings for {SECONDS:.0f} s to a service with {TRAINERS} "
            f"trainers and {QUEUE} places before them; a client that is refused comes back after "
            f"{PAUSE_S} s, whatever Retry-After said. Service and clients share the machine."
        ),
        targets=[
            Target(
                "answers other than 200, 429 or 503 with Retry-After, in their dialect",
                "0",
                str(len(seen.impolite)),
                not seen.impolite,
            ),
            Target(
                "slowest answer",
                f"within the deadline of {DEADLINE_S:.0f} s",
                f"{slowest:.1f} s",
                slowest <= DEADLINE_S,
            ),
            Target(
                "growth of the ingress's own memory, second half against first",
                f"at most {GROWTH_LIMIT_MB} MB",
                f"{growth_mb:.1f} MB",
                growth_mb <= GROWTH_LIMIT_MB,
            ),
            Target(
                "idle again after the clients left",
                f"within {IDLE_WITHIN_S:.0f} s",
                f"{idle_s:.1f} s",
                idle_s <= IDLE_WITHIN_S,
            ),
        ],
        tables=[
            *(
                [Table(("an impolite answer",), [(text,) for text in seen.impolite[:5]])]
                if seen.impolite
                else []
            ),
            Table(("answer", "times"), [(name, f"{n:,}") for name, n in sorted(seen.statuses.items())]),
            Table(
                ("answers", "median ms", "slowest ms"),
                [
                    (name, f"{1000 * statistics.median(times):,.0f}", f"{1000 * max(times):,.0f}")
                    for name, times in (("200", seen.seconds.get(200, [0])), ("refusals", refused or [0]))
                ],
            ),
        ],
        packages=("ray", "starlette", "torch"),
        started_load=load,
    )


async def _hammered(url: str) -> tuple[Seen, float, float]:
    """What was seen, the growth of the ingress in MB, and the seconds until it was idle."""
    limits = httpx.Limits(max_connections=CLIENTS + 10)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        table = load_wine(as_frame=True).frame.to_csv(index=False)
        answer = await client.post(
            "/api/v1/datasets?name=w.csv", content=table, headers={"content-type": "text/csv"}
        )
        payload = {"dataset_id": answer.json()["dataset_id"], "target_column": "target", "epochs": 5}
        ingress, seen = find_replica("Ingress"), Seen()
        end = time.perf_counter() + SECONDS
        clients = [asyncio.create_task(_client(client, payload, seen, end)) for _ in range(CLIENTS)]
        await asyncio.sleep(SECONDS / 2)
        half = private_bytes(ingress)
        await asyncio.sleep(SECONDS / 2)
        full = private_bytes(ingress)
        stopped = time.perf_counter()
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        while True:
            queue = (await client.get("/api/v1/limits")).json()["queue"]
            if queue["free"] == queue["capacity"]:
                return seen, (full - half) / 1e6, time.perf_counter() - stopped
            await asyncio.sleep(0.1)


async def _client(client: httpx.AsyncClient, payload: Mapping[str, object], seen: Seen, end: float) -> None:
    while (sent := time.perf_counter()) < end:
        answer = await client.post("/api/v1/train", json=payload)
        seen.note(answer, time.perf_counter() - sent)
        if answer.status_code != 200:
            await asyncio.sleep(PAUSE_S)
