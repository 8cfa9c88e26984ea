"""10,000 hostile requests: every answer documented, in the dialect of its route, and no 500."""

import time
from collections import Counter

from benchmarks.report import Section, Table, Target, load_average
from tests.deployments.fuzz.exchange import Answer, Sent
from tests.deployments.fuzz.requests import documented_requests, drawn, hostile_requests
from tests.deployments.fuzz.service import open_target

REQUESTS = 10_000
EXAMPLES = 60  # of each operation, twice: with data that fits its schema, and with data that does not
SEED = 20


def measure() -> Section:
    load, started = load_average(), time.monotonic()
    with open_target() as (target, runner):
        documented = documented_requests(target, EXAMPLES, SEED)
        mutated = drawn(hostile_requests(target), REQUESTS - len(documented), SEED)
        judged = runner.run(target.send_all([*documented, *mutated]))
        routes = list(target.document["paths"])
    for sent, _, faults in judged:
        for fault in faults:
            print(f"{sent}\n    {fault}", flush=True)
    violations = sum(bool(faults) for _, _, faults in judged)
    failed = sum(answer is None or answer.status >= 500 for _, answer, _ in judged)
    sources = f"{len(documented)} from the OpenAPI document, {len(mutated)} mutated"
    return Section(
        name="fuzz",
        title="Fuzzing",
        about=(
            f"{len(judged)} requests ({sources}; seed {SEED}) to the service in one process, with real "
            f"trainings and tokens, in {time.monotonic() - started:.0f} s. A violation is a status or code "
            "that the OpenAPI document does not have for the operation, a body that is not exactly its "
            "dialect's, a missing or wrong header, invalid JSON, a server path, a token or a row of data."
        ),
        targets=[
            Target("requests", f"{REQUESTS}", f"{len(judged)}", len(judged) >= REQUESTS),
            Target("answers of 500 and above, or none", "0", f"{failed}", failed == 0),
            Target("answers that violate the contract", "0", f"{violations}", violations == 0),
        ],
        tables=[_by_route(judged, routes), _by_code(judged)],
        packages=("schemathesis", "hypothesis", "fastapi"),
        started_load=load,
    )


def _by_route(judged: list[tuple[Sent, Answer | None, list[str]]], routes: list[str]) -> Table:
    counts = Counter((_route_of(sent.path, routes), answer.status) for sent, answer, _ in judged if answer)
    statuses = sorted({status for _, status in counts})
    rows = [
        [route, *(str(counts[route, status] or "") for status in statuses)]
        for route in [*routes, "elsewhere"]
    ]
    return Table(["route", *map(str, statuses)], rows)


def _route_of(path: str, routes: list[str]) -> str:
    parts = path.split("/")
    for route in routes:
        pairs = list(zip(route.split("/"), parts, strict=False))
        if route.count("/") == len(parts) - 1 and all(a == b or a.startswith("{") for a, b in pairs):
            return route
    return "elsewhere"


def _by_code(judged: list[tuple[Sent, Answer | None, list[str]]]) -> Table:
    counts = Counter(answer.headers.get("x-error-code", "(success)") for _, answer, _ in judged if answer)
    return Table(["code", "answers"], [[code, str(count)] for code, count in counts.most_common()])
