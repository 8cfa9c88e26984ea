"""Times of several ways to do the same, taken in turns so that all of them meet the same disturbances."""

import gc
import time
from collections.abc import Callable, Mapping
from statistics import median

Times = Mapping[str, list[float]]


def interleaved(
    ways: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> Times:
    """Seconds of each way, ``repeats`` times each in turns, after one unmeasured call of each."""
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    gc.collect()
    gc.disable()  # as timeit does
    try:
        for _ in range(repeats):
            for name, way in ways.items():
                times[name].append(seconds(way, clock))
    finally:
        gc.enable()
    return times


def seconds(way: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    way()
    return clock() - started


def ratio(times: Times, ours: str, theirs: str) -> float:
    """Median of ours over median of theirs."""
    return median(times[ours]) / median(times[theirs])


def time_rows(
    times: Times, reference: str, *, unit_s: float = 1e-3, digits: int = 1
) -> list[tuple[str, str, str, str]]:
    """A row a way: name, median and minimum in units of ``unit_s``, median over the reference's."""
    return [
        (
            name,
            f"{median(taken) / unit_s:,.{digits}f}",
            f"{min(taken) / unit_s:,.{digits}f}",
            f"{ratio(times, name, reference):.3g}",
        )
        for name, taken in times.items()
    ]
