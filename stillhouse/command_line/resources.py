"""``runs``, ``models``, ``datasets`` and ``errors``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from stillhouse.answers import ErrorEntry
from stillhouse.calls import ExportFormat
from stillhouse.client import Client
from stillhouse.command_line.jobs import write_file
from stillhouse.command_line.options import INPUT, OUTPUT, connected
from stillhouse.command_line.output import Output

to_file = click.option(
    "-o", "--output", "target", required=True, type=OUTPUT, help="File to write; - is stdout."
)


class Listing(click.Group):
    """A group that lists when no command of it is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not set(args) & {*self.commands, "--help"}:
            args = ["list", *args]
        return super().parse_args(ctx, args)


# ── Runs ────────────────────────────────────────────────────────────────────────────────────────────────────


@click.group(cls=Listing)
def runs() -> None:
    """Live runs: list, show, save, download, delete."""


@runs.command("list")
@connected
def list_runs(client: Client, output: Output) -> None:
    """List live runs, newest first."""
    columns = {
        "run": lambda run: run.run_id,
        "kind": lambda run: run.kind,
        "mode": lambda run: run.training_mode,
        "metric": lambda run: run.metric.name,
        "value": lambda run: run.metric.value,
        "bytes": lambda run: run.bytes,
        "expires": lambda run: run.expires_at,
    }
    output.show_all(list(client.runs.list()), columns)


@runs.command("show")
@click.argument("run_id")
@connected
def show_run(client: Client, output: Output, run_id: str) -> None:
    """Show a run with its schema."""
    run = client.runs.get(run_id)
    rows = [
        ("run", run.run_id),
        ("kind", run.kind),
        ("task", run.task),
        ("mode", run.training_mode),
        (str(run.metric.name), run.metric.value),
        ("bytes", run.bytes),
        ("created", run.created_at),
        ("expires", run.expires_at),
        ("teacher", run.lineage.get("teacher")),
        *schema_rows(run.schema),
    ]
    output.show(run, rows)


@runs.command("save")
@click.argument("run_id")
@click.option("--model-id", help="Name of the model; a UUID by default.")
@click.option("--overwrite", is_flag=True, help="Replace a model of that name.")
@connected
def save_run(client: Client, output: Output, run_id: str, model_id: str | None, overwrite: bool) -> None:
    """Save a run as a model, which does not expire."""
    saved = client.runs.save(run_id, model_id=model_id, overwrite=overwrite)
    output.show(saved, [("model", saved.model_id), ("path", saved.model_path)])


@runs.command("download")
@click.argument("run_id")
@to_file
@connected
def download_run(client: Client, output: Output, run_id: str, target: Path) -> None:
    """Write the bundle of a run to a file (safetensors)."""
    deliver(output, target, client.runs.download(run_id))


@runs.command("delete")
@click.argument("run_id")
@connected
def delete_run(client: Client, output: Output, run_id: str) -> None:
    """Delete a run."""
    client.runs.delete(run_id)
    output.show({"deleted": run_id}, [("deleted", run_id)])


# ── Models ──────────────────────────────────────────────────────────────────────────────────────────────────


@click.group(cls=Listing)
def models() -> None:
    """Saved models: list, show, export, delete."""


@models.command("list")
@connected
def list_models(client: Client, output: Output) -> None:
    """List saved models by name."""
    columns = {
        "model": lambda model: model.model_id,
        "task": lambda model: model.task,
        "mode": lambda model: model.training_mode,
        "metric": lambda model: model.metric.name,
        "value": lambda model: model.metric.value,
        "bytes": lambda model: model.bytes,
        "created": lambda model: model.created_at,
    }
    output.show_all(list(client.models.list()), columns)


@models.command("show")
@click.argument("model_id")
@connected
def show_model(client: Client, output: Output, model_id: str) -> None:
    """Show a model with its schema."""
    model = client.models.get(model_id)
    rows = [
        ("model", model.model_id),
        ("task", model.task),
        ("mode", model.training_mode),
        (str(model.metric.name), model.metric.value),
        ("bytes", model.bytes),
        ("created", model.created_at),
        ("teacher", model.lineage.get("teacher")),
        *schema_rows(model.schema),
    ]
    output.show(model, rows)


@models.command("export")
@click.argument("model_id")
@click.option("--format", "kind", type=click.Choice(get_args(ExportFormat)), default="safetensors", show_default=True, help="Of the file.")  # fmt: skip  # noqa: E501
@to_file
@connected
def export_model(client: Client, output: Output, model_id: str, kind: ExportFormat, target: Path) -> None:
    """Write a model to a file, as it is stored or as ONNX or TorchScript."""
    deliver(output, target, client.models.export(model_id, kind))


