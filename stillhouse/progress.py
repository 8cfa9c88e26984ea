"""A progress bar for train and distil on a terminal."""

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from stillhouse.answers import EpochReport


class ProgressBar:
    """Shows the epoch and the loss, in place; pass it as ``progress``.

    with ProgressBar("train") as bar:
        client.train(progress=bar, ...)
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("epoch {task.completed:.0f} of {task.total:.0f}, loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            console=console or Console(stderr=True),
            transient=True,
        )
        self._title = title
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, report: EpochReport) -> None:
        loss = report.train_loss if report.validation_loss is None else report.validation_loss
        shown = "–" if loss is None else f"{loss:.4f}"
        if self._task is None:
            self._task = self._progress.add_task(self._title, total=report.epochs, loss=shown)
        self._progress.update(self._task, completed=report.epoch, loss=shown)
