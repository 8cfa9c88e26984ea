"""Far more clients than trainers: what each is answered, how fast, and what is left when they stop."""

import asyncio
import json
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sklearn.datasets import load_wine

from benchmarks.load import Answer, Call, Line
from benchmarks.processes import find_replica, private_bytes
from benchmarks.report import Section, Table, Target, load_average
from deployments.demo import running_service

CLIENTS: Final = 200
SECONDS: Final = 60.0
PAUSE_S: Final = 0.5
IDLE_WITHIN_S: Final = 5.0
REFUSED_WITHIN_S: Final = 1.0
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
        growth_mb: Of the ingress's own memory, second half of the time against the first.
        idle_s: Until all places were free after the clients had left.
        clients_cpu_s: What the clients themselves took from the machine.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: dict[int, list[float]] = field(default_factory=dict)
    impolite: list[str] = field(default_factory=list)
    growth_mb: float = 0
    idle_s: float = 0
    clients_cpu_s: float = 0

    def note(self, answer: Answer, seconds: float) -> None:
        self.statuses[f"{answer.status} {answer.headers.get('x-error-code', '')}".strip()] += 1
        self.seconds.setdefault(answer.status, []).append(seconds)
        hinted = answer.status == 200 or int(answer.headers.get("retry-after", 0)) >= 1
        ours = answer.headers.get("content-type") == "application/json"
        if answer.status not in POLITE or not hinted or not ours:
            self.impolite.append(f"{answer.status} {answer.body[:200]!r}")

    @property
    def refusals(self) -> list[float]:
        """Seconds that each took."""
        return [t for status, times in self.seconds.items() if status != 200 for t in times] or [0.0]

    @property
    def slowest_s(self) -> float:
        return max(max(times) for times in self.seconds.values())


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
            edge={"rates": {"train": "100000/minute"}},
        ) as url,
    ):
        ways = {
            f"after {PAUSE_S} s": asyncio.run(_hammered(url, heed=False)),
            "as Retry-After says": asyncio.run(_hammered(url, heed=True)),
        }
    impolite = [text for seen in ways.values() for text in seen.impolite]
    return Section(
        name="overload",
        title="Overload",
        about=(
            f"{CLIENTS} clients send small trainings for {SECONDS:.0f} s to a service with {TRAINERS} "
            f"trainers and {QUEUE} places before them. A client that is refused comes back after {PAUSE_S} s "
            "whatever it was told, and in a second round when Retry-After says. Service, trainings and "
            "clients share the machine."
        ),
        targets=[target for way, seen in ways.items() for target in _targets(way, seen)],
        tables=[
            *([Table(("an impolite answer",), [(text,) for text in impolite[:5]])] if impolite else []),
            Table(
                (
                    "clients come back",
                    "200",
                    "refused",
                    "of them, median ms",
                    "99 % ms",
                    "slowest ms",
                    "200, median ms",
                    "CPU of clients, s",
                ),
                [_row(way, seen) for way, seen in ways.items()],
            ),
            Table(
                ("clients come back", "answer", "times"),
                [
                    (way, name, f"{n:,}")
                    for way, seen in ways.items()
                    for name, n in sorted(seen.statuses.items())
                ],
            ),
        ],
        packages=("ray", "starlette", "torch"),
        started_load=load,
    )


def _row(way: str, seen: Seen) -> tuple[str, ...]:
    done, refused = seen.seconds.get(200, [0.0]), sorted(seen.refusals)
    times = (
        statistics.median(refused),
        refused[int(0.99 * len(refused))],
        refused[-1],
        statistics.median(done),
    )
    shown = (f"{1000 * seconds:,.0f}" for seconds in times)
    return way, f"{len(done):,}", f"{len(refused):,}", *shown, f"{seen.clients_cpu_s:.1f}"


def _targets(way: str, seen: Seen) -> list[Target]:
    slowest_refusal = max(seen.refusals)
    return [
        Target(
            f"back {way}: answers other than 200, 429 or 503 with Retry-After, in their dialect",
            "0",
            str(len(seen.impolite)),
            not seen.impolite,
        ),
        Target(
            f"back {way}: slowest refusal",
            f"within {REFUSED_WITHIN_S:.0f} s",
            f"{slowest_refusal:.2f} s",
            slowest_refusal <= REFUSED_WITHIN_S,
        ),
        Target(
            f"back {way}: slowest answer",
            f"within the deadline of {DEADLINE_S:.0f} s",
            f"{seen.slowest_s:.1f} s",
            seen.slowest_s <= DEADLINE_S,
        ),
        Target(
            f"back {way}: growth of the ingress's own memory, second half against first",
            f"at most {GROWTH_LIMIT_MB} MB",
            f"{seen.growth_mb:.1f} MB",
            seen.growth_mb <= GROWTH_LIMIT_MB,
        ),
        Target(
            f"back {way}: idle again after the clients left",
            f"within {IDLE_WITHIN_S:.0f} s",
            f"{seen.idle_s:.1f} s",
            seen.idle_s <= IDLE_WITHIN_S,
        ),
    ]


async def _hammered(url: str, *, heed: bool) -> Seen:
    """Args:
    heed: Whether clients wait as long as they are told.
    """
    async with Line(url) as line:
        ingress, seen, train = find_replica("Ingress"), Seen(), await _training(line)
        end, cpu_s = time.perf_counter() + SECONDS, time.process_time()
        clients = [asyncio.create_task(_client(url, train, seen, end, heed=heed)) for _ in range(CLIENTS)]
        await asyncio.sleep(SECONDS / 2)
        half = private_bytes(ingress)
        await asyncio.sleep(SECONDS / 2)
        seen.growth_mb = (private_bytes(ingress) - half) / 1e6
        seen.clients_cpu_s = time.process_time() - cpu_s
        stopped = time.perf_counter()
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        while True:
            queue = await _queue(line)
            if queue["free"] == queue["capacity"]:
                seen.idle_s = time.perf_counter() - stopped
                return seen
            await asyncio.sleep(0.1)


async def _training(line: Line) -> Call:
    table = load_wine(as_frame=True).frame.to_csv(index=False).encode()
    answer = await line.send(Call("POST", "/api/v1/datasets?name=w.csv", table, "text/csv"))
    dataset_id = json.loads(answer.body)["dataset_id"]
    payload = {"dataset_id": dataset_id, "target_column": "target", "epochs": 5}
    return Call("POST", "/api/v1/train", json.dumps(payload).encode())


async def _queue(line: Line) -> dict[str, int]:
    queue: dict[str, int] = json.loads((await line.send(Call("GET", "/api/v1/limits"))).body)["queue"]
    return queue


async def _client(url: str, train: Call, seen: Seen, end: float, *, heed: bool) -> None:
    async with Line(url) as line:
        while (sent := time.perf_counter()) < end:
            answer = await line.send(train)
            seen.note(answer, time.perf_counter() - sent)
            if answer.status != 200:
                await asyncio.sleep(int(answer.headers.get("retry-after", 1)) if heed else PAUSE_S)
