"""Runs of the registry and saved models."""

import uuid
from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from core.bundles import Bundle
from core.contract.fields import MODEL_ID
from core.errors import (
    BundleError,
    ModelExistsError,
    ModelNotFoundError,
    RequestError,
    RunNotFoundError,
    SchemaError,
    ServiceUnavailableError,
    StorageError,
)
from core.exchange import parse_json, schema_error
from core.registry_index import RunEntry
from core.saved_models import SavedModel
from deployments.routes.examples import EXAMPLE_MODEL
from deployments.routes.failures import CREATING, Responses, failures
from deployments.routes.paging import Cursor, Limit, page_of
from deployments.service import Service

BUNDLE = "application/vnd.safetensors"
RunId = Annotated[str, Path(max_length=200)]
ModelId = Annotated[str, Path(max_length=200, examples=[EXAMPLE_MODEL])]
Format = Literal["safetensors", "onnx", "torchscript"]


class SaveBody(BaseModel):
    """Under which name to save; a UUID where none is given."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model_id: Annotated[str, Field(pattern=f"^{MODEL_ID.pattern}$")] | None = None
    overwrite: bool = False


_SAVE = {"requestBody": {"content": {"application/json": {"schema": SaveBody.model_json_schema()}}}}

_RUN_ERRORS = (RunNotFoundError, SchemaError, StorageError, ServiceUnavailableError)
_RUN = failures(*_RUN_ERRORS)
_MODEL_ERRORS = (ModelNotFoundError, SchemaError, StorageError)


def _file(*media_types: str) -> Responses:
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"description": "The file", "content": dict.fromkeys(media_types, binary)}}


def run_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/runs", tags=["runs"])

    @router.get("", responses=failures(RequestError, SchemaError, ServiceUnavailableError))
    async def list_runs(limit: Limit = 20, cursor: Cursor = None) -> dict[str, object]:
        """A page of live runs, newest first."""
        return page_of(await service.list_runs(limit, cursor), run_summary)

    @router.get("/{run_id}", responses=_RUN)
    async def get_run(run_id: RunId) -> dict[str, object]:
        entry = await service.get_run(run_id)
        return {**run_summary(entry), "schema": entry.schema, "lineage": entry.lineage}

    @router.delete("/{run_id}", status_code=204, response_class=Response, responses=_RUN)
    async def delete_run(run_id: RunId) -> None:
        await service.delete_run(run_id)

    @router.post(
        "/{run_id}/save",
        status_code=201,
        openapi_extra=_SAVE,
        responses=failures(*_RUN_ERRORS, *CREATING, ModelExistsError),
    )
    async def save_run(run_id: RunId, request: Request) -> dict[str, object]:
        """Saves a run as a model, which does not expire; the body is optional JSON."""
        wanted = _save_body(await request.body())
        model_id = wanted.model_id or str(uuid.uuid4())
        path = await service.save_run(run_id, model_id, wanted.overwrite)
        return {"model_id": model_id, "model_path": path}

    @router.get("/{run_id}/bundle", responses=_file(BUNDLE) | _RUN, response_class=Response)
    async def download_bundle(run_id: RunId) -> Response:
        """The bundle file (safetensors)."""
        return download(await service.read_bundle(run_id), f"{run_id}.safetensors", BUNDLE)

    return router


def model_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/models", tags=["models"])
    models = service.models

    @router.get("", responses=failures(RequestError, SchemaError, StorageError))
    def list_models(limit: Limit = 20, cursor: Cursor = None) -> dict[str, object]:
        """A page of saved models, by name."""
        return page_of(models.page(limit, cursor), model_summary)

    @router.get("/{model_id}", responses=failures(*_MODEL_ERRORS, BundleError))
    def get_model(model_id: ModelId) -> JSONResponse:
        model = models.get(model_id)
        header = model.header
        details = {
            name: header[name] for name in ("schema", "metrics", "lineage", "settings", "architecture")
        }
        return JSONResponse(model_summary(model) | details)

    @router.delete(
        "/{model_id}", status_code=204, response_class=Response, responses=failures(*_MODEL_ERRORS)
    )
    def delete_model(model_id: ModelId) -> None:
        models.delete(model_id)

    @router.get(
        "/{model_id}/export",
        responses=_file(BUNDLE, "application/octet-stream")
        | failures(*_MODEL_ERRORS, BundleError, ServiceUnavailableError),
        response_class=Response,
    )
    async def export_model(model_id: ModelId, format: Annotated[Format, Query()] = "safetensors") -> Response:  # noqa: A002
        """The model as a file: safetensors as it is stored, ONNX or TorchScript."""
        if format == "safetensors":
            file = await run_in_threadpool(lambda: _checked(models.read(model_id)))
            return download(file, f"{model_id}.safetensors", BUNDLE)
        ending = "onnx" if format == "onnx" else "pt"
        data = await service.export_model(model_id, format)
        return download(data, f"{model_id}.{ending}", "application/octet-stream")

    return router


def _save_body(body: bytes) -> SaveBody:
    """Raises MalformedBodyError or SchemaError."""
    try:
        return SaveBody.model_validate(parse_json(body) if body else {})
    except ValidationError as error:
        raise schema_error(error) from None


def _checked(file: bytes) -> bytes:
    """The file; raises BundleError if it is damaged."""
    Bundle.from_bytes(file)
    return file


def run_summary(entry: RunEntry) -> dict[str, object]:
    return {
        "run_id": entry.run_id,
        "kind": entry.kind,
        "task": entry.task,
        "training_mode": entry.training_mode,
        "metric": {"name": entry.metric_name, "value": entry.metric_value},
        "bytes": entry.size_bytes,
        "created_at": iso(entry.created_at),
        "expires_at": iso(entry.expires_at),
    }


def model_summary(model: SavedModel) -> dict[str, object]:
    metrics = model.header["metrics"]
    assert isinstance(metrics, dict)  # noqa: S101  # the bundle's own header
    return {
        "model_id": model.model_id,
        "task": model.header["task"],
        "training_mode": model.header["training_mode"],
        "metric": {"name": metrics.get("test_metric_name"), "value": metrics.get("test_metric_value")},
        "bytes": model.size_bytes,
        "created_at": iso(model.created_at.timestamp()),
    }


def iso(seconds: float) -> str:
    """Unix seconds as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def download(data: bytes | memoryview, name: str, media_type: str) -> Response:
    return Response(
        bytes(data), media_type=media_type, headers={"Content-Disposition": f'attachment; filename="{name}"'}
    )
