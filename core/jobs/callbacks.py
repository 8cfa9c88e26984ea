"""What an external trainer says of its job (jobs.md, section 5), parsed into what the ledger takes in.

Nothing here believes a caller about the type or severity of an error: its code says both.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from core.catalogue import CATALOGUE
from core.contract.fields import shown
from core.errors import CallbackRejectedError, JobCancelledError, StillhouseError, TrainingError, class_of
from core.jobs.exits import ENDED_BY_SIGNAL, error_of_exit
from core.jobs.records import EpochMetrics, LogLine, Report
from core.jobs.states import ALIASES

CallbackKind = Literal["update", "progress", "completion", "logs"]
Body = Mapping[str, object]

STATUSES: Final = ("running", "completed", "failed", "cancelled")
MOST_LOGS: Final = 1000
_MOST_CHARS: Final = 2000
_MOST_DETAILS: Final = 50
_MOST_METRICS: Final = 200
_LARGEST: Final = 2**31 - 1
_LEVELS: Final = ("debug", "info", "warning", "error")
_RULING: Final = frozenset({"message", "original", "retry_after", "is_retryable", "violations"})
"""Details that decide how an error is treated, which no caller may."""
_TEXT_RESULTS: Final = (
    *("run_id", "model_id", "artifact_path", "final_checkpoint", "best_checkpoint", "last_checkpoint"),
    "tracking_run_id",
)
_NUMBER_RESULTS: Final = ("best_epoch", "epochs_completed", "total_seconds")


@dataclass(frozen=True, slots=True)
class Completed:
    result: Body


@dataclass(frozen=True, slots=True)
class Failed:
    error: StillhouseError


@dataclass(frozen=True, slots=True)
class Callback:
    """Attributes:
    attempt: That the trainer says it runs; None where it does not say.
    ending: None while it goes on.
    """

    attempt: int | None
    report: Report
    ending: Completed | Failed | None


def parse_callback(kind: CallbackKind, body: Body, at: float) -> Callback:
    """Args:
        at: Now, Unix seconds; of log lines that have no time.

    Raises:
        CallbackRejectedError: for an unknown status, and for numbers that are none.
    """
    attempt, status = _whole(body, "attempt", 1), _status(kind, body)
    epochs, logs = _epochs(body), _logs(body, at)
    number = epochs[0].epoch if epochs else _whole(body, "seq", 0)
    message = None if number is None else ("epoch" if epochs else f"{kind} seq", number)
    report = Report(epochs=epochs, logs=logs, message=message)
    return Callback(attempt, report, None if status == "running" else _ending(status, body))


def error_of(told: object, exit_code: int | None) -> StillhouseError:
    """The error of a failed attempt: by the code that the trainer names, else by its exit code.

    Args:
        told: ``{type, code, message, details}`` (seed 001), of a callback or of a line on stderr.
    """
    error = told if isinstance(told, Mapping) else {}
    code, message = error.get("code"), error.get("message")
    text = message.strip()[:_MOST_CHARS] if isinstance(message, str) and message.strip() else None
    if exit_code in ENDED_BY_SIGNAL:  # which the ledger takes for a cancel, where there was one
        return error_of_exit(exit_code)
    known = isinstance(code, str) and code in CATALOGUE
    found = class_of(str(code)) if known else StillhouseError
    if found.__module__ != "core.errors.platform":
        if exit_code is not None:
            return error_of_exit(exit_code, text)
        found = TrainingError
    return found(text, **_details(error.get("details")))


def _ending(status: str, body: Body) -> Completed | Failed:
    exit_code = _whole(body, "exit_code", -255)
    if status == "completed":
        return Completed(_result(body))
    if status == "cancelled":
        return Failed(JobCancelledError())
    told = body.get("error")
    if isinstance(told, str):
        told = {"message": told}
    return Failed(error_of(told, exit_code))


def _status(kind: CallbackKind, body: Body) -> str:
    """The state that a message tells; an exit code outranks what it says."""
    exit_code = _whole(body, "exit_code", -255)
    named = body.get("status", "running" if kind in ("progress", "logs") else None)
    status = ALIASES.get(str(named), named)
    if (exit_code is None or named is not None) and status not in STATUSES:
        raise _rejected(f"status must be {', '.join(STATUSES)}, got {shown(named)}", "status")
    if exit_code is None or (kind in ("progress", "logs") and status == "running"):
        return str(status)
    if exit_code == 0:
        return "completed"
    return "failed"


def _epochs(body: Body) -> tuple[EpochMetrics, ...]:
    epoch = _first(body, "epoch", "current_epoch")
    metrics = _metrics(body.get("metrics"), "metrics")
    if epoch is None or epoch == 0:
        return ()
    epochs = _first(body, "epochs", "total_epochs")
    if epochs is None or epochs < epoch:
        raise _rejected(f"total_epochs must be at least the epoch {epoch}, got {shown(epochs)}", "epochs")
    return (EpochMetrics(epoch, epochs, metrics),)


def _metrics(given: object, name: str) -> dict[str, object]:
    """Numbers by name; 0.0 is one. ``loss`` is the training's, ``extra_metrics`` lie beside the others."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or len(given) > _MOST_METRICS:
        raise _rejected(f"{name} must be at most {_MOST_METRICS} numbers by name", name)
    metrics: dict[str, object] = {}
    for key, value in given.items():
        if key == "extra_metrics":
            metrics |= _metrics(value, key)
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            metrics["train_loss" if key == "loss" else str(key)[:100]] = value
        else:
            raise _rejected(f"{name}.{key!s:.40} must be a number, got {shown(value)}", name)
    return metrics


