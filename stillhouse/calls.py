"""Every request about tables, trainings, predictions, runs and models: what both clients share."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, Unpack

from stillhouse.answers import (
    Dataset,
    Distilled,
    ErrorEntry,
    Health,
    Limits,
    Listed,
    Model,
    ModelDetails,
    Page,
    PredictedTable,
    Predictions,
    Preview,
    Run,
    RunDetails,
    Saved,
    Trained,
)
from stillhouse.events import Progress
from stillhouse.fields import DistillFields, TrainFields
from stillhouse.requests import (
    ARROW,
    CSV,
    EVENTS,
    JSON,
    PARQUET,
    Answer,
    Call,
    Content,
    delete,
    get,
    get_listed,
    given,
    json_of,
    page_of,
    quoted,
    reader,
)

if TYPE_CHECKING:
    import pandas as pd

FrameFormat = Literal["parquet", "arrow"]
ExportFormat = Literal["safetensors", "onnx", "torchscript"]
Result = TypeVar("Result")


# ── Datasets ────────────────────────────────────────────────────────────────────────────────────────────────


def upload_dataset(
    table: "str | Path | bytes | pd.DataFrame",
    *,
    name: str | None = None,
    frame_format: FrameFormat = "parquet",
) -> Call[Dataset]:
    """Uploads a table: the path of a file, the bytes of one, or a pandas DataFrame.

    Args:
        name: Its ending tells the format (``.csv``, ``.parquet``, ``.xlsx`` …), so bytes need it.
        frame_format: How a DataFrame is sent; its index is not.
    """
    if isinstance(table, str | Path):
        content: Content = Path(table)
        name = name or Path(table).name
        media_type = None
    elif isinstance(table, bytes):
        content, media_type = table, None
    else:
        content = _arrow_of(table) if frame_format == "arrow" else _parquet_of(table)
        media_type = ARROW if frame_format == "arrow" else PARQUET
    params = given(name=name or None)
    return Call(
        "POST",
        "/api/v1/datasets",
        reader(Dataset),
        params,
        content,
        media_type or "application/octet-stream",
        creates=True,
    )


def datasets_page(limit: int = 100, cursor: str | None = None) -> Call[Page[Dataset]]:
    """Uploaded datasets, by id."""
    return get("/api/v1/datasets", Page[Dataset], page_of(limit, cursor))


def get_dataset(dataset_id: str) -> Call[Dataset]:
    """One dataset."""
    return get(f"/api/v1/datasets/{quoted(dataset_id)}", Dataset)


def preview_dataset(dataset_id: str, rows: int = 10) -> Call[Preview]:
    """The first rows of a dataset, at most 1000."""
    return get(f"/api/v1/datasets/{quoted(dataset_id)}/preview", Preview, {"rows": rows})


def delete_dataset(dataset_id: str) -> Call[None]:
    """Deletes a dataset; runs and models that were trained on it stay."""
    return delete(f"/api/v1/datasets/{quoted(dataset_id)}")


# ── Jobs ────────────────────────────────────────────────────────────────────────────────────────────────────


def train(*, progress: Progress | None = None, **fields: Unpack[TrainFields]) -> Call[Trained]:
    """Trains a model on a table and keeps it as a run.

    Args:
        progress: Called with each epoch's report as it comes.
    """
    return _job("/api/v1/train", Trained, fields, progress)


def distill(*, progress: Progress | None = None, **fields: Unpack[DistillFields]) -> Call[Distilled]:
    """Trains a student on a table and on a teacher's outputs; as ``train``."""
    return _job("/api/v1/distill", Distilled, fields, progress)


# ── Predictions ─────────────────────────────────────────────────────────────────────────────────────────────


def predict(
    frame: "pd.DataFrame",
    *,
    run_id: str | None = None,
    model_id: str | None = None,
    intervals: bool = False,
) -> "Call[pd.DataFrame]":
    """Predicts a DataFrame's rows; sent and answered as Arrow.

    Returns:
        A DataFrame of the same index with ``prediction``, in classification ``probability_<class>`` for each
        class, and with intervals ``low`` and ``high``; its ``attrs["warnings"]`` say what there is to say
        besides.
    """

    def read(answer: Answer) -> "pd.DataFrame":
        predicted = _frame_of(answer.content)
        predicted.index = frame.index
        predicted.attrs["warnings"] = list(_warnings(answer))
        return predicted

    if not hasattr(frame, "columns"):
        given = type(frame).__name__
        raise TypeError(f"predict takes a DataFrame, got {given}: use predict_rows or predict_table.")
    return _predict(read, _arrow_of(frame), ARROW, ARROW, run_id, model_id, intervals)


def predict_rows(
    rows: Sequence[Mapping[str, object]],
    *,
    run_id: str | None = None,
    model_id: str | None = None,
    intervals: bool = False,
) -> Call[Predictions]:
    """Predicts rows given as dictionaries of JSON values."""
    model = given(run_id=run_id, model_id=model_id, intervals=True if intervals else None)
    body = json_of({"rows": list(rows), **model})
    return Call("POST", "/api/v1/predict", reader(Predictions), {}, body, JSON)


