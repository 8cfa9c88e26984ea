"""What stands before the ingress: Serve's Python proxy or HAProxy, and Serve's throughput mode."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Final

import httpx

from benchmarks.load import Call, Connection, run_load
from benchmarks.over_http import one_row_call, train_run
from benchmarks.processes import ports_open_to_others
from benchmarks.report import Section, Table, load_average
from benchmarks.timing import interleaved
from deployments.demo import running_service

CLIENTS: Final = 32
LOAD_S: Final = 5.0
REPEATS: Final = 300
WAYS: Final[Mapping[str, Mapping[str, str]]] = {
    "Python proxy (default)": {},
    "HAProxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1"},
    "Python proxy, throughput mode": {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
    "HAProxy, throughput mode": {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
}


def measure() -> Section:
    load = load_average()
    rows = [(name, *_measured(environment)) for name, environment in WAYS.items()]
    return Section(
        name="proxies",
        title="Proxies of Ray Serve",
        about=(
            "The same service behind each, started anew. `/health/live` is answered by the ingress, predict "
            "of one row takes a call to a predictor more. The ports are those that HAProxy opens on every "
            "interface although the service is told to listen on the loopback address alone. For the "
            "decision see README.md."
        ),
        targets=[],
        tables=[
            Table(
                ("way", "live, ms", "predict, ms", "live, 1/s", "predict, 1/s", "open to others"),
                rows,
                f"Medians of {REPEATS} on one connection, and rates of {CLIENTS} clients for {LOAD_S:.0f} s.",
            )
        ],
        packages=("ray", "starlette"),
        started_load=load,
    )


def _measured(environment: Mapping[str, str]) -> tuple[str, ...]:
    with (
        _environment(environment),
        tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as name,
        running_service(Path(name)) as url,
        httpx.Client(base_url=url, timeout=300) as client,
    ):
        calls = {"live": Call("GET", "/health/live"), "predict": one_row_call(train_run(client, Path(name)))}
        with contextlib.closing(Connection(url)) as connection:
            for call in calls.values():
                for _ in range(50):
                    connection.send(call)
            ways = {way: lambda call=call: connection.send(call) for way, call in calls.items()}
            times = interleaved(ways, REPEATS)
        rates = [run_load(url, call, clients=CLIENTS, seconds=LOAD_S).per_second for call in calls.values()]
        ports = ", ".join(map(str, ports_open_to_others("haproxy"))) or "none"
    return (
        *(f"{1000 * median(taken):.1f}" for taken in times.values()),
        *(f"{r:,.0f}" for r in rates),
        ports,
    )


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """For processes that are started in the block."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
