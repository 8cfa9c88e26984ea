"""``python -m benchmarks [subject …]``: measures all subjects, or those named, and writes README.md."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch
from threadpoolctl import threadpool_limits

from benchmarks import (
    edge,
    ensembles,
    fuzz,
    gpu,
    jobs,
    memory,
    over_http,
    overload,
    prediction,
    proxies,
    quality,
    table,
    training,
)
from benchmarks.report import Section, replace_section, to_text

README: Final = Path(__file__).with_name("README.md")
SUBJECTS: Final[Mapping[str, Callable[[], Section]]] = {
    "table": table.measure,
    "memory": memory.measure,
    "quality": quality.measure,
    "edge": edge.measure,
    "http": over_http.measure,
    "overload": overload.measure,
    "jobs": jobs.measure,
    "proxies": proxies.measure,
    "training": training.measure,
    "ensembles": ensembles.measure,
    "prediction": prediction.measure,
    "gpu": gpu.measure,
    "fuzz": fuzz.measure,
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the subjects one after the other; the report keeps what an interrupted run has finished.

    Returns:
        1 if a target was missed, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("subjects", nargs="*", metavar="subject", help=", ".join(SUBJECTS))
    wanted = parser.parse_args(arguments).subjects or list(SUBJECTS)
    if unknown := set(wanted) - SUBJECTS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SUBJECTS)}")
    # As in a replica, where Ray sets it: two threads are slower at these sizes, for the peers as well.
    torch.set_num_threads(1)
    threadpool_limits(1)
    missed = 0
    for name in wanted:
        print(f"── {name} ──", flush=True)
        section = SUBJECTS[name]()
        text = to_text(section, command=f"python -m benchmarks {name}")
        README.write_text(replace_section(README.read_text(), section.name, text))
        print(text, flush=True)
        missed += sum(not target.met for target in section.targets)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
