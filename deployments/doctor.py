"""What must hold for the service to run on this machine, checked without starting it."""

import importlib
import importlib.metadata
import os
import re
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core.errors import StillhouseError
from core.storage import Storage
from deployments.configuration import ConfigFileError, Configuration, read_configuration
from deployments.edge.tokens import Tokens
from deployments.settings import TOKENS_VARIABLE, Settings

PYTHON: Final = (3, 11)
RAY: Final = (2, 60)
ACTORS_CPUS: Final = 0.1  # of the registry and the dispatcher of jobs
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Check:
    """Attributes:
    found: What there is.
    advice: What to do; empty where the check holds.
    """

    name: str
    holds: bool
    found: str
    advice: str = ""


def examine(config: Path) -> list[Check]:
    """All checks; those of the configuration's values only where it can be read."""
    checks = [_python(), _ray(), _torch()]
    try:
        configuration = read_configuration(config)
    except ConfigFileError as error:
        advice = f"Correct {config.name}; it is checked further then."
        return checks + [Check("configuration", False, str(problem), advice) for problem in error.problems]
    checks += [Check("configuration", True, config.name), check_port(configuration)]
    if configuration.settings is not None:
        checks += _checks_of(configuration.settings, configuration.deploy.http_options.host)
    return checks


def _checks_of(settings: Settings, host: str) -> Iterator[Check]:
    yield _storage(settings)
    yield from (_data_root(root) for root in settings.roots())
    yield _tokens(settings, host)
    yield check_cpus(settings, cpus_here())


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return _checked(
        "Python", sys.version_info >= PYTHON, found, f"Install Python {_dotted(PYTHON)} or later."
    )


def _ray() -> Check:
    found = importlib.metadata.version("ray")
    release = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
    return _checked("Ray", release >= RAY, found, f"Install ray[serve]>={_dotted(RAY)}.")


def _torch() -> Check:
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # noqa: BLE001  # a broken installation raises what it likes
        reason = f"{type(error).__name__}: {error}"[:200]
        return Check("PyTorch", False, reason, "Install torch where the trainers run.")
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Check("PyTorch", True, f"{torch.__version__} on {', '.join(['cpu', *devices])}")


def check_port(configuration: Configuration) -> Check:
    """Whether the service can listen where it is told to."""
    http = configuration.deploy.http_options
    where, advice = f"{http.host}:{http.port}", "Stop what listens there, or change http_options.port."
    try:
        _bind(http.host, http.port)
    except OSError as error:
        return Check("port", False, f"{where} cannot be had ({error.strerror})", advice)
    return Check("port", True, f"{where} is free")


def _bind(host: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just closed is free
        probe.bind(address)


def _storage(settings: Settings) -> Check:
    advice = "Correct storage_url and storage_options, and allow reading and writing there."
    holds = f"{settings.storage_url} can be read and written"
    return _tried("storage", holds, advice, lambda: _write_and_read(settings))


def _write_and_read(settings: Settings) -> None:
    storage, name = (
        Storage(settings.expanded_storage_url(), settings.storage_options),
        f"doctor/{uuid.uuid4()}",
    )
    storage.write(name, b"readable")
    try:
        if storage.read(name) != b"readable":
            raise OSError("what was written could not be read back")
    finally:
        storage.delete(name)  # alone: another doctor may be at work


def _data_root(root: Path) -> Check:
    advice = "Correct data_roots, or allow reading there."

    def look() -> None:
        root.mkdir(parents=True, exist_ok=True)  # as the service does
        next(root.iterdir(), None)

    return _tried("data root", f"{root} can be read", advice, look)


def _tokens(settings: Settings, host: str) -> Check:
    try:
        tokens = Tokens.configured(settings)
    except (OSError, ValueError) as error:
        return Check("tokens", False, _reason(error), "Make tokens_file a readable file of one token a line.")
    if tokens is None:
        advice = f"Listen on 127.0.0.1, or set tokens_file or {TOKENS_VARIABLE}."
        return _checked("tokens", host in LOOPBACK, f"none are needed, on {host}", advice)
    return _checked("tokens", tokens.count() > 0, f"{tokens.count()}", "Write a token into tokens_file.")


def check_cpus(settings: Settings, available: float) -> Check:
    """Whether one of each part fits into a cluster of this machine alone; Serve would wait without a word."""
    trainer, predictor, ingress = settings.trainer, settings.predictor, settings.ingress
    needed = (
        max(1, trainer.min_replicas) * trainer.cpus_per_trainer
        + predictor.min_replicas * predictor.cpus_per_predictor
        + ingress.replicas * ingress.cpus_per_ingress
        + ACTORS_CPUS
    )
    found = f"{needed:g} of {available:g} are needed at least"
    advice = "Lower cpus_per_trainer or its fellows, or min_replicas; or start it on a cluster that has them."
    return _checked("CPUs", needed <= available, found, advice)


def cpus_here() -> float:
    """Those that Ray counts when it starts here."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _tried(name: str, holds: str, advice: str, attempt: Callable[[], None]) -> Check:
    try:
        attempt()
    except (OSError, ValueError, ImportError, StillhouseError) as error:
        return Check(name, False, _reason(error), advice)
    return Check(name, True, holds)


def _reason(error: Exception) -> str:
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return told[:200]


def _checked(name: str, holds: bool, found: str, advice: str) -> Check:
    return Check(name, holds, found, "" if holds else advice)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
