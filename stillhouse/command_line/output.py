"""What a command prints: results on stdout, all else on stderr; with ``--json`` errors on stdout too."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

import click
import pydantic_core
from rich.console import Console
from rich.table import Table

from core.catalogue import ErrorType
from core.errors import StillhouseError
from stillhouse.answers import Metrics
from stillhouse.failures import Failure, failure_of

EXIT_CODES: Final[Mapping[str, int]] = {
    ErrorType.USER_ERROR: 3,
    ErrorType.PERMANENT: 4,
    ErrorType.TRANSIENT: 5,
    ErrorType.SYSTEM_ERROR: 6,
}
USAGE_ERROR: Final = 2
INTERRUPTED: Final = 130
WORTH_TELLING_S: Final = 1.0
WIDE: Final = 10_000  # columns: into a pipe nothing is wrapped or cut off


class Output:
    """Prints in the form that was asked for."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.out, self.err = _console(stderr=False), _console(stderr=True)

    def show(self, result: object, rows: Sequence[tuple[str, object]]) -> None:
        """One result: as JSON, or as the rows that people are to see."""
        if self.as_json:
            self.print_json(result)
            return
        table = _table(None)
        for name, value in rows:
            table.add_row(name, text_of(value))
        self._print(table)

    def show_all(self, results: Sequence[Any], columns: Mapping[str, Callable[[Any], object]]) -> None:
        """A list: as JSON ``{"data": […]}``, or as a table."""
        if self.as_json:
            self.print_json({"data": results})
            return
        table = _table(list(columns))
        for result in results:
            table.add_row(*(text_of(value(result)) for value in columns.values()))
        self._print(table if results else "There are none.")

    def _print(self, shown: Table | str) -> None:
        """Into a pipe without the blanks that fill a table up."""
        if self.out.is_terminal:
            self.out.print(shown)
            return
        with self.out.capture() as captured:
            self.out.print(shown)
        click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))

    def print_line(self, value: object) -> None:
        """JSON on one line, of those that come one after the other."""
        click.echo(pydantic_core.to_json(value))

    def print_json(self, value: object) -> None:
        click.echo(pydantic_core.to_json(value, indent=2))

    def warn(self, warnings: Sequence[str]) -> None:
        for warning in warnings:
            self.tell(f"Warning: {warning}")

    def tell(self, text: str) -> None:
        """Something beside the result."""
        self.err.print(text)

    def tell_retry(self, error: StillhouseError, wait_s: float) -> None:
        if wait_s >= WORTH_TELLING_S:
            self.tell(f"{error.message} Trying again in {wait_s:.0f} s …")


def show_error(error: StillhouseError, as_json: bool) -> int:
    """Shows what went wrong and what to do; returns the exit code."""
    failure = failure_of(error)
    if as_json:
        show_json_error(asdict(failure))
    else:
        click.echo(_sentences(failure, _further(error)), err=True)
    return exit_code_of(failure.type)


def exit_code_of(error_type: str) -> int:
    return EXIT_CODES.get(error_type, EXIT_CODES[ErrorType.SYSTEM_ERROR])


def show_json_error(fields: Mapping[str, object]) -> None:
    click.echo(json.dumps({"error": fields}, indent=2))


def _sentences(failure: Failure, further: Sequence[str]) -> str:
    request = f", request {failure.request_id}" if failure.request_id else ""
    known = f"({failure.code}, {failure.type}{request})"
    return "\n".join((f"Error: {failure.message}", *further, failure.suggested_action, known))


def _further(error: StillhouseError) -> list[str]:
    """What is wrong with a job besides what the message says."""
    found = error.details.get("violations")
    listed = found[1:] if isinstance(found, list) else []
    return [f"  {item['message']}" for item in listed if isinstance(item, dict) and "message" in item]


def metric_rows(metrics: Metrics) -> list[tuple[str, object]]:
    return [
        (f"test {metrics.test_metric_name}", metrics.test_metric_value),
        ("test loss", metrics.test_loss),
        *((name.replace("_", " "), value) for name, value in metrics.extra.items()),
    ]


def text_of(value: object) -> str:
    """A value as people read it."""
    if value is None:
        return "–"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _table(headers: Sequence[str] | None) -> Table:
    table = Table(box=None, show_header=headers is not None, pad_edge=False, show_edge=False)
    for header in headers or ("", ""):
        table.add_column(
            header, overflow="fold", style="bold" if header == "" and not table.columns else None
        )
    return table


def _console(*, stderr: bool) -> Console:
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    width = None if is_terminal else WIDE
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=width)
