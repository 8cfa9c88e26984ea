"""The step times of ``training`` on a CUDA device, where there is one."""

import torch

from benchmarks.end_to_end import ROWS
from benchmarks.report import Section, Table, load_average
from benchmarks.timing import time_rows
from benchmarks.training import BATCHES, OURS, step_times


def measure() -> Section:
    """Compares our loop on the device with our loop on one thread of the CPU."""
    load = load_average()
    found = torch.cuda.is_available()
    return Section(
        name="gpu",
        title="GPU",
        about=_about() if found else _unmeasured(),
        targets=[],
        tables=[_steps()] if found else [],
        packages=("torch",),
        started_load=load,
    )


def _about() -> str:
    return f"{ROWS:,} rows of 77 features on the device, hidden layers (128, 128). There is no target."


def _unmeasured() -> str:
    return (
        "This machine has no CUDA device, so these remain unmeasured: step times on a GPU, what the move "
        "of a table to it costs, and from which width and batch on it pays."
    )


def _steps() -> Table:
    rows = []
    for batch in (*BATCHES, 4_096):
        times = {
            "CPU": step_times(batch, device="cpu", peers=False)[OURS],
            "GPU": step_times(batch, device="cuda", peers=False)[OURS],
        }
        for name, *cells in time_rows(times, "CPU", unit_s=1e-6, digits=0):
            rows.append((f"{name}, batch {batch:,}", *cells))
    return Table(("one optimisation step", "median µs", "minimum µs", "of the CPU"), rows)
