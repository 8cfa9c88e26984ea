"""A training job as it goes on, on a terminal or in the lines of a log."""

import math
from collections.abc import Mapping
from itertools import groupby
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stillhouse.curve import drawn
from stillhouse.job_answers import Job, JobEvent, JobMetrics, JobProgress, StatusChange

LOSSES: Final = {"train_loss": ("training", "cyan"), "validation_loss": ("validation", "magenta")}
HEIGHT: Final = 8
LEAST_BAR: Final = 5
MOST_BAR: Final = 30
MOST_WIDTH: Final = 100
LABEL_CHARS: Final = 10
REASONS: Final = {
    "lost": "its trainer was lost",
    "memory": "with smaller batches, as the GPU's memory was too small",
    "retry": "as it was asked to",
}


class JobDisplay:
    """Tells of events: on a terminal with a bar and a curve in place, elsewhere line by line.

    Args:
        past: What was told of its present attempt before.
    """

    def __init__(self, job: Job, past: JobMetrics, console: Console) -> None:
        self._console, self._status, self._attempt = console, job.status, job.attempt
        self._epoch, self._epochs = job.current_epoch, job.total_epochs
        self._eta_s: float | None = None
        self._tenth = -1
        self._losses: dict[str, dict[int, float]] = {name: {} for name in LOSSES}
        for epoch in past.data:
            self._keep(epoch.epoch, epoch.metrics)
        self._live = Live(console=console, get_renderable=self._shown, refresh_per_second=8)
        if job.queue is not None:
            self._say(f"It is number {job.queue.position} in the queue. {job.queue.reason or ''}")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def tell(self, event: JobEvent) -> None:
        if isinstance(event, JobProgress):
            self._go_on(event)
        elif isinstance(event, StatusChange):
            self._status, self._eta_s = event.new, None
            self._say(f"{_time(event)} {_change(event)}")
        elif event.type == "event":
            self._say(f"{_time(event)} {event.data.get('code', event.type)}")

    def _go_on(self, progress: JobProgress) -> None:
        if progress.attempt > self._attempt:  # it starts anew, or from a checkpoint
            for points in self._losses.values():
                for epoch in [epoch for epoch in points if epoch >= progress.current_epoch]:
                    del points[epoch]
            self._attempt, self._tenth = progress.attempt, -1
        self._epoch, self._epochs = progress.current_epoch, progress.total_epochs
        self._eta_s = progress.eta_s
        self._keep(progress.current_epoch, progress.metrics)
        tenth = int(progress.progress_percent // 10)
        if not self._console.is_terminal and tenth > self._tenth:
            self._say(f"{_time(progress)} {self._words()}")
        self._tenth = max(tenth, self._tenth)

    def _keep(self, epoch: int, metrics: Mapping[str, object]) -> None:
        for name, points in self._losses.items():
            value = metrics.get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                points[epoch] = float(value)

    def _say(self, line: str) -> None:
        self._console.print(line)

    # ── In place ────────────────────────────────────────────────────────────────────────────────────────

    def _shown(self) -> RenderableType:
        bar, words = Table.grid(padding=(0, 1)), self._words()
        free = self._console.width - len(self._status) - len(words) - 3
        share = ProgressBar(self._epochs or 1, self._epoch, width=max(LEAST_BAR, min(free, MOST_BAR)))
        bar.add_row(self._status, share, words)
        has_curve = not self._console.options.ascii_only and sum(map(len, self._losses.values())) > 1
        return Group(bar, self._curve()) if has_curve else bar

    def _words(self) -> str:
        """Epoch, losses and time to go."""
        told = [f"epoch {self._epoch} of {self._epochs or '?'}"]
        told += [
            f"{LOSSES[name][0]} {points[max(points)]:.4g}" for name, points in self._losses.items() if points
        ]
        if self._eta_s and self._status == "running":
            told.append(f"{duration(self._eta_s)} to go")
        return ", ".join(told)

    def _curve(self) -> RenderableType:
        width = min(self._console.width, MOST_WIDTH) - LABEL_CHARS - 2
        series = list(self._losses.values())
        steps = max(self._epochs or 1, *(max(points, default=1) for points in series))
        rows, low, high = drawn(series, steps, max(width, 8), HEIGHT)
        styles = [style for _, style in LOSSES.values()]
        labels = [f"{high:.4g}", *[""] * (HEIGHT - 2), f"{low:.4g}"]
        text = Text()
        for label, row in zip(labels, rows, strict=True):
            text.append(f"{label:>{LABEL_CHARS}} ")
            for number, cells in groupby(row, key=lambda cell: cell[1]):
                part = "".join(character for character, _ in cells)
                text.append(part, styles[number] if number is not None else None)
            text.append("\n")
        text.append(" " * (LABEL_CHARS + 1))
        for (name, style), points in zip(LOSSES.values(), series, strict=True):
            text.append(f"━ {name} loss  " if points else "", style)
        return text


def duration(seconds: float) -> str:
    """
    >>> duration(3725)
    '1 h 2 min'
    """
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _time(event: JobEvent) -> str:
    return event.timestamp.astimezone().strftime("%H:%M:%S")


def _change(change: StatusChange) -> str:
    told = change.new if change.old is None else f"{change.old} → {change.new}"
    if change.reason in REASONS:
        told += f", attempt {change.attempt}: {REASONS[change.reason]}"
    return told if change.error is None else f"{told} ({change.error.message})"
