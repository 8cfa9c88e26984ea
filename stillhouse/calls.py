"""Every request of the service and how its answer is read: the one description that both clients share."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar, Unpack
from urllib.parse import quote

from pydantic import TypeAdapter

from stillhouse.answers import (
    Dataset,
    Distilled,
    ErrorEntry,
    ErrorList,
    Health,
    Limits,
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

if TYPE_CHECKING:
    import pandas as pd

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
EVENTS: Final = "text/event-stream"
CSV: Final = "text/csv"
PARQUET: Final = "application/vnd.apache.parquet"
ARROW: Final = "application/vnd.apache.arrow.stream"

FrameFormat = Literal["parquet", "arrow"]
ExportFormat = Literal["safetensors", "onnx", "torchscript"]
Content = bytes | Path
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Answer:
    """Of 2xx. ``headers`` by lower-case name."""

    content: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """One request.

    Attributes:
        content: Sent as it is; a file is read anew for each attempt.
        creates: Sent with an idempotency key, so that a repeated attempt creates nothing twice.
        progress: Where it is set, the answer is asked for as a stream of events.
        works: The answer comes when work of unknown length is done.
        also_reads: A status beside 2xx whose body is an answer and no error.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    read: Callable[[Answer], Result]
    params: Mapping[str, str | int] = field(default_factory=dict)
    content: Content | None = None
    media_type: str | None = None
    accept: str = JSON
    creates: bool = False
    progress: Progress | None = None
    works: bool = False
    also_reads: int | None = None


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
    params = {"name": name} if name else {}
    return Call(
        "POST",
        "/api/v1/datasets",
        _reader(Dataset),
        params,
        content,
        media_type or "application/octet-stream",
        creates=True,
    )


def datasets_page(limit: int = 100, cursor: str | None = None) -> Call[Page[Dataset]]:
    """Uploaded datasets, by id."""
    return _get("/api/v1/datasets", Page[Dataset], _page(limit, cursor))


def get_dataset(dataset_id: str) -> Call[Dataset]:
    """One dataset."""
    return _get(f"/api/v1/datasets/{_safe(dataset_id)}", Dataset)


def preview_dataset(dataset_id: str, rows: int = 10) -> Call[Preview]:
    """The first rows of a dataset, at most 1000."""
    return _get(f"/api/v1/datasets/{_safe(dataset_id)}/preview", Preview, {"rows": rows})


def delete_dataset(dataset_id: str) -> Call[None]:
    """Deletes a dataset; runs and models that were trained on it stay."""
    return _delete(f"/api/v1/datasets/{_safe(dataset_id)}")


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
    model = {name: value for name, value in (("run_id", run_id), ("model_id", model_id)) if value is not None}
    body = _json({"rows": list(rows), **model, **({"intervals": True} if intervals else {})})
    return Call("POST", "/api/v1/predict", _reader(Predictions), {}, body, JSON)


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
    return _get("/api/v1/runs", Page[Run], _page(limit, cursor))


def get_run(run_id: str) -> Call[RunDetails]:
    """One run, with its schema and lineage; looking does not restart its time to live."""
    return _get(f"/api/v1/runs/{_safe(run_id)}", RunDetails)


def delete_run(run_id: str) -> Call[None]:
    """Deletes a run."""
    return _delete(f"/api/v1/runs/{_safe(run_id)}")


def save_run(run_id: str, *, model_id: str | None = None, overwrite: bool = False) -> Call[Saved]:
    """Saves a run as a model, which does not expire; under a new UUID where no name is given."""
    body = _json({"overwrite": overwrite, **({} if model_id is None else {"model_id": model_id})})
    path = f"/api/v1/runs/{_safe(run_id)}/save"
    return Call("POST", path, _reader(Saved), {}, body, JSON, creates=True)


def download_run(run_id: str) -> Call[bytes]:
    """The bundle file of a run (safetensors)."""
    return Call("GET", f"/api/v1/runs/{_safe(run_id)}/bundle", _content_of, accept="*/*")


def models_page(limit: int = 100, cursor: str | None = None) -> Call[Page[Model]]:
    """Saved models, by name."""
    return _get("/api/v1/models", Page[Model], _page(limit, cursor))


def get_model(model_id: str) -> Call[ModelDetails]:
    """One model, with its schema and metrics."""
    return _get(f"/api/v1/models/{_safe(model_id)}", ModelDetails)


def delete_model(model_id: str) -> Call[None]:
    """Deletes a saved model."""
    return _delete(f"/api/v1/models/{_safe(model_id)}")


def export_model(model_id: str, format: ExportFormat = "safetensors") -> Call[bytes]:  # noqa: A002
    """A saved model as a file: safetensors as it is stored, ONNX or TorchScript."""
    path = f"/api/v1/models/{_safe(model_id)}/export"
    return Call("GET", path, _content_of, {"format": format}, accept="*/*", works=True)


# ── The service ─────────────────────────────────────────────────────────────────────────────────────────────


def limits() -> Call[Limits]:
    """What one request may ask, and how busy the trainers are."""
    return _get("/api/v1/limits", Limits)


def errors() -> Call[tuple[ErrorEntry, ...]]:
    """The service's catalogue of errors."""
    read = _reader(ErrorList)
    return Call("GET", "/api/v1/errors", lambda answer: read(answer).data)


def health() -> Call[Health]:
    """The state of each component, also of an unavailable service."""
    return Call("GET", "/health", _reader(Health), also_reads=503)


# ── Parts ───────────────────────────────────────────────────────────────────────────────────────────────────


def _get(path: str, kind: type[Result], params: Mapping[str, str | int] | None = None) -> Call[Result]:
    return Call("GET", path, _reader(kind), params or {})


def _delete(path: str) -> Call[None]:
    return Call("DELETE", path, lambda _: None)


def _job(
    path: str, kind: type[Result], fields: Mapping[str, object], progress: Progress | None
) -> Call[Result]:
    return Call(
        "POST",
        path,
        _reader(kind),
        {},
        _json(fields),
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
    given = (("run_id", run_id), ("model_id", model_id), ("intervals", "true" if intervals else None))
    params = {name: value for name, value in given if value is not None}
    return Call("POST", "/api/v1/predict", read, params, content, media_type, accept)


def _reader(kind: type[Result]) -> Callable[[Answer], Result]:
    def read(answer: Answer) -> Result:
        return _adapter(kind).validate_json(answer.content)  # type: ignore[arg-type, no-any-return]

    return read


@functools.cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _content_of(answer: Answer) -> bytes:
    return answer.content


def _warnings(answer: Answer) -> tuple[str, ...]:
    return tuple(json.loads(answer.headers.get("x-warnings", "[]")))


def _page(limit: int, cursor: str | None) -> dict[str, str | int]:
    return {"limit": limit} if cursor is None else {"limit": limit, "cursor": cursor}


def _safe(name: str) -> str:
    return quote(name, safe="")


def _json(value: Any) -> bytes:  # noqa: ANN401  # JSON
    return json.dumps(value, allow_nan=False).encode()


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
