"""The peer of the HTTP benchmark: one FastAPI and uvicorn process that predicts by itself, without Ray.

Run as ``python -m benchmarks.bare_server BUNDLE PORT``.
"""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import httpx
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


@contextlib.contextmanager
def bare_service(file: bytes, folder: Path) -> Iterator[str]:
    """The peer's address, until the block ends."""
    bundle, port = folder / "bundle.safetensors", _free_port()
    bundle.write_bytes(file)
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.bare_server", str(bundle), str(port)])
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, "the peer did not start"
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(f"{url}/health/ready").raise_for_status()
            return
        time.sleep(0.1)
    raise TimeoutError("the peer did not start")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    torch.set_num_threads(1)
    uvicorn.run(
        build(Predictor(load_bundle(sys.argv[1]))),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        log_level="warning",
        access_log=False,
    )
