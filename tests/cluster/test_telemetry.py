"""The metrics of a running service, as Prometheus scrapes them from Ray."""

import re

import httpx
import pytest
import ray

from deployments.telemetry.metrics import METRICS

pytestmark = pytest.mark.cluster

# What a request, a failure and a training leave behind; the rest needs more than that.
SEEN = {
    "platform_errors_total",
    "training_job_failures_total",
    "api_errors_total",
    "error_handling_seconds",
    "http_requests_total",
    "http_request_seconds",
    "queue_capacity",
    "queue_free",
    "queue_running",
    "queue_waiting",
    "integration_attempts_total",
    "circuit_breaker_state",
    "trainings_running",
    "training_seconds",
    "training_rows_total",
    "training_epochs_total",
    "prediction_rows_total",
    "prediction_seconds",
    "prediction_cache_total",
    "registry_items",
    "registry_bytes",
}


def scraped() -> dict[str, str]:
    """Every family of ours and its kind."""
    [node] = [node for node in ray.nodes() if node["Alive"]]
    text = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics").text
    kinds = dict(re.findall(r"^# TYPE ray_(\w+) (\w+)$", text, re.MULTILINE))
    assert not [name for name in kinds if name.endswith("_total_total")]
    return {name: kind for name, kind in kinds.items() if name in METRICS}


def test_metrics_are_exported_under_their_documented_names(service, client, dataset, teacher) -> None:
    row = {"x0": 1.5, "x1": 0.1, "x2": 0.3, "x3": 0, "x4": 0, "x5": 0, "colour": "red"}
    question = {"model_id": teacher["model_id"], "rows": [row]}
    assert client.post("/api/v1/predict", json=question).status_code == 200
    unlearnable = {"dataset_id": dataset, "target_column": "x0", "task": "classification", "epochs": 1}
    assert client.post("/api/v1/train", json=unlearnable).status_code == 400
    assert service.eventually(lambda: scraped().keys() >= SEEN), SEEN - scraped().keys()
    assert all(METRICS[name].kind == kind for name, kind in scraped().items())
