"""Telemetry with Ray under it: its metrics, and its logs."""

import logging
from typing import Final

import ray
from ray import serve
from ray.serve import metrics as ray_metrics
from ray.serve.exceptions import RayServeException

from deployments.settings import TelemetrySettings
from deployments.telemetry import Telemetry
from deployments.telemetry.logs import forward_logs, write_json_lines
from deployments.telemetry.metrics import Metric, Record

OURS: Final = ("core", "deployments")
SERVE_LOGGER: Final = "ray.serve"


def telemetry(settings: TelemetrySettings, component: str) -> Telemetry:
    """The telemetry of this process. In an actor it takes the logs over too; elsewhere it keeps nothing."""
    if not _in_actor():
        return Telemetry(settings, component)
    if _in_replica():
        forward_logs(OURS, logging.getLogger(SERVE_LOGGER))
    else:
        write_json_lines(OURS)
    return Telemetry(settings, component, ray_record)


def ray_record(metric: Metric) -> Record:
    """A metric of Ray; replicas add the labels ``deployment``, ``replica`` and ``application``."""
    if metric.kind == "counter":
        counter = ray_metrics.Counter(metric.name, metric.description, metric.labels)  # type: ignore[arg-type]
        return counter.inc
    if metric.kind == "gauge":
        gauge = ray_metrics.Gauge(metric.name, metric.description, metric.labels)  # type: ignore[arg-type]
        return gauge.set
    histogram = ray_metrics.Histogram(
        metric.name,
        metric.description,
        list(metric.buckets),
        metric.labels,  # type: ignore[arg-type]
    )
    return histogram.observe


def _in_actor() -> bool:
    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


def _in_replica() -> bool:
    try:
        serve.get_replica_context()
    except RayServeException:
        return False
    return True
