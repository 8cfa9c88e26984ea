"""Rows to predict and predictions as they travel: JSON, CSV, Parquet and Arrow streams. Free of torch."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool, ValidationError, model_validator

from core.errors import MalformedBodyError, PredictionInputError, RequestError, SchemaError
from core.table import Format, read_table

Columns = Mapping[str, pa.ChunkedArray | pa.Array | Sequence[object]]

JSON: Final = "application/json"
CSV: Final = "text/csv"
PARQUET: Final = "application/vnd.apache.parquet"
ARROW: Final = "application/vnd.apache.arrow.stream"
NESTING: Final = 200  # of the JSON parser
TABLES: Final[Mapping[str, Format]] = {CSV: "csv", PARQUET: "parquet", ARROW: "arrow"}


class PredictBody(BaseModel):
    """The JSON body of a predict request: one model, and its rows by row or by column."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    run_id: Annotated[str, Field(min_length=1)] | None = None
    model_id: Annotated[str, Field(min_length=1)] | None = None
    rows: list[dict[str, JsonValue]] | None = None
    columns: dict[str, list[JsonValue]] | None = None
    intervals: StrictBool = False

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if (self.run_id is None) == (self.model_id is None):
            raise ValueError("give one of run_id and model_id")
        if (self.rows is None) == (self.columns is None):
            raise ValueError("give one of rows and columns")
        return self


@dataclass(frozen=True, slots=True)
class ModelReference:
    """Attributes:
    kind: Whether ``name`` is a run of the registry or a saved model.
    """

    kind: str
    name: str


def parse_json(body: bytes) -> object:
    """JSON as the standard has it: no NaN, no infinities, bounded depth.

    Raises:
        MalformedBodyError
    """
    try:
        return pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        if "recursion limit" in str(error):
            message = f"The body must be nested at most {NESTING} deep: flatten it and send it again."
            raise MalformedBodyError(message) from None
        reason = "NaN and Infinity are not JSON" if _is_json_but_for_numbers(body) else _position(error)
        raise MalformedBodyError(f"The body must be JSON ({reason}): correct it and send it again.") from None


def parse_predict_body(body: bytes, run_id: str | None = None, model_id: str | None = None) -> PredictBody:
    """The body, with the model that the query names where it does.

    Raises:
        MalformedBodyError
        SchemaError: also if body and query differ.
    """
    fields = parse_json(body)
    if isinstance(fields, dict):
        fields = _with_query(fields, {"run_id": run_id, "model_id": model_id})
    try:
        return PredictBody.model_validate(fields)
    except ValidationError as error:
        raise schema_error(error) from None


def _with_query(fields: dict[str, object], query: Mapping[str, str | None]) -> dict[str, object]:
    in_query = {name: value for name, value in query.items() if value is not None}
    in_body = {name: fields[name] for name in query if fields.get(name) is not None}
    if in_query and in_body and in_query != in_body:
        message = "Body and query must name the same run or model: leave it out of one of them."
        violation = {"type": "value_error", "loc": ("query", next(iter(in_query))), "msg": message}
        raise SchemaError(message, violations=[violation])
    return fields | in_query


def schema_error(error: ValidationError) -> SchemaError:
    violations = [
        {"type": item["type"], "loc": ("body", *item["loc"]), "msg": item["msg"], "input": item["input"]}
        for item in error.errors(include_url=False, include_context=False)
    ]
    return SchemaError("The request does not fit the schema of the route.", violations=violations)


def reference(run_id: str | None, model_id: str | None) -> ModelReference:
    """Raises SchemaError unless exactly one is given."""
    if (run_id is None) == (model_id is None):
        violation = {"type": "missing", "loc": ("query", "run_id"), "msg": "give one of run_id and model_id"}
        raise SchemaError("Give one of run_id and model_id.", violations=[violation])
    return (
        ModelReference("run_id", run_id) if run_id is not None else ModelReference("model_id", str(model_id))
    )


