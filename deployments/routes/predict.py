"""Predict: JSON rows or columns, or CSV, Parquet and Arrow bodies."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from core.errors import (
    BundleError,
    CircuitOpenError,
    DatasetError,
    ModelNotFoundError,
    PredictionInputError,
    RequestError,
    RunNotFoundError,
    SchemaError,
    ServiceUnavailableError,
    StorageError,
)
from core.exchange import JSON, TABLES, PredictBody
from deployments.predict_call import PredictCall, packed
from deployments.routes.examples import predict_example
from deployments.routes.failures import READING, Responses, failures
from deployments.service import Service

CURL_DEFAULT = "application/x-www-form-urlencoded"  # what ``curl -d`` says of JSON


def _json_schema() -> dict[str, object]:
    """Of the JSON body, with definitions put in place: references would lead nowhere in the documentation."""
    schema = PredictBody.model_json_schema()
    for name, definition in schema.pop("$defs", {}).items():
        schema = _replaced(schema, {"$ref": f"#/$defs/{name}"}, definition)
    return schema


def _replaced(value: Any, old: object, new: object) -> Any:  # noqa: ANN401  # any JSON value
    if value == old:
        return new
    if isinstance(value, dict):
        return {key: _replaced(child, old, new) for key, child in value.items()}
    return [_replaced(child, old, new) for child in value] if isinstance(value, list) else value


_BODIES = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {"schema": _json_schema(), "example": predict_example()},
            **{media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in TABLES},
        },
    }
}
_ANSWERS: Responses = {
    200: {
        "description": "Predictions, in the media type that Accept asks for",
        "content": {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in TABLES},
    },
    **failures(
        *READING,
        RequestError,
        DatasetError,
        RunNotFoundError,
        ModelNotFoundError,
        SchemaError,
        PredictionInputError,
        BundleError,
        StorageError,
        ServiceUnavailableError,
        CircuitOpenError,
    ),
}


def predict_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["predict"])

    @router.post("/predict", openapi_extra=_BODIES, responses=_ANSWERS)
    async def predict(
        request: Request,
        run_id: Annotated[str | None, Query(max_length=200)] = None,
        model_id: Annotated[str | None, Query(max_length=200)] = None,
        intervals: Annotated[bool, Query()] = False,
    ) -> Response:
        """Predictions in input order, for rows given as JSON or as a table in the body.

        With ``intervals`` also a low and a high for each, of a regression that was trained with ``interval``.

        Tables are answered as tables; their warnings come in the header ``X-Warnings`` as a JSON list.
        """
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type in ("", CURL_DEFAULT):
            media_type = JSON
        if media_type != JSON and media_type not in TABLES:
            raise RequestError(
                f"Content-Type must be {JSON} or a table that /docs lists, got {media_type!r:.26}.",
                allowed=[JSON, *TABLES],
            )
        body = packed(await request.body())
        call = PredictCall(body, media_type, request.headers.get("accept"), run_id, model_id, intervals)
        answer = await service.run_predict(call)
        headers = {"X-Warnings": json.dumps(answer.warnings)} if answer.warnings else None
        return Response(bytes(answer.body), media_type=answer.media_type, headers=headers)

    return router