@models.command("delete")
@click.argument("model_id")
@connected
def delete_model(client: Client, output: Output, model_id: str) -> None:
    """Delete a saved model."""
    client.models.delete(model_id)
    output.show({"deleted": model_id}, [("deleted", model_id)])


# ── Datasets ────────────────────────────────────────────────────────────────────────────────────────────────


@click.group(cls=Listing)
def datasets() -> None:
    """Tables: list, upload, show, preview, delete."""


@datasets.command("list")
@connected
def list_datasets(client: Client, output: Output) -> None:
    """List datasets by id."""
    columns = {
        "dataset": lambda dataset: dataset.dataset_id,
        "name": lambda dataset: dataset.name,
        "rows": lambda dataset: dataset.rows,
        "columns": lambda dataset: len(dataset.columns),
        "bytes": lambda dataset: dataset.bytes,
        "created": lambda dataset: dataset.created_at,
    }
    output.show_all(list(client.datasets.list()), columns)


@datasets.command("upload")
@click.argument("data", type=INPUT)
@click.option("--name", help="Its ending tells the format; the file's own name by default.")
@connected
def upload_dataset(client: Client, output: Output, data: Path, name: str | None) -> None:
    """Upload a table; the same content has the same id."""
    show_dataset_fields(output, client.datasets.upload(data, name=name))


@datasets.command("show")
@click.argument("dataset_id")
@connected
def show_dataset(client: Client, output: Output, dataset_id: str) -> None:
    """Show a dataset with its columns."""
    show_dataset_fields(output, client.datasets.get(dataset_id))


@datasets.command("preview")
@click.argument("dataset_id")
@click.option("--rows", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many.")
@connected
def preview_dataset(client: Client, output: Output, dataset_id: str, rows: int) -> None:
    """Show the first rows of a dataset."""
    preview = client.datasets.preview(dataset_id, rows)
    if output.as_json:
        output.print_json(preview)
        return
    positions = dict(enumerate(preview.columns))
    columns = {name: lambda row, at=at: str(row[at]) for at, name in positions.items()}
    output.show_all(preview.rows, columns)


@datasets.command("delete")
@click.argument("dataset_id")
@connected
def delete_dataset(client: Client, output: Output, dataset_id: str) -> None:
    """Delete a dataset."""
    client.datasets.delete(dataset_id)
    output.show({"deleted": dataset_id}, [("deleted", dataset_id)])


# ── Errors ──────────────────────────────────────────────────────────────────────────────────────────────────


@click.command()
@click.argument("code", required=False)
@connected
def errors(client: Client, output: Output, code: str | None) -> None:
    """Show the catalogue of errors, or what one CODE means."""
    found = [entry for entry in client.errors() if code is None or entry.code == code.upper()]
    if not found:
        raise click.UsageError(f"There is no error code {code}: stillhouse errors lists them.")
    columns: dict[str, Callable[[ErrorEntry], object]] = {
        "code": lambda entry: entry.code,
        "type": lambda entry: entry.type,
        "retry": lambda entry: f"after {entry.retry_after_s:g} s" if entry.retry_after_s else "no",
        "what to do": lambda entry: entry.suggested_action,
    }
    if code is not None:
        columns |= {
            "message": lambda entry: entry.message,
            "status": lambda entry: entry.status,
            "severity": lambda entry: entry.severity,
        }
    if code is None or output.as_json:
        output.show_all(found, columns)
    else:
        output.show(found[0], [(name, value(found[0])) for name, value in columns.items()])


# ── Parts ───────────────────────────────────────────────────────────────────────────────────────────────────


def schema_rows(schema: Any) -> list[tuple[str, object]]:  # noqa: ANN401  # JSON
    columns = ", ".join(f"{column['name']} ({column['dtype']})" for column in schema["columns"])
    classes = [] if schema["classes"] is None else [("classes", ", ".join(map(str, schema["classes"])))]
    return [("target", schema["target"]), *classes, ("columns", columns)]


def show_dataset_fields(output: Output, dataset: Any) -> None:  # noqa: ANN401
    rows = [
        ("dataset", dataset.dataset_id),
        ("name", dataset.name),
        ("rows", dataset.rows),
        ("bytes", dataset.bytes),
        ("created", dataset.created_at),
        *(("column", f"{c.name} ({c.dtype}, {c.null_count:,} empty)") for c in dataset.columns),
    ]
    output.show(dataset, rows)


def deliver(output: Output, target: Path, content: bytes) -> None:
    write_file(target, content)
    if target != Path("-"):
        output.show({"file": str(target), "bytes": len(content)}, [("file", target), ("bytes", len(content))])