def predict_table(
    content: Content,
    media_type: str = CSV,
    *,
    answer_as: str | None = None,
    run_id: str | None = None,
    model_id: str | None = None,
    intervals: bool = False,
) -> Call[PredictedTable]:
    """Predicts the rows of a CSV, Parquet or Arrow file.

    Args:
        media_type, answer_as: Of what is sent and of what is wanted; the latter is the former by default, and
            may be ``application/json``.
    """
    wanted = answer_as or media_type

    def read(answer: Answer) -> PredictedTable:
        return PredictedTable(answer.content, wanted, _warnings(answer))

    return _predict(read, content, media_type, wanted, run_id, model_id, intervals)


# ── Runs and models ─────────────────────────────────────────────────────────────────────────────────────────


def runs_page(limit: int = 100, cursor: str | None = None) -> Call[Page[Run]]:
    """Live runs, newest first."""
    return get("/api/v1/runs", Page[Run], page_of(limit, cursor))


def get_run(run_id: str) -> Call[RunDetails]:
    """One run, with its schema and lineage; looking does not restart its time to live."""
    return get(f"/api/v1/runs/{quoted(run_id)}", RunDetails)


def delete_run(run_id: str) -> Call[None]:
    """Deletes a run."""
    return delete(f"/api/v1/runs/{quoted(run_id)}")


def save_run(run_id: str, *, model_id: str | None = None, overwrite: bool = False) -> Call[Saved]:
    """Saves a run as a model, which does not expire; under a new UUID where no name is given."""
    body = json_of({"overwrite": overwrite, **given(model_id=model_id)})
    path = f"/api/v1/runs/{quoted(run_id)}/save"
    return Call("POST", path, reader(Saved), {}, body, JSON, creates=True)


def download_run(run_id: str) -> Call[bytes]:
    """The bundle file of a run (safetensors)."""
    return Call("GET", f"/api/v1/runs/{quoted(run_id)}/bundle", _content_of, accept="*/*")


def models_page(limit: int = 100, cursor: str | None = None) -> Call[Page[Model]]:
    """Saved models, by name."""
    return get("/api/v1/models", Page[Model], page_of(limit, cursor))


def get_model(model_id: str) -> Call[ModelDetails]:
    """One model, with its schema and metrics."""
    return get(f"/api/v1/models/{quoted(model_id)}", ModelDetails)


def delete_model(model_id: str) -> Call[None]:
    """Deletes a saved model."""
    return delete(f"/api/v1/models/{quoted(model_id)}")


def export_model(model_id: str, format: ExportFormat = "safetensors") -> Call[bytes]:  # noqa: A002
    """A saved model as a file: safetensors as it is stored, ONNX or TorchScript."""
    path = f"/api/v1/models/{quoted(model_id)}/export"
    return Call("GET", path, _content_of, {"format": format}, accept="*/*", works=True)


# ── The service ─────────────────────────────────────────────────────────────────────────────────────────────


def limits() -> Call[Limits]:
    """What one request may ask, and how busy the trainers are."""
    return get("/api/v1/limits", Limits)


def errors() -> Call[tuple[ErrorEntry, ...]]:
    """The service's catalogue of errors."""
    return get_listed("/api/v1/errors", Listed[ErrorEntry])


def health() -> Call[Health]:
    """The state of each component, also of an unavailable service."""
    return Call("GET", "/health", reader(Health), also_reads=503)


# ── Parts ───────────────────────────────────────────────────────────────────────────────────────────────────


def _job(
    path: str, kind: type[Result], fields: Mapping[str, object], progress: Progress | None
) -> Call[Result]:
    return Call(
        "POST",
        path,
        reader(kind),
        {},
        json_of(fields),
        JSON,
        accept=JSON if progress is None else EVENTS,
        creates=True,
        progress=progress,
        works=True,
    )


def _predict(
    read: Callable[[Answer], Result],
    content: Content,
    media_type: str,
    accept: str,
    run_id: str | None,
    model_id: str | None,
    intervals: bool,
) -> Call[Result]:
    params = given(run_id=run_id, model_id=model_id, intervals="true" if intervals else None)
    return Call("POST", "/api/v1/predict", read, params, content, media_type, accept)


def _content_of(answer: Answer) -> bytes:
    return answer.content


def _warnings(answer: Answer) -> tuple[str, ...]:
    return tuple(json.loads(answer.headers.get("x-warnings", "[]")))


def _arrow_of(frame: "pd.DataFrame") -> bytes:
    import pyarrow as pa

    table, sink = pa.Table.from_pandas(frame, preserve_index=False), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _parquet_of(frame: "pd.DataFrame") -> bytes:
    import pyarrow as pa
    import pyarrow.parquet

    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.Table.from_pandas(frame, preserve_index=False), sink)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _frame_of(content: bytes) -> "pd.DataFrame":
    import pyarrow as pa

    frame: pd.DataFrame = pa.ipc.open_stream(content).read_all().to_pandas()
    return frame
