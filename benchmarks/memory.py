"""Memory of a training from a large file, and of the ingress while such a file is uploaded."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from benchmarks.processes import find_replica, private_bytes, resident_bytes, sampled_peak
from benchmarks.report import Section, Table, Target, load_average
from benchmarks.samples import TARGET, write_large_csv
from benchmarks.train_once import BATCH_SIZE, EPOCHS
from deployments.demo import running_service

SIZE_BYTES: Final = 10**9
TRAININGS: Final = 3  # allocators differ from run to run: the worst counts
MATRIX_LIMIT: Final = 3.0
INGRESS_LIMIT_MB: Final = 50
CHUNK_BYTES: Final = 1 << 20
RAW, FORM, PACED = "raw body", "multipart form", "raw body at 110 MB/s, as 1 Gbit/s allows"
PACE_BYTES: Final = 110_000_000  # a second


@dataclass(frozen=True, slots=True)
class Training:
    """Attributes:
    grown: Peak minus idle, bytes.
    matrix: Rows × width × 4 bytes.
    """

    rows: int
    width: int
    idle: int
    grown: int
    matrix: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Upload:
    """Attributes:
    before, peak: Resident bytes of the ingress, with the pages of Ray's object store that it has mapped.
    private_growth: Bytes, without those pages.
    """

    way: str
    before: int
    peak: int
    private_growth: int
    seconds: float

    @property
    def grown_mb(self) -> float:
        return (self.peak - self.before) / 1e6


def measure() -> Section:
    """Writes the file, trains from it in a new process, uploads it to the live service, and removes it."""
    load = load_average()
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as name:
        path = Path(name) / "large.csv"
        rows = write_large_csv(path, SIZE_BYTES)
        trainings = [train(path, rows) for _ in range(TRAININGS)]
        uploads = [upload(path, Path(name) / str(i), way) for i, way in enumerate((RAW, FORM, PACED))]
    share, worst = max(t.grown / t.matrix for t in trainings), max(u.grown_mb for u in uploads)
    return Section(
        name="memory",
        title="Memory with a file of 1 GB",
        about=(
            f"A CSV of {SIZE_BYTES / 1e9:.0f} GB, {rows:,} rows, 20 numeric columns, one of text and the "
            f"target. Training ({EPOCHS} epoch, batches of {BATCH_SIZE:,}) runs in a new process; its peak "
            "(`VmHWM`) is counted from its size when all is imported and nothing read. The ingress of a "
            "live service, which took a small upload before, is sampled every 10 ms while the file is "
            "uploaded and checked: as fast as a client on the same machine can, and at a network's pace. "
            "What counts is its resident size with the pages of Ray's object store that it has mapped, which "
            "belong to the node and are the same for all its processes; the growth without them is beside it."
        ),
        targets=[
            Target(
                f"memory for training over the float32 matrix, worst of {TRAININGS}",
                f"at most {MATRIX_LIMIT} ×",
                f"{share:.2f} ×",
                share <= MATRIX_LIMIT,
            ),
            Target(
                "growth of the ingress during an upload, worst of all ways",
                f"below {INGRESS_LIMIT_MB} MB",
                f"{worst:.0f} MB",
                worst < INGRESS_LIMIT_MB,
            ),
        ],
        tables=[_training_table(trainings), _upload_table(uploads)],
        packages=("pyarrow", "numpy", "torch", "ray", "starlette", "python-multipart"),
        started_load=load,
    )


def train(path: Path, rows: int) -> Training:
    command = [sys.executable, "-m", "benchmarks.train_once", str(path), TARGET]
    answer = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True
    )
    found = json.loads(answer.stdout)
    grown = found["peak_bytes"] - found["idle_bytes"]
    matrix = rows * found["width"] * 4
    return Training(rows, found["width"], found["idle_bytes"], grown, matrix, found["seconds"])


def upload(path: Path, folder: Path, way: str) -> Upload:
    """Uploads to a service of its own that has taken a small file before."""
    folder.mkdir()
    with running_service(folder) as url, httpx.Client(base_url=url, timeout=900) as client:
        _send_raw(client, iter([b"a,kind\n", b"1,x\n2,y\n"])).raise_for_status()
        pid = find_replica("Ingress")
        before, private, started = resident_bytes(pid), private_bytes(pid), time.perf_counter()
        with sampled_peak(pid, resident_bytes) as peak, sampled_peak(pid, private_bytes) as private_peak:
            if way == FORM:
                with path.open("rb") as file:
                    answer = client.post("/api/v1/datasets", files={"file": ("b.csv", file, "text/csv")})
            else:
                answer = _send_raw(client, _chunks(path, PACE_BYTES if way == PACED else None))
            seconds = time.perf_counter() - started
        dataset = answer.raise_for_status().json()["dataset_id"]
        client.delete(f"/api/v1/datasets/{dataset}").raise_for_status()
        return Upload(way, before, peak(), private_peak() - private, seconds)


def _send_raw(client: httpx.Client, chunks: Iterator[bytes]) -> httpx.Response:
    return client.post("/api/v1/datasets?name=a.csv", content=chunks, headers={"Content-Type": "text/csv"})


def _chunks(path: Path, bytes_per_s: int | None = None) -> Iterator[bytes]:
    started, sent = time.perf_counter(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
            sent += len(chunk)
            if bytes_per_s is not None:
                time.sleep(max(0.0, started + sent / bytes_per_s - time.perf_counter()))


def _training_table(trainings: list[Training]) -> Table:
    rows = [
        (
            f"{t.rows:,} × {t.width}",
            f"{t.matrix / 1e6:,.0f}",
            f"{t.idle / 1e6:,.0f}",
            f"{t.grown / 1e6:,.0f}",
            f"{t.seconds:.0f}",
        )
        for t in trainings
    ]
    return Table(("matrix", "its MB", "idle process MB", "peak above idle MB", "seconds in all"), rows)


def _upload_table(uploads: list[Upload]) -> Table:
    rows = [
        (
            u.way,
            f"{u.before / 1e6:,.0f}",
            f"{u.peak / 1e6:,.0f}",
            f"{u.grown_mb:,.0f}",
            f"{u.private_growth / 1e6:,.0f}",
            f"{u.seconds:.0f}",
        )
        for u in uploads
    ]
    return Table(
        ("upload", "resident before, MB", "peak MB", "growth MB", "of it private, MB", "seconds"), rows
    )
