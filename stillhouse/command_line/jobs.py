"""``train``, ``distill`` and ``predict``."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click

from stillhouse.answers import Distilled, Trained
from stillhouse.client import Client
from stillhouse.command_line.options import INPUT, INPUT_OR_STDIN, OUTPUT, connected, fields_of, given
from stillhouse.command_line.output import Output, metric_rows
from stillhouse.events import Progress
from stillhouse.fields import DistillFields, TrainFields
from stillhouse.progress import ProgressBar
from stillhouse.requests import ARROW, CSV, JSON, PARQUET

TABLES: Final = {"csv": CSV, "parquet": PARQUET, "arrow": ARROW}
MEDIA_TYPES: Final = {**TABLES, "json": JSON}
_BY_ENDING: Final = {
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
}
NAMED_OTHERWISE: Final = frozenset({"target_column"})

data_argument = click.argument("data", required=False, type=INPUT)
target_option = click.option("--target", "target_column", required=True, help="Column to predict.")
table_format = click.Choice(list(TABLES))


@click.command()
@data_argument
@target_option
@fields_of(TrainFields, NAMED_OTHERWISE)
@connected
def train(client: Client, output: Output, data: Path | None, **options: object) -> None:
    """Train a model on a table.

    DATA is uploaded first: a CSV, TSV, Parquet, Arrow, JSON Lines or XLSX file.

    The run lives for a while after its last use. With --save-model, or a --model-id, it stays as a model.
    """
    trained = _job(client.train, "train", client, output, data, options)
    output.show(trained, rows_of(trained))


@click.command()
@data_argument
@target_option
@fields_of(DistillFields, NAMED_OTHERWISE)
@connected
def distill(client: Client, output: Output, data: Path | None, **options: object) -> None:
    """Train a small student on a teacher's outputs.

    DATA is uploaded first, as for train.

    Name the teacher with --teacher-run-id or --teacher-model-id.
    """
    student = _job(client.distill, "distill", client, output, data, options)
    output.show(student, [*rows_of(student), *_comparison(student)])


@click.command()
@click.argument("table", default="-", type=INPUT_OR_STDIN)
@click.option("--run-id", help="Run to predict with.")
@click.option("--model-id", help="Saved model to predict with.")
@click.option("--intervals", is_flag=True, help="Low and high around each value, of a regression with them.")
@click.option("-o", "--output", "target", default="-", type=OUTPUT, help="File to write; stdout by default.")
@click.option("--input-format", type=table_format, help="By TABLE's ending by default; csv from stdin.")
@click.option("--output-format", type=table_format, help="By the output's ending by default; else as TABLE.")
@connected
def predict(
    client: Client,
    output: Output,
    table: Path,
    run_id: str | None,
    model_id: str | None,
    intervals: bool,
    target: Path,
    input_format: str | None,
    output_format: str | None,
) -> None:
    """Predict the rows of a table.

    TABLE is a CSV, Parquet or Arrow file; stdin by default. The answer is a table with a prediction for each
    row, in order, and in classification the probability of each class.
    """
    if (run_id is None) == (model_id is None):
        raise click.UsageError("Give one of --run-id and --model-id.")
    sent = input_format or _format_of(table, "csv")
    wanted = "json" if output.as_json else output_format or _format_of(target, sent)
    content = sys.stdin.buffer.read() if table == Path("-") else table
    answer = client.predict_table(
        content,
        MEDIA_TYPES[sent],
        answer_as=MEDIA_TYPES[wanted],
        run_id=run_id,
        model_id=model_id,
        intervals=intervals,
    )
    output.warn(answer.warnings)
    write_file(target, answer.content)


def request_of(client: Client, data: Path | None, options: dict[str, object]) -> dict[str, Any]:
    """The fields of a request; a file of its own is uploaded."""
    fields = given(options)
    if (data is not None) + ("dataset_id" in fields) + ("data_path" in fields) != 1:
        raise click.UsageError("Give one of DATA, --dataset-id and --data-path.")
    if "model_id" in fields:
        fields["save_model"] = True
    if data is not None:
        fields["dataset_id"] = client.datasets.upload(data).dataset_id
    return fields


def write_file(target: Path, content: bytes) -> None:
    """Writes a file whole or not at all; ``-`` is stdout."""
    if target == Path("-"):
        sys.stdout.buffer.write(content)
        return
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _format_of(path: Path, otherwise: str) -> str:
    if path == Path("-"):
        return otherwise
    if path.suffix.lower() not in _BY_ENDING:
        raise click.UsageError(f"The format of {path.name} must be named: --input-format or --output-format.")
    return _BY_ENDING[path.suffix.lower()]


def _job(
    run: Callable[..., Any],
    title: str,
    client: Client,
    output: Output,
    data: Path | None,
    options: dict[str, object],
) -> Any:  # noqa: ANN401  # what run returns
    fields = request_of(client, data, options)
    with _progress(title, output) as progress:
        result = run(progress=progress, **fields)
    output.warn(result.warnings)
    return result


@contextlib.contextmanager
def _progress(title: str, output: Output) -> Iterator[Progress | None]:
    if not output.err.is_terminal:
        yield None
        return
    with ProgressBar(title, output.err) as bar:
        yield bar


def rows_of(trained: Trained) -> list[tuple[str, object]]:
    saved = [] if trained.model_id is None else [("model", trained.model_id)]
    rows = trained.rows
    return [
        ("run", trained.run_id),
        ("expires", trained.expires_at),
        *saved,
        ("rows", f"{rows.train:,} to train, {rows.validation:,} to validate, {rows.test:,} to test"),
        ("epochs", trained.epochs_run),
        ("seconds", trained.timings_s.get("total")),
        ("device", trained.device),
        *_members(trained),
        *metric_rows(trained.metrics),
    ]


def _members(trained: Trained) -> list[tuple[str, object]]:
    """How an ensemble is made up, or which model of a sweep was kept."""
    kept = [member for member in trained.members if member.kept]
    if len(kept) != 1:
        return [("members", len(kept))] if kept else []
    settings = f"learning_rate {kept[0].learning_rate:g}, dropout {kept[0].dropout:g}"
    return [("kept", f"{settings}, of {len(trained.members)} models")]


def _comparison(student: Distilled) -> list[tuple[str, object]]:
    teacher = student.teacher_metrics
    return [
        (f"teacher's {teacher.test_metric_name}", teacher.test_metric_value),
        ("fidelity", student.fidelity),
        ("parameters", f"{student.student_param_count:,}, {student.param_saved_percent:.0f} % fewer"),
        ("file", f"{student.student_model_size_bytes:,} bytes, {student.size_saved_percent:.0f} % smaller"),
    ]
