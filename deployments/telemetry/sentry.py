"""Faults of the service as events in Sentry; nothing of it is imported where no DSN is configured."""

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

from core.catalogue import ErrorType, Severity
from core.errors import StillhouseError, TrainingError
from core.redaction import redact, redact_text
from deployments.origin import Origin
from deployments.settings import TelemetrySettings

if TYPE_CHECKING:
    from sentry_sdk._types import Event, Hint, LogLevelStr

LEVELS: Final[Mapping[Severity, "LogLevelStr"]] = {
    Severity.LOW: "info",
    Severity.MEDIUM: "warning",
    Severity.HIGH: "error",
    Severity.CRITICAL: "fatal",
}
_LISTS: Final = ("exception", "threads", "breadcrumbs")
_NEVER_SENT: Final = ("request", "user", "extra", "modules")


class Sentry:
    """Sends faults, with a client of its own: nothing global is set up, patched or listened to.

    Args:
        component: What this process is; sent in place of the name of the machine.

    Raises:
        RuntimeError: where sentry-sdk is not installed.
        sentry_sdk.utils.BadDsn: for a DSN that is none.
    """

    def __init__(self, dsn: str, settings: TelemetrySettings, component: str) -> None:
        try:
            import sentry_sdk
        except ModuleNotFoundError:
            raise RuntimeError("telemetry.sentry_dsn is set, so the extra sentry must be installed") from None
        self._new_scope = sentry_sdk.new_scope
        self._client = sentry_sdk.Client(
            dsn=dsn,
            environment=settings.environment,
            release=settings.release,
            server_name=component,
            sample_rate=settings.sentry_sample_rate,
            traces_sample_rate=settings.sentry_traces_sample_rate,
            default_integrations=False,
            auto_enabling_integrations=False,
            include_local_variables=False,
            max_request_body_size="never",
            max_breadcrumbs=0,
            before_send=redacted_event,
            before_send_transaction=redacted_event,
        )

    def report(self, error: Exception, origin: Origin, tags: Mapping[str, str]) -> None:
        """Sends an event; those of ours that ``is_fault`` says no to are passed over.

        Args:
            tags: Beside those of the error itself; no ids but the trace's.
        """
        own = error if isinstance(error, StillhouseError) else None
        if own is not None and not is_fault(own):
            return
        with self._new_scope() as scope:
            scope.set_client(self._client)
            scope.set_level(LEVELS[own.severity if own else Severity.HIGH])
            scope.set_tags({**tags_of(own), **tags, "trace_id": origin.trace_id})
            scope.set_context("trace", {"trace_id": origin.trace_id, "span_id": secrets.token_hex(8)})
            if own is not None:
                scope.set_context("error_details", _details(own))
            scope.capture_exception(error)

    def timed(self, endpoint: str, status: int, seconds: float, ended: float, origin: Origin) -> None:
        """Sends a request as a transaction, as often as ``sentry_traces_sample_rate`` says.

        Args:
            ended: Unix seconds.
        """
        with self._new_scope() as scope:
            scope.set_client(self._client)
            transaction = scope.start_transaction(
                name=endpoint,
                op="http.server",
                source="route",
                trace_id=origin.trace_id,
                start_timestamp=ended - seconds,
            )
            transaction.set_http_status(status)
            transaction.finish(scope=scope, end_timestamp=ended)

    def close(self, timeout_s: float = 2) -> None:
        """Sends what waits."""
        self._client.close(timeout_s)


def is_fault(error: StillhouseError) -> bool:
    """Whether the service is at fault, rather than its caller or a passing moment.

    Not TRAINING_FAILED: trainers report what is behind it, with its traceback.
    """
    if error.code == TrainingError.code:
        return False
    grave = error.severity in (Severity.HIGH, Severity.CRITICAL)
    return error.error_type is ErrorType.SYSTEM_ERROR or (grave and error.status >= 500)


def tags_of(error: StillhouseError | None) -> dict[str, str]:
    if error is None:
        return {"error_type": ErrorType.SYSTEM_ERROR.value, "severity": Severity.HIGH.value}
    return {"code": error.code, "error_type": error.error_type.value, "severity": error.severity.value}


def _details(error: StillhouseError) -> dict[str, object]:
    return {
        "user_message": error.user_message,
        "suggested_action": error.suggested_action,
        **{name: value for name, value in error.details.items() if name != "violations"},
    }


def redacted_event(event: "Event", _: "Hint") -> "Event":
    """The whole event without secrets, server paths, rows, requests and local variables."""
    given = cast(dict[str, object], event)
    kept = {name: value for name, value in given.items() if name not in (*_NEVER_SENT, *_LISTS)}
    clean = cast(dict[str, object], redact(kept))
    for name in _LISTS:
        listed = given.get(name)
        if isinstance(listed, Mapping):
            clean[name] = {"values": [_redacted_item(item) for item in listed.get("values") or ()]}
    return cast("Event", clean)


def _redacted_item(item: Mapping[str, object]) -> object:
    """An exception, thread or breadcrumb; its ``value`` is a message, no row."""
    rest = {name: value for name, value in item.items() if name not in ("value", "stacktrace", "mechanism")}
    clean = cast(dict[str, object], redact(rest))
    if "value" in item:
        clean["value"] = redact_text(str(item["value"]))
    stack = item.get("stacktrace")
    if isinstance(stack, Mapping):
        frames = [
            {name: value for name, value in frame.items() if name not in ("vars", "abs_path")}
            for frame in stack.get("frames") or ()
        ]
        clean["stacktrace"] = {"frames": redact(frames)}
    return clean
