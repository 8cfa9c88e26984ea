"""``jobs``: trainings that go on whatever becomes of the terminal."""

import json
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import click

from core.catalogue import CATALOGUE, ErrorType
from core.errors import StillhouseError
from stillhouse.answers import Trained
from stillhouse.client import Client
from stillhouse.command_line.jobs import (
    NAMED_OTHERWISE,
    data_argument,
    request_of,
    rows_of,
    target_option,
)
from stillhouse.command_line.options import INPUT_OR_STDIN, connected, fields_of, given
from stillhouse.command_line.output import INTERRUPTED, Output, exit_code_of
from stillhouse.command_line.resources import Listing
from stillhouse.failures import failure_of
from stillhouse.fields import AnyFields, DistillJobFields, TrainJobFields
from stillhouse.job_answers import Job, JobEvent, LogLine, StatusChange
from stillhouse.job_calls import Level
from stillhouse.job_display import JobDisplay

CURVE_EPOCHS = 2000
job_id_argument = click.argument("job_id")
watch_option = click.option("--watch", "then_watch", is_flag=True, help="Watch it at once.")
order_argument = click.argument("order", type=INPUT_OR_STDIN)


@click.group(cls=Listing)
def jobs() -> None:
    """Training jobs: list, train, distill, watch, show, retry, cancel …"""


# ── Filing ──────────────────────────────────────────────────────────────────────────────────────────────────


@jobs.command("train")
@data_argument
@target_option
@fields_of(TrainJobFields, NAMED_OTHERWISE)
@watch_option
@connected
def train_job(client: Client, output: Output, data: Path | None, then_watch: bool, **options: object) -> None:
    """File a job that trains a model on a table.

    DATA is uploaded first, as for stillhouse train, which waits for its training instead.
    """
    _file(client, output, client.jobs.train(**request_of(client, data, options)), then_watch)


@jobs.command("distill")
@data_argument
@target_option
@fields_of(DistillJobFields, NAMED_OTHERWISE)
@watch_option
@connected
def distill_job(
    client: Client, output: Output, data: Path | None, then_watch: bool, **options: object
) -> None:
    """File a job that trains a student on a teacher's outputs.

    DATA is uploaded first, as for stillhouse distill, which waits for its training instead.
    """
    _file(client, output, client.jobs.distill(**request_of(client, data, options)), then_watch)


@jobs.command("create")
@order_argument
@watch_option
@connected
def create_job(client: Client, output: Output, order: Path, then_watch: bool) -> None:
    """File a job as a JSON file describes it.

    ORDER has the fields of the route, kind among them; - is stdin.
    """
    _file(client, output, client.jobs.create(**_read(order)), then_watch)


@jobs.command("validate")
@order_argument
@connected
def validate_job(client: Client, output: Output, order: Path) -> None:
    """Check a job without filing it: everything that is wrong, in its fields and its data.

    ORDER is a JSON file as create takes it.
    """
    found = client.jobs.validate(**_read(order))
    output.warn(found.warnings)
    if output.as_json:
        output.print_json(found)
    elif found.valid:
        output.tell("The job can be filed.")
    else:
        columns: dict[str, Callable[[Any], object]] = {
            "field": lambda error: error.param,
            "code": lambda error: error.code,
            "what is wrong": lambda error: error.message,
        }
        output.show_all(found.errors, columns)
    if not found.valid:
        entry = CATALOGUE.get(found.errors[0].code) if found.errors else None
        raise click.exceptions.Exit(exit_code_of(entry.type if entry else ErrorType.USER_ERROR))


@jobs.command("retry")
@job_id_argument
@fields_of(AnyFields, frozenset())
@click.option("--resume-from", default="none", show_default=True, help="None, best, last or a checkpoint.")
@click.option("--new-snapshot", is_flag=True, help="Read the data as they are now.")
@watch_option
@connected
def retry_job(
    client: Client,
    output: Output,
    job_id: str,
    resume_from: str,
    new_snapshot: bool,
    then_watch: bool,
    **options: object,
) -> None:
    """Run a job that has ended once more.

    Options that are given change its request.
    """
    changes = given(options)
    job = client.jobs.retry(job_id, resume_from=resume_from, new_snapshot=new_snapshot, **changes)
    _file(client, output, job, then_watch)


@jobs.command("cancel")
@job_id_argument
@connected
def cancel_job(client: Client, output: Output, job_id: str) -> None:
    """End a job."""
    job = client.jobs.cancel(job_id)
    output.show(job, [("job", job.job_id), ("status", job.status)])


# ── Looking ─────────────────────────────────────────────────────────────────────────────────────────────────


@jobs.command("list")
@click.option("--status", help="Of this status alone; several with commas between.")
@click.option("--project-id", help="Of this project alone.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many.")
@connected
def list_jobs(client: Client, output: Output, status: str | None, project_id: str | None, limit: int) -> None:
    """List jobs, newest first."""
    columns: dict[str, Callable[[Any], object]] = {
        "job": lambda job: job.job_id,
        "kind": lambda job: job.kind,
        "status": lambda job: job.status,
        "done": lambda job: f"{job.progress_percent:.0f} %",
        "experiment": lambda job: job.experiment_name,
        "created": lambda job: job.created_at,
    }
    found = client.jobs.list(status=status, project_id=project_id)
    output.show_all(list(islice(found, limit)), columns)


@jobs.command("show")
@job_id_argument
@connected
def show_job(client: Client, output: Output, job_id: str) -> None:
    """Show a job: how far it is, what it waits for, what became of it."""
    job = client.jobs.get(job_id)
    output.show(job, job_rows(job))


