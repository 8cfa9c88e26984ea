"""Predictions over HTTP: what the way to the model and back costs beside the prediction itself."""

import contextlib
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Final

import httpx
import pyarrow as pa

from benchmarks.bare_server import bare_service
from benchmarks.load import Call, Connection, Load, run_load
from benchmarks.report import Section, Table, Target, load_average
from benchmarks.samples import TARGET, mixed_table, write_csv
from benchmarks.timing import Times, interleaved, ratio, time_rows
from core.bundles import Bundle
from core.exchange import ARROW, write_arrow
from core.prediction import Predictor
from deployments.demo import run_job, running_service

ROWS: Final = 100_000
ONE_ROW_REPEATS: Final = 1_000
TABLE_REPEATS: Final = 15
CLIENTS: Final = 32
LOAD_ROUNDS: Final = 3
LOAD_S: Final = 6.0
ONE_ROW_LIMIT: Final = 1.5
TABLE_LIMIT: Final = 3.0
PREDICT, READY = "predict, 1 row", "GET /health/ready"
OVER_HTTP, IN_PROCESS = "over HTTP, Arrow stream", "encode and predict in one process"
SERVICE, BARE = "Stillhouse", "FastAPI + uvicorn, one process"


def measure() -> Section:
    """Trains a model on the live service and predicts with it in three ways."""
    load = load_average()
    with (
        tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as name,
        running_service(Path(name)) as url,
        httpx.Client(base_url=url, timeout=300) as client,
    ):
        run_id = train_run(client, Path(name))
        file = client.get(f"/api/v1/runs/{run_id}/bundle").raise_for_status().content
        one_row = _one_row_times(url, run_id)
        tables = _table_times(url, run_id, Predictor(Bundle.from_bytes(file)))
        loads = _loads(url, run_id, file, Path(name))
    one, many = ratio(one_row, PREDICT, READY), ratio(tables, OVER_HTTP, IN_PROCESS)
    return Section(
        name="http",
        title="Predictions over HTTP",
        about=(
            "The service of `serve_config.yaml` on a cluster of its own, a model of 23 columns (77 features, "
            "3 classes) at its defaults, clients on the same machine. `/health/ready` makes one empty call "
            "to a predictor, so it is what Ray Serve itself costs."
        ),
        targets=[
            Target(
                "predict of 1 row, median",
                f"at most {ONE_ROW_LIMIT} × ready",
                f"{one:.2f} ×",
                one <= ONE_ROW_LIMIT,
            ),
            Target(
                f"predict of {ROWS:,} rows as Arrow, median",
                f"at most {TABLE_LIMIT} × encoding and predicting in one process",
                f"{many:.2f} ×",
                many <= TABLE_LIMIT,
            ),
        ],
        tables=[
            Table(
                ("request", "median ms", "minimum ms", "of ready"),
                time_rows(one_row, READY, digits=2),
                f"One keep-alive connection, {ONE_ROW_REPEATS:,} of each in turns.",
            ),
            Table(
                (f"{ROWS:,} rows", "median ms", "minimum ms", "of one process"),
                time_rows(tables, IN_PROCESS),
                f"{TABLE_REPEATS} of each in turns, one thread for the product as in a replica.",
            ),
            _load_table(loads),
        ],
        packages=("ray", "fastapi", "uvicorn", "starlette", "torch", "pyarrow"),
        started_load=load,
    )


def train_run(client: httpx.Client, folder: Path) -> str:
    """A run of the service, trained on 20,000 generated rows."""
    path = folder / "mixed.csv"
    write_csv(mixed_table(20_000), path)
    answer = client.post(
        "/api/v1/datasets?name=mixed.csv", content=path.read_bytes(), headers={"Content-Type": "text/csv"}
    ).raise_for_status()
    data = {"dataset_id": answer.json()["dataset_id"], "target_column": TARGET}
    run_id: str = run_job(client, "train", {**data, "epochs": 5})["run_id"]
    return run_id


def one_row_call(run_id: str | None) -> Call:
    row = mixed_table(1, seed=1).drop_columns(TARGET).to_pylist()
    body = {"rows": row} if run_id is None else {"run_id": run_id, "rows": row}
    return Call("POST", "/api/v1/predict", json.dumps(body).encode())


def _one_row_times(url: str, run_id: str) -> Times:
    predict, ready = one_row_call(run_id), Call("GET", "/health/ready")
    with contextlib.closing(Connection(url)) as connection:
        for _ in range(100):
            connection.send(predict)
            connection.send(ready)
        return interleaved(
            {PREDICT: lambda: connection.send(predict), READY: lambda: connection.send(ready)},
            ONE_ROW_REPEATS,
        )


def _table_times(url: str, run_id: str, model: Predictor) -> Times:
    table = mixed_table(ROWS, seed=2).drop_columns(TARGET)
    columns = dict(zip(table.column_names, table.columns, strict=True))
    call = Call("POST", f"/api/v1/predict?run_id={run_id}", write_arrow(table), ARROW)
    with contextlib.closing(Connection(url)) as connection:
        answer = pa.ipc.open_stream(connection.send(call)).read_all()
        assert answer["prediction"].to_pylist() == model.predict(model.encode(columns).features).labels()
        return interleaved(
            {
                OVER_HTTP: lambda: connection.send(call),
                IN_PROCESS: lambda: model.predict(model.encode(columns).features),
            },
            TABLE_REPEATS,
        )


def _loads(url: str, run_id: str, file: bytes, folder: Path) -> dict[str, list[Load]]:
    loads: dict[str, list[Load]] = {SERVICE: [], BARE: []}
    with bare_service(file, folder) as bare_url:
        for _ in range(LOAD_ROUNDS):
            for name, address, call in (
                (SERVICE, url, one_row_call(run_id)),
                (BARE, bare_url, one_row_call(None)),
            ):
                loads[name].append(run_load(address, call, clients=CLIENTS, seconds=LOAD_S))
    return loads


def _load_table(loads: dict[str, list[Load]]) -> Table:
    rows = [
        (
            name,
            f"{median(load.per_second for load in taken):,.0f}",
            f"{median(load.median_ms for load in taken):.1f}",
        )
        for name, taken in loads.items()
    ]
    note = (
        f"{CLIENTS} clients, each sending its next row when it has its answer; medians of {LOAD_ROUNDS} "
        f"rounds of {LOAD_S:.0f} s in turns. No target: the peer has neither replicas, registry nor checks."
    )
    return Table(("service", "rows a second", "median ms"), rows, note)
