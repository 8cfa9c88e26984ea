"""Trains from one file in a process of its own and prints what memory that took, as JSON.

Run as ``python -m benchmarks.train_once FILE TARGET``.
"""

import gc
import json
import os
import sys
import time

import torch

from benchmarks.processes import peak_bytes, resident_bytes
from core.local import train_model_from_file

EPOCHS = 1
BATCH_SIZE = 16_384


def main(path: str, target: str) -> dict[str, float]:
    """``idle_bytes`` before reading, ``peak_bytes`` of the process, and the ``width`` of the matrix."""
    torch.set_num_threads(1)
    gc.collect()
    idle, started = resident_bytes(os.getpid()), time.perf_counter()
    bundle, metrics = train_model_from_file(path, target, epochs=EPOCHS, batch_size=BATCH_SIZE)
    accuracy = metrics["test_metric_value"]
    assert isinstance(accuracy, float)
    return {
        "idle_bytes": idle,
        "peak_bytes": peak_bytes(os.getpid()),
        "width": bundle.encoder.width,
        "seconds": time.perf_counter() - started,
        "accuracy": accuracy,
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
