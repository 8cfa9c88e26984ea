"""The service in the foreground: ``serve run`` that knows what it was told, and says when it is ready."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final

import click
import httpx
import ray
from ray import serve
from ray.serve.schema import ApplicationStatus
from ray.serve.scripts import cli

from deployments.configuration import Configuration
from deployments.doctor import check_port
from deployments.proxy import ENVIRONMENT

log = logging.getLogger(__name__)

ASK_EVERY_S: Final = 1.0
SERVE_NAMESPACE: Final = "serve"
LOG: Final = "its log is above, and below session_latest/logs in Ray's folder, /tmp/ray if none was set"


class StartError(Exception):
    """The service did not start, or did not stay; the message says why."""


def run_in_foreground(configuration: Configuration, address: str | None, say: Callable[[str], None]) -> None:
    """Starts the service and stays until Ctrl-C; then nothing of it is left.

    Args:
        address: Of a Ray cluster, as ``serve run`` takes it; ``local`` starts one for this service alone.
        say: Told once that the service is ready, and where.

    Raises:
        StartError: The port is taken, an application could not be deployed, or Ray or Serve failed.
    """
    if address in (None, "local"):  # on a cluster that runs already, Serve may listen there already
        port = check_port(configuration)  # Ray itself would share it with another service
        if not port.holds:
            raise StartError(f"{port.found}: {port.advice}")
    os.environ.update(ENVIRONMENT)  # Ray's processes inherit it
    watch = _Watch(configuration, say)
    threading.Thread(target=watch.run, daemon=True).start()
    try:
        stay(lambda: _serve(configuration, address))
    finally:
        watch.stopped.set()
    if watch.failure is not None:
        raise StartError(watch.failure)


def _serve(configuration: Configuration, address: str | None) -> None:
    """``serve run`` of the file, to its end.

    Serve is started before, as the file has it: ``serve run`` passes over the ``logging_config`` of Serve
    itself, and by default that logs the arguments of applications, with all paths and secrets in them.
    """
    deploy = configuration.deploy
    sys.path.insert(0, ".")  # as serve run does, before workers learn where modules are
    ray.init(address=address, namespace=SERVE_NAMESPACE)
    serve.start(deploy.proxy_location, deploy.http_options.model_dump(), logging_config=deploy.logging_config)
    cli.main(["run", str(configuration.path)], standalone_mode=False)


def stay(run: Callable[[], object]) -> None:
    """Runs ``serve run``, which exits alike when it is told to stop and when it fails.

    Raises:
        StartError: It ended although neither SIGINT nor SIGTERM came.
    """
    interrupted = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.default_int_handler(number, frame)

    # Set anew: a shell without job control starts what is in the background with SIGINT ignored.
    signal.signal(signal.SIGINT, interrupt)
    try:
        run()
    except SystemExit as end:
        if end.code == signal.SIGTERM:  # with which Ray's handler exits
            return
    except click.Abort:  # SIGINT before Serve was there
        raise
    except Exception as error:
        raise StartError(f"Ray or Serve failed with {type(error).__name__}: {error}; {LOG}") from error
    if not interrupted.is_set():
        raise StartError(f"Serve ended by itself; {LOG}")


class _Watch:
    """Asks until the applications are deployed, or one cannot be: Serve would go on trying without a word.

    Attributes:
        failure: Why an application could not be deployed.
    """

    def __init__(self, configuration: Configuration, say: Callable[[str], None]) -> None:
        self._url, self._say = configuration.url, say
        self.stopped = threading.Event()
        self.failure: str | None = None

    def run(self) -> None:
        while not self.stopped.wait(ASK_EVERY_S):
            if not (ray.is_initialized() and self._listens()):
                continue  # asked for its status earlier, Serve would start a cluster of its own
            try:
                applications = serve.status().applications
            except Exception as error:  # noqa: BLE001  # of Ray or of Serve, which may answer again
                log.warning("Serve does not tell its status, and is asked again: %s", error)
                continue
            for name, application in applications.items():
                if application.status is ApplicationStatus.DEPLOY_FAILED:
                    self.failure = f"{name} could not be deployed: {application.message}"
                    os.kill(os.getpid(), signal.SIGINT)
                    return
            if applications and all(a.status is ApplicationStatus.RUNNING for a in applications.values()):
                self._say(f"Stillhouse is ready; its documentation is at {self._url}/docs (stop with Ctrl-C)")
                return

    def _listens(self) -> bool:
        try:
            httpx.get(f"{self._url}/-/healthz", timeout=5)
        except httpx.TransportError:
            return False
        return True
