"""Datasets: upload, list, look at, delete."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Annotated, TypeVar

import pyarrow as pa
from fastapi import APIRouter, Path, Query, Request
from starlette.responses import JSONResponse, Response

from core.datasets import Dataset
from core.errors import (
    DatasetError,
    DatasetNotFoundError,
    DatasetTooLargeError,
    RequestError,
    SchemaError,
    StorageError,
)
from core.table import format_of
from deployments.routes.examples import EXAMPLE_CSV, EXAMPLE_NAME
from deployments.routes.failures import CREATING, failures
from deployments.routes.paging import Cursor, Limit, page_of
from deployments.routes.uploads import open_file_part, write_in_blocks
from deployments.service import Service

Result = TypeVar("Result")
DatasetId = Annotated[str, Path(max_length=200)]

_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "text/csv": {"schema": {"type": "string"}, "example": EXAMPLE_CSV},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}
_UPLOADED = {
    200: {"description": "The same content was there already", "content": {"application/json": {}}},
    **failures(*CREATING, DatasetError, DatasetTooLargeError, SchemaError, StorageError),
}
_ONE = failures(DatasetNotFoundError, SchemaError, StorageError)


def dataset_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/datasets", tags=["datasets"])
    catalogue = service.datasets

    @router.post("", status_code=201, openapi_extra=_UPLOAD, responses=_UPLOADED)
    async def upload(
        request: Request,
        name: Annotated[str | None, Query(max_length=255, examples=[EXAMPLE_NAME])] = None,
    ) -> Response:
        """Uploads a table: multipart ``file``, or the raw body with a media type and ``?name=``.

        CSV, TSV, Parquet, Arrow, JSON Lines and XLSX. The same content again gives the same id and 200.
        """
        media_type = request.headers.get("content-type", "")
        if media_type.startswith("multipart/"):
            file = await open_file_part(request.stream(), media_type)
            return await store(file.chunks, name or file.filename, file.media_type)
        return await store(request.stream(), name, media_type)

    async def store(chunks: AsyncIterator[bytes], name: str | None, media_type: str) -> Response:
        table_format = format_of(name, media_type.partition(";")[0].strip().lower() or None)
        incoming, receiving = catalogue.incoming(), ExitStack()

        def file() -> tuple[Dataset, bool]:
            receiving.close()  # sends the last part
            return catalogue.add(incoming, table_format, name)

        try:
            await _in_thread(lambda: receiving.enter_context(incoming))
            await write_in_blocks(chunks, incoming.write)
        except BaseException as error:
            raised = type(error), error, error.__traceback__
            await _in_thread(lambda: receiving.__exit__(*raised))
            raise
        dataset, is_new = await _in_thread(file)
        return JSONResponse(dataset.to_dict(), 201 if is_new else 200)

    @router.get("", responses=failures(RequestError, SchemaError, StorageError))
    def list_datasets(limit: Limit = 20, cursor: Cursor = None) -> dict[str, object]:
        """A page of datasets."""
        return page_of(catalogue.page(limit, cursor), Dataset.to_dict)

    @router.get("/{dataset_id}", responses=_ONE)
    def get_dataset(dataset_id: DatasetId) -> dict[str, object]:
        return catalogue.get(dataset_id).to_dict()

    @router.get("/{dataset_id}/preview", responses=_ONE)
    def preview_dataset(
        dataset_id: DatasetId, rows: Annotated[int, Query(ge=1, le=1000)] = 10
    ) -> dict[str, object]:
        """The first rows."""
        table = catalogue.preview(dataset_id, rows)
        return {"columns": table.column_names, "rows": _rows(table)}

    @router.delete("/{dataset_id}", status_code=204, response_class=Response, responses=_ONE)
    def delete_dataset(dataset_id: DatasetId) -> None:
        catalogue.delete(dataset_id)

    return router


async def _in_thread(work: Callable[[], Result]) -> Result:
    """Runs work to its end beside the loop, though its waiter be cancelled meanwhile."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    finally:
        await asyncio.wait([working])


def _rows(table: pa.Table) -> list[list[object]]:
    columns = [_values(column) for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def _values(column: pa.ChunkedArray) -> list[object]:
    """Python values; dates outside of the years 1 to 9999 are shown as the numbers they are."""
    try:
        return list(column.to_pylist())
    except (OverflowError, ValueError):
        return list(column.cast(pa.int64()).to_pylist())