def columns_of(body: PredictBody, needed: Sequence[str]) -> Columns:
    """The needed columns as lists.

    Raises:
        PredictionInputError: if a row lacks a column, or columns differ in length.
    """
    if body.rows is None:
        columns = {name: values for name, values in (body.columns or {}).items() if name in set(needed)}
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            raise PredictionInputError(
                f"All columns must have the same number of values, got {lengths!r:.40}."
            )
        return columns
    if not body.rows:
        return {name: [] for name in needed}
    present = [name for name in needed if name in body.rows[0]]
    try:
        return {name: [row[name] for row in body.rows] for name in present}
    except KeyError as error:
        index = next(i for i, row in enumerate(body.rows) if error.args[0] not in row)
        raise PredictionInputError(
            f"Row {index} lacks column {error.args[0]!r:.30}: send null where a value is unknown.",
            row=index,
            column=error.args[0],
        ) from None


def read_columns(body: memoryview, media_type: str) -> Columns:
    """Raises DatasetError if the table cannot be read."""
    buffer = pa.py_buffer(body)
    table = read_table(lambda: pa.BufferReader(buffer), TABLES[media_type])
    return dict(zip(table.column_names, table.columns, strict=True))


def choose_media_type(accept: str | None, sent: str) -> str:
    """The first type of ``Accept`` that predictions can be written in; the sent one where any will do.

    Raises:
        RequestError: if none of the accepted types can be written.
    """
    accepted = [part.partition(";")[0].strip().lower() for part in (accept or "*/*").split(",")]
    for media_type in accepted:
        if media_type in ("*/*", "application/*", "application/problem+json"):
            return sent
        if media_type == JSON or media_type in TABLES:
            return media_type
    raise RequestError(
        f"Accept must name {JSON} or a table that /docs lists, got {accept!r:.36}.", allowed=[JSON, *TABLES]
    )


def write_predictions(
    values: Sequence[object] | np.ndarray,
    classes: Sequence[object] | None,
    probabilities_NC: np.ndarray | None,
    warnings: Sequence[str],
    media_type: str,
    intervals_N2: np.ndarray | None = None,
) -> bytes | memoryview:
    """Predictions in input order.

    Tables have the columns ``prediction``, in classification ``probability_<class>`` for each class, and with
    intervals ``low`` and ``high``. JSON has ``intervals`` only where there are some.
    """
    if media_type == JSON:
        probabilities = None if probabilities_NC is None else probabilities_NC.tolist()
        answer: dict[str, object] = {
            "predictions": values,
            "classes": classes,
            "probabilities": probabilities,
            "warnings": warnings,
        }
        if intervals_N2 is not None:
            answer["intervals"] = intervals_N2.tolist()
        return pydantic_core.to_json(answer)
    table = _prediction_table(values, classes, probabilities_NC)
    if intervals_N2 is not None:
        low_high = (np.ascontiguousarray(side) for side in intervals_N2.T)
        for name, side in zip(("low", "high"), low_high, strict=True):
            table = table.append_column(name, pa.array(side))
    sink = pa.BufferOutputStream()
    if media_type == CSV:
        pyarrow.csv.write_csv(table, sink)
    elif media_type == PARQUET:
        pyarrow.parquet.write_table(table, sink)
    else:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return memoryview(sink.getvalue())


def write_arrow(table: pa.Table) -> bytes:
    """An Arrow stream, for tests and clients."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _prediction_table(
    values: Sequence[object] | np.ndarray,
    classes: Sequence[object] | None,
    probabilities_NC: np.ndarray | None,
) -> pa.Table:
    columns: dict[str, object] = {"prediction": values}
    if probabilities_NC is not None and classes is not None:
        contiguous = np.ascontiguousarray(probabilities_NC.T)
        columns |= {f"probability_{label}": contiguous[index] for index, label in enumerate(classes)}
    return pa.table(columns)


def _is_json_but_for_numbers(body: bytes) -> bool:
    try:
        pydantic_core.from_json(body, allow_inf_nan=True)
    except ValueError:
        return False
    return True


def _position(error: ValueError) -> str:
    text = str(error)
    return text[text.index(" at line") + 1 :] if " at line" in text else "not readable"
