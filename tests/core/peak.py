"""Trains on one table in a process of its own and prints what was estimated and what was used, as JSON.

Run as ``python peak.py FOLDER FIELDS``: ``rows``, ``columns`` and ``classes`` of the table, and fields of the
request. The table is read from a file there: a buffer of this process would not be freed.
"""

import gc
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from core import pipeline
from core.contract import DataSource, TrainRequest
from core.exchange import write_arrow


def written(file, rows, columns, classes):
    """Of booleans, a bit each, so that the table as it was read weighs little beside its features."""
    rng = np.random.default_rng(0)
    table = {f"x{i}": rng.random(rows) < 0.5 for i in range(columns)}
    labels = np.array([f"k{i:03}" for i in range(classes)])[np.arange(rows) % classes] if classes else None
    file.write_bytes(
        write_arrow(pa.table(table | {"y": rng.normal(size=rows) if labels is None else labels}))
    )
    return file


def train(file, **fields):
    request = TrainRequest(DataSource("path", "t", "arrow", "t"), "y", device="cpu", **fields)
    for _ in pipeline.train(request, lambda: pa.OSFile(str(file)), lambda: False):
        pass


def status(name):
    """A size from the kernel, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main(folder, rows, columns, classes, **fields):
    seen = []
    refuse = pipeline.require_room
    pipeline.require_room = lambda need, batch_size, device, given_back: (
        seen.append(need),
        refuse(need, batch_size, device, given_back),
    )
    train(
        written(folder / "small", 100, 2, 2), epochs=1, early_stopping_patience=1
    )  # imports and first allocations
    file = written(folder / "large", rows, columns, classes)
    gc.collect()
    pa.default_memory_pool().release_unused()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = status("VmRSS")
    train(file, **fields)
    return {"need": seen[-1].total, "used": status("VmHWM") - before}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), **json.loads(sys.argv[2]))))