def _logs(body: Body, at: float) -> tuple[LogLine, ...]:
    lines = body.get("logs", body.get("entries", []))
    if not isinstance(lines, list) or len(lines) > MOST_LOGS:
        raise _rejected(f"logs must be at most {MOST_LOGS} lines, got {shown(lines)}", "logs")
    return tuple(_line(line, at) for line in lines)


def _line(line: object, at: float) -> LogLine:
    if isinstance(line, str):
        return LogLine(at, "info", line[:_MOST_CHARS])
    if not isinstance(line, Mapping) or not isinstance(line.get("message"), str):
        raise _rejected(f"a log line must be a text or have a message, got {shown(line)}", "logs")
    level = str(line.get("level", "info")).lower()
    return LogLine(at, level if level in _LEVELS else "info", line["message"][:_MOST_CHARS])  # type: ignore[arg-type]


def _result(body: Body) -> dict[str, object]:
    texts = {name: body[name][:_MOST_CHARS] for name in _TEXT_RESULTS if isinstance(body.get(name), str)}  # type: ignore[index]
    numbers = _metrics({name: body[name] for name in _NUMBER_RESULTS if body.get(name) is not None}, "result")
    final = body.get("final_metrics", body.get("metrics"))
    return {
        "metrics": _metrics(final, "final_metrics"),
        "best_metrics": _metrics(body.get("best_metrics"), "best_metrics"),
        **numbers,
        **texts,
    }


def _details(given: object) -> dict[str, object]:
    """Plain values by name: nothing that rules how the error is treated."""
    if not isinstance(given, Mapping):
        return {}
    kept = [(str(name), value) for name, value in given.items() if str(name) not in _RULING]
    return {name[:100]: _plain(value) for name, value in kept[:_MOST_DETAILS]}


def _plain(value: object) -> object:
    if isinstance(value, str):
        return value[:_MOST_CHARS]
    if value is None or isinstance(value, bool | int):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else None


def _first(body: Body, *names: str) -> int | None:
    return next((number for name in names if (number := _whole(body, name, 0)) is not None), None)


def _whole(body: Body, name: str, low: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= _LARGEST:
        raise _rejected(f"{name} must be a whole number from {low}, got {shown(value)}", name)
    return value


def _rejected(message: str, field: str) -> CallbackRejectedError:
    return CallbackRejectedError(message, field=field)
