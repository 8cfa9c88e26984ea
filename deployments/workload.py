"""One training as its thread sees it, and what the thread needs of its process."""

import asyncio
import contextlib
import gc
import importlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import TYPE_CHECKING, Final, TypeVar

import pyarrow as pa

from core.contract import DistillRequest, TrainRequest
from core.errors import without_paths
from core.table import Opener
from deployments.origin import Origin
from deployments.service import JobKind, Report

if TYPE_CHECKING:  # importing them imports torch
    from core.pipeline import Outcome, Work
    from core.training import Checkpoints

Result = TypeVar("Result")

REPORT_EVERY_S: Final = 0.25
NICENESS: Final = 10
Request = TrainRequest | DistillRequest


class Workload:
    """A training in its thread, stoppable between two batches.

    Args:
        find_request: The request; called in the thread, where it may look things up.
        limit_s: From now on, until ``should_stop``.
        report_every_s: Reports that follow one another faster are left out, but for the last.
        reading: Told what is going to be read, before it is.
        moved: Called whenever the training went on.
    """

    def __init__(
        self,
        run_id: str,
        kind: JobKind,
        find_request: Callable[[], Request],
        origin: Origin,
        emit: Callable[[Report], None],
        *,
        limit_s: float,
        report_every_s: float = REPORT_EVERY_S,
        reading: Callable[[Request, Opener], None] = lambda *_: None,
        moved: Callable[[], None] = lambda: None,
        checkpoints: "Checkpoints | None" = None,
    ) -> None:
        self.run_id, self.kind, self.origin, self.limit_s = run_id, kind, origin, limit_s
        self.find_request, self.reading, self.checkpoints = find_request, reading, checkpoints
        self.stopped = threading.Event()
        self._emit, self._moved, self._report_every_s = emit, moved, report_every_s
        self._deadline = time.monotonic() + limit_s
        self._loop = asyncio.get_running_loop()

    def log_fields(self) -> dict[str, str]:
        return {"run_id": self.run_id, **self.origin.log_fields()}

    def should_stop(self) -> bool:
        self._moved()
        return self.stopped.is_set() or time.monotonic() > self._deadline

    def wait_for(self, coroutine: Coroutine[object, object, Result]) -> Result:
        """Runs a coroutine on the replica's loop while this thread waits."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def follow(self, work: "Work") -> "Outcome":
        """Runs the training to its end and passes on its reports."""
        emitted, waiting = -math.inf, None
        while True:
            try:
                waiting = next(work)
            except StopIteration as end:
                if waiting is not None:  # the last epoch is told, however quick it was
                    self._emit({"event": "epoch", **asdict(waiting)})
                return end.value  # type: ignore[no-any-return]
            if time.monotonic() - emitted >= self._report_every_s:
                emitted = time.monotonic()
                self._emit({"event": "epoch", **asdict(waiting)})
                waiting = None


async def until_done(work: asyncio.Future[Report]) -> None:
    """Waits for the thread even while this task is being cancelled again and again."""
    while not work.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([work])
    if not work.cancelled():
        work.exception()  # marks it as seen


def warm_up() -> None:
    """Imports what jobs need, and lets collections pass over it: they took 0.25 s after every job."""
    if runtime_error() is None and not gc.get_freeze_count():
        importlib.import_module("core.distillation")
        gc.collect()
        gc.freeze()


def give_way() -> None:
    """Lets those who answer go first where they share cores: on Linux it concerns this thread and its own."""
    os.nice(NICENESS)


def runtime_error() -> str | None:
    """Why PyTorch cannot be imported; None when it can."""
    try:
        importlib.import_module("torch")
    except Exception as error:  # noqa: BLE001  # a broken installation raises what it likes
        return without_paths(f"{type(error).__name__}: {error}")
    return None


def release_memory() -> None:
    """Gives what the last training used back to the machine and to the device."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