@jobs.command("events")
@job_id_argument
@click.option("--after", type=click.IntRange(min=0), default=0, help="Those after this number.")
@connected
def show_events(client: Client, output: Output, job_id: str, after: int) -> None:
    """Show what happened to a job."""
    events = list(client.jobs.events(job_id, after))
    if output.as_json:
        output.print_json({"data": [event.data for event in events]})
        return
    columns: dict[str, Callable[[Any], object]] = {
        "": lambda event: event.seq,
        "time": lambda event: event.timestamp,
        "attempt": lambda event: event.attempt,
        "what": lambda event: event.type,
        "status": _new_status,
    }
    output.show_all(events, columns)


@jobs.command("checkpoints")
@job_id_argument
@connected
def show_checkpoints(client: Client, output: Output, job_id: str) -> None:
    """Show what a retry may resume from."""
    columns: dict[str, Callable[[Any], object]] = {
        "checkpoint": lambda checkpoint: checkpoint.id,
        "attempt": lambda checkpoint: checkpoint.attempt,
        "epoch": lambda checkpoint: checkpoint.epoch,
        "best": lambda checkpoint: checkpoint.is_best,
        "created": lambda checkpoint: checkpoint.created_at,
    }
    output.show_all(client.jobs.checkpoints(job_id), columns)


@jobs.command("logs")
@job_id_argument
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@click.option("--after", type=click.IntRange(min=0), help="Lines after this number; the newest by default.")
@click.option("--level", type=click.Choice(get_args(Level)), help="Lines of this level alone.")
@connected
def show_logs(
    client: Client, output: Output, job_id: str, follow: bool, after: int | None, level: Level | None
) -> None:
    """Print the log of a job.

    With --json and --follow one line of JSON each.
    """
    if follow:
        for line in client.jobs.follow_logs(job_id, after or 0, level=level):
            output.print_line(line) if output.as_json else click.echo(_text_of(line))
        return
    lines = client.jobs.logs(job_id, after=after, level=level)
    if output.as_json:
        output.print_json({"data": lines})
    elif lines:
        click.echo("\n".join(map(_text_of, lines)))


@jobs.command("watch")
@job_id_argument
@connected
def watch_job(client: Client, output: Output, job_id: str) -> None:
    """Watch a job until it has ended: a bar, a curve of its losses and what happens to it.

    Ctrl-C ends the watching and not the job. A connection that breaks is made anew. The exit code is that of
    the job's error. With --json each event is printed as a line.
    """
    _watch(client, output, job_id)


# ── Parts ───────────────────────────────────────────────────────────────────────────────────────────────────


def job_rows(job: Job) -> list[tuple[str, object]]:
    error = [] if job.error is None else [("error", job.error.message), ("", job.error.suggested_action)]
    turn = [] if job.queue is None else [("queue", f"number {job.queue.position}. {job.queue.reason or ''}")]
    named = {"project": job.project_id, "experiment": job.experiment_name, "notes": job.notes}
    return [
        ("job", job.job_id),
        ("kind", job.kind),
        ("status", job.status),
        *turn,
        ("attempt", job.attempt),
        ("epoch", f"{job.current_epoch} of {job.total_epochs or '?'}, {job.progress_percent:.0f} %"),
        *((name, value) for name, value in named.items() if value is not None),
        *([("tags", ", ".join(job.tags))] if job.tags else []),
        ("created", job.created_at),
        ("started", job.started_at),
        ("ended", job.completed_at),
        *error,
        *(rows_of(job.result) if isinstance(job.result, Trained) else []),
    ]


def _file(client: Client, output: Output, job: Job, then_watch: bool) -> None:
    output.warn(job.warnings)
    if then_watch:
        _watch(client, output, job.job_id)
        return
    output.show(job, job_rows(job))
    if not output.as_json:
        output.tell(f"Watch it with: stillhouse jobs watch {job.job_id}")


def _watch(client: Client, output: Output, job_id: str) -> None:
    try:
        if output.as_json:
            _print_events(client, output, job_id)
        else:
            output.show(job := _watched(client, output, job_id), job_rows(job))
    except KeyboardInterrupt:
        output.tell(f"The job goes on. Come back with: stillhouse jobs watch {job_id}")
        raise click.exceptions.Exit(INTERRUPTED) from None


def _watched(client: Client, output: Output, job_id: str) -> Job:
    """The job as it ended; raises what it failed with."""
    job = client.jobs.get(job_id)
    past = client.jobs.metrics(job_id, limit=CURVE_EPOCHS)
    with JobDisplay(job, past, output.err) as display:
        for event in client.jobs.follow(job_id):
            display.tell(event)
    return client.jobs.wait(job_id)


def _print_events(client: Client, output: Output, job_id: str) -> None:
    """A failure too is one line."""
    try:
        for event in client.jobs.follow(job_id):
            output.print_line(event.data)
        client.jobs.wait(job_id)
    except StillhouseError as error:
        failure = failure_of(error)
        output.print_line({"error": asdict(failure)})
        raise click.exceptions.Exit(exit_code_of(failure.type)) from None


def _read(order: Path) -> dict[str, Any]:
    with click.open_file(str(order), encoding="utf-8") as opened:
        try:
            fields = json.load(opened)
        except ValueError as error:
            raise click.UsageError(f"{order} must be JSON: {error}") from None
    if not isinstance(fields, dict):
        raise click.UsageError(f"{order} must be a JSON object, got a {type(fields).__name__}.")
    return {"kind": "train", **fields}


def _new_status(event: JobEvent) -> str | None:
    return event.new if isinstance(event, StatusChange) else None


def _text_of(line: LogLine) -> str:
    return f"{line.at.astimezone():%Y-%m-%d %H:%M:%S} {line.level:<7} {line.message}"
