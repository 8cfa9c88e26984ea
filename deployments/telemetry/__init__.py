"""What operators see: metrics, failures in the log, and faults in Sentry."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Literal

from starlette.types import Scope

from core.admission import Admission
from core.catalogue import ErrorType, Severity
from core.errors import (
    CircuitOpenError,
    DatabaseError,
    DatasetBrokenError,
    MlflowUnavailableError,
    RateLimitedError,
    RuntimeUnavailableError,
    StillhouseError,
    StorageError,
    TrainerUnreachableError,
    TrainingError,
    TrainingStoppedError,
    TrainingTimeoutError,
    WorkflowError,
)
from core.resilience import Breaker
from deployments.dialects import Asked, render
from deployments.edge.border import origin_of, route_path
from deployments.origin import Origin
from deployments.settings import TelemetrySettings
from deployments.telemetry.endpoints import Endpoints, known_method
from deployments.telemetry.metrics import Metric, Metrics, Record, unrecorded
from deployments.telemetry.sentry import Sentry

log = logging.getLogger(__name__)

FRAMEWORK: Final = "pytorch"
_LOG_LEVELS: Final = {
    Severity.LOW: logging.INFO,
    Severity.MEDIUM: logging.WARNING,
    Severity.HIGH: logging.ERROR,
    Severity.CRITICAL: logging.CRITICAL,
}
_BREAKER_VALUES: Final = {"closed": 0.0, "half_open": 0.5, "open": 1.0}
_COMPONENTS: Final[tuple[tuple[type[StillhouseError], str], ...]] = (
    (TrainingError, "trainer"),
    (TrainingTimeoutError, "trainer"),
    (TrainingStoppedError, "trainer"),
    (TrainerUnreachableError, "trainer"),
    (RuntimeUnavailableError, "trainer"),
    (StorageError, "storage"),
    (DatasetBrokenError, "storage"),
    (DatabaseError, "database"),
    (MlflowUnavailableError, "tracking"),
    (WorkflowError, "workflow"),
)
_SPARED: Final = ("trainer", "predictor", "registry", "storage")


class Telemetry:
    """Watches one process of the service: answers, failures, attempts and work done.

    Args:
        component: What the process is: ``ingress``, ``trainer``, ``predictor`` or ``registry``.
        make: Gives the store of a metric; those of Ray come from ``deployments.instruments``.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        settings: TelemetrySettings,
        component: str,
        make: Callable[[Metric], Record] = unrecorded,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._component, self._clock = component, clock
        self._metrics = Metrics(make)
        self._endpoints: Endpoints | None = None
        self._trainings = 0
        dsn = settings.dsn()
        self.sentry = None if dsn is None else Sentry(dsn, settings, component)

    def close(self) -> None:
        """Sends the faults that wait; the process may end then."""
        if self.sentry is not None:
            self.sentry.close()

    # ── Requests ────────────────────────────────────────────────────────────────────────────────────────

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """An answer went out; status 0 is one that never began."""
        endpoint, method = self._place(scope)
        labels = {"endpoint": endpoint, "method": method}
        self._metrics.record("http_requests_total", status_code=str(status), **labels)
        self._metrics.record("http_request_seconds", seconds, **labels)
        if self.sentry is not None and status:
            self.sentry.timed(f"{method} {endpoint}", status, seconds, time.time(), origin_of(scope))

    def failed(self, error: StillhouseError, scope: Scope, origin: Origin) -> None:
        """A request failed."""
        endpoint, method = self._place(scope)
        self._fail(error, endpoint, method, render(error, Asked(route_path(scope))).status, origin)

    def failed_call(self, error: StillhouseError, method: str, origin: Origin) -> None:
        """A call through a Python handle failed."""
        status = render(error, Asked(f"/api/v1/{method}")).status  # handles answer as their routes do
        self._fail(error, "handle", method, status, origin)

    def replayed(self) -> None:
        """An Idempotency-Key came again and got the first answer."""
        self._metrics.record("idempotent_replays_total")

    def _place(self, scope: Scope) -> tuple[str, str]:
        """Endpoint and method as labels."""
        if self._endpoints is None:
            app = scope.get("app")
            if app is None:  # an edge without routes behind it
                return "unknown", known_method(scope["method"])
            self._endpoints = Endpoints(app.state.templates)
        return self._endpoints.of(route_path(scope)), known_method(scope["method"])

    def _fail(self, error: StillhouseError, endpoint: str, method: str, status: int, origin: Origin) -> None:
        started = self._clock()
        kind, component = error.error_type.value, component_of(error, self._component)
        self._metrics.record(
            "platform_errors_total", error_type=kind, severity=error.severity.value, component=component
        )
        self._metrics.record("api_errors_total", status_code=str(status), endpoint=endpoint, method=method)
        if isinstance(error, RateLimitedError):
            limited = str(error.details.get("resource", "")).removesuffix(" requests")
            self._metrics.record("rate_limit_refusals_total", route_class=limited)
        place = {"status": status, "endpoint": endpoint, "method": method, "component": component}
        _write(error, {**place, **origin.log_fields()})
        if self.sentry is not None:
            self.sentry.report(error, origin, {"component": component, "endpoint": endpoint})
        self._metrics.record("error_handling_seconds", self._clock() - started, error_type=kind)

    # ── Other parts of the service ──────────────────────────────────────────────────────────────────────

    def attempted(self, service: str, outcome: Literal["ok", "retried", "failed"]) -> None:
        """A call to another part of the service went well, is tried again, or failed for good."""
        self._metrics.record("integration_attempts_total", integration=service, outcome=outcome)

    def state(self, admission: Admission, breakers: Mapping[str, Breaker]) -> None:
        """The queue and the breakers now; Ray forgets a gauge that is not set again within 20 s."""
        for name in ("capacity", "free", "running", "waiting"):
            self._metrics.record(f"queue_{name}", getattr(admission, name))
        self.spared(breakers)

    def spared(self, breakers: Mapping[str, Breaker]) -> None:
        """The breakers now; to be called again and again, like ``state``."""
        for service, breaker in breakers.items():
            self._metrics.record("circuit_breaker_state", _BREAKER_VALUES[breaker.state], integration=service)

    def state_of_jobs(self, counts: Mapping[str, int]) -> None:
        """How many jobs there are by state; like ``state``."""
        for state, number in counts.items():
            self._metrics.record("training_jobs", number, status=state)

    # ── Work ────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def training(self, kind: str) -> Iterator[None]:
        """Times the training that runs in the block."""
        started, outcome = self._clock(), "failed"
        self._trainings += 1
        self.state_of_trainings()
        try:
            yield
            outcome = "ok"
        except (TrainingStoppedError, asyncio.CancelledError, GeneratorExit):
            outcome = "stopped"
            raise
        finally:
            self._trainings -= 1
            self.state_of_trainings()
            self._metrics.record("training_seconds", self._clock() - started, kind=kind, outcome=outcome)

    def state_of_trainings(self) -> None:
        """To be called again and again, like ``state``."""
        self._metrics.record("trainings_running", self._trainings)

    def trained(self, kind: str, rows: int, epochs: int) -> None:
        self._metrics.record("training_rows_total", rows, kind=kind)
        self._metrics.record("training_epochs_total", epochs, kind=kind)

    def training_failed(self, error: StillhouseError) -> None:
        """A request that had its place before the trainers got no model."""
        self._metrics.record("training_job_failures_total", error_code=error.code, framework=FRAMEWORK)

    def unexpected(self, error: Exception, origin: Origin) -> None:
        """What nobody foresaw happened where its request cannot see it: in a trainer."""
        fields = {"component": self._component, **origin.log_fields()}
        log.error("unexpected: %s", error, exc_info=error, extra=fields)
        if self.sentry is not None:
            self.sentry.report(error, origin, {"component": self._component})

    def predicted(self, rows: int, seconds: float) -> None:
        self._metrics.record("prediction_rows_total", rows)
        self._metrics.record("prediction_seconds", seconds)

    def looked_up(self, *, hit: bool) -> None:
        """A predictor had a model ready, or loaded it."""
        self._metrics.record("prediction_cache_total", outcome="hit" if hit else "miss")

    def kept(self, items: int, size_bytes: int) -> None:
        """What the registry has now."""
        self._metrics.record("registry_items", items)
        self._metrics.record("registry_bytes", size_bytes)

    def evicted(self, runs: int, reason: Literal["expired", "room"]) -> None:
        self._metrics.record("registry_evictions_total", runs, reason=reason)


def component_of(error: StillhouseError, otherwise: str) -> str:
    """The part that failed; where the error does not say, the one that noticed."""
    if isinstance(error, CircuitOpenError) and error.details.get("service") in _SPARED:
        return str(error.details["service"])
    return next((name for error_class, name in _COMPONENTS if isinstance(error, error_class)), otherwise)


def _write(error: StillhouseError, fields: Mapping[str, object]) -> None:
    """One line; with a traceback where the service is at fault."""
    system = error.error_type is ErrorType.SYSTEM_ERROR
    log.log(
        _LOG_LEVELS[error.severity],
        "request %s failed: %s",
        fields.get("client_request_id", ""),
        error.message,
        exc_info=error if system else None,
        extra={
            "code": error.code,
            "error_type": error.error_type.value,
            "severity": error.severity.value,
            **fields,
        },
    )
