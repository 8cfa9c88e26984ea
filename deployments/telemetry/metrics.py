"""Every metric of the service, as a table, and recording into it; what stores them is passed in.

Ray exports each under ``ray_`` and its name. No label holds what clients choose: endpoints are templates of
routes, and runs, jobs and models are no labels at all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

Record = Callable[[float, dict[str, str]], None]
"""Takes a value and its labels."""

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_HANDLING_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 1.0)
_TRAINING_S: Final = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One family of time series.

    Attributes:
        buckets: Upper bounds of a histogram, in seconds.
    """

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _table(*metrics: Metric) -> Mapping[str, Metric]:
    return {metric.name: metric for metric in metrics}


METRICS: Final = _table(
    # Seed 001, Error Metrics
    Metric("counter", "platform_errors_total", "Errors", ("error_type", "severity", "component")),
    Metric("counter", "training_job_failures_total", "Trainings that were lost", ("error_code", "framework")),
    Metric("counter", "api_errors_total", "Errors answered", ("status_code", "endpoint", "method")),
    Metric("histogram", "error_handling_seconds", "Counting and writing down", ("error_type",), _HANDLING_S),
    # What goes in and out
    Metric("counter", "http_requests_total", "Requests", ("status_code", "endpoint", "method")),
    Metric("histogram", "http_request_seconds", "To the end of the answer", ("endpoint", "method"), _SECONDS),
    Metric("counter", "rate_limit_refusals_total", "Requests beyond a rate limit", ("route_class",)),
    Metric("counter", "idempotent_replays_total", "Answers given again to the same Idempotency-Key"),
    Metric("gauge", "queue_capacity", "Places before the trainers, those at work included"),
    Metric("gauge", "training_jobs", "Jobs in the ledger", ("status",)),
    Metric("gauge", "queue_free", "Places that are free"),
    Metric("gauge", "queue_running", "Requests that a trainer works on"),
    Metric("gauge", "queue_waiting", "Requests that wait for a trainer"),
    Metric("counter", "integration_attempts_total", "Calls of other parts", ("integration", "outcome")),
    Metric("gauge", "circuit_breaker_state", "0 closed, 0.5 half open, 1 open", ("integration",)),
    # What is done
    Metric("gauge", "trainings_running", "Trainings at work"),
    Metric("histogram", "training_seconds", "Of a whole training", ("kind", "outcome"), _TRAINING_S),
    Metric("counter", "training_rows_total", "Rows of the tables trained on", ("kind",)),
    Metric("counter", "training_epochs_total", "Epochs run", ("kind",)),
    Metric("counter", "prediction_rows_total", "Rows predicted"),
    Metric("histogram", "prediction_seconds", "In a predictor, per request", (), _SECONDS),
    Metric("counter", "prediction_cache_total", "Lookups of a model, hit or miss", ("outcome",)),
    Metric("gauge", "registry_items", "Live runs"),
    Metric("gauge", "registry_bytes", "Their bundles"),
    Metric("counter", "registry_evictions_total", "Runs let go, expired or for room", ("reason",)),
)


class Metrics:
    """Records by name; a metric exists from its first value on.

    Args:
        make: Gives the store of a metric; called once for each.
    """

    def __init__(self, make: Callable[[Metric], Record]) -> None:
        self._make = make
        self._records: dict[str, Record] = {}

    def record(self, name: str, value: float = 1, /, **labels: str) -> None:
        """Adds to a counter, sets a gauge or observes in a histogram.

        Raises:
            KeyError: for a metric that the table does not have.
            ValueError: for other labels than the table's.
        """
        metric = METRICS[name]
        if labels.keys() != set(metric.labels):
            raise ValueError(f"{name} has the labels {metric.labels}, got {tuple(labels)}")
        if metric.kind == "counter" and value <= 0:
            return
        record = self._records.get(name)
        if record is None:
            record = self._records.setdefault(name, self._make(metric))
        record(value, labels)


def unrecorded(_: Metric) -> Record:
    """Where no cluster is: keeps nothing."""
    return _nothing


def _nothing(_: float, __: dict[str, str]) -> None: ...
