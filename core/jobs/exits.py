"""How the process of an external trainer ended (jobs.md, section 5.4), where no callback told it."""

import json
from collections.abc import Mapping
from typing import Final

from core.errors import (
    DatasetError,
    HiddenConfigError,
    HostOutOfMemoryError,
    NetworkError,
    RuntimeUnavailableError,
    StillhouseError,
    StorageError,
    TrainingError,
    TrainingTimeoutError,
    WorkerDiedError,
)

ENDED_BY_SIGNAL: Final = (130, 143)
EXITS: Final[Mapping[int, type[StillhouseError]]] = {
    1: TrainingError,
    2: NetworkError,
    3: HiddenConfigError,
    4: DatasetError,
    5: HostOutOfMemoryError,
    6: StorageError,
    124: TrainingTimeoutError,
    126: RuntimeUnavailableError,  # what a shell says of a program that it cannot run
    127: RuntimeUnavailableError,
    **dict.fromkeys(ENDED_BY_SIGNAL, WorkerDiedError),  # nobody cancelled the job: it runs again
    137: HostOutOfMemoryError,
}


_LEVELS: Final = ("error", "critical", "fatal")


def error_of_exit(exit_code: int, message: str | None = None) -> StillhouseError:
    """Args:
        exit_code: Of a process; negative ones are signals, as Python has them.

    >>> error_of_exit(-9).code
    'HOST_OOM'
    """
    code = 128 - exit_code if exit_code < 0 else exit_code
    details: dict[str, object] = {"exit_code": code}
    if code == 2:
        details["service"] = "the training service"
    return EXITS.get(code, TrainingError)(message, **details)


def terminal_line(stderr: str) -> Mapping[str, object] | None:
    """The last line, where it is one of JSON that tells an error, as trainers end with."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    try:
        told = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    tells = isinstance(told, dict) and (str(told.get("level")).lower() in _LEVELS or "code" in told)
    return told if tells else None


def told_by_line(line: Mapping[str, object]) -> Mapping[str, object]:
    """A line as the error of a callback has it: the code beside the message, or within ``error``."""
    error = line.get("error")
    inner = error if isinstance(error, Mapping) else {}
    found = {name: line.get(name, inner.get(name)) for name in ("code", "message", "details")}
    return found | ({} if found["details"] else {"details": line.get("context")})
