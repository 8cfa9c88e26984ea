"""The peer of the HTTP benchmark: one FastAPI and uvicorn process that predicts by itself, without Ray.

Run as ``python -m benchmarks.bare_server BUNDLE PORT``.
"""

import sys
from typing import Annotated

import torch
import uvicorn
from fastapi import Body, FastAPI
from pydantic import JsonValue

from core.local import load_bundle
from core.prediction import Predictor


def build(model: Predictor) -> FastAPI:
    app = FastAPI()
    names = [column.name for column in model.bundle.encoder.columns]

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/api/v1/predict")
    async def predict(rows: Annotated[list[dict[str, JsonValue]], Body(embed=True)]) -> dict[str, object]:
        encoded = model.encode({name: [row[name] for row in rows] for name in names})
        prediction = model.predict(encoded.features)
        probabilities = prediction.probabilities
        return {
            "predictions": prediction.labels(),
            "classes": prediction.classes,
            "probabilities": None if probabilities is None else probabilities.tolist(),
        }

    return app


if __name__ == "__main__":
    torch.set_num_threads(1)
    app = build(Predictor(load_bundle(sys.argv[1])))
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
