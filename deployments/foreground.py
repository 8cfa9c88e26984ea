"""The service in the foreground: ``serve run`` that knows what it was told, and says when it is ready."""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Final

import httpx
import ray
from ray import serve
from ray.serve.schema import ApplicationStatus
from ray.serve.scripts import cli

from deployments.configuration import Configuration
from deployments.doctor import check_port
from deployments.proxy import ENVIRONMENT

ASK_EVERY_S: Final = 1.0


class StartError(Exception):
    """The service did not start; the message says why."""


def run_in_foreground(configuration: Configuration, address: str | None, say: Callable[[str], None]) -> None:
    """Starts the service and stays until Ctrl-C; then nothing of it is left.

    Args:
        address: Of a Ray cluster, as ``serve run`` takes it; ``local`` starts one for this service alone.
        say: Told once that the service is ready, and where.

    Raises:
        StartError: The port is taken, or an application could not be deployed.
    """
    if address in (None, "local"):  # on a cluster that runs already, Serve may listen there already
        port = check_port(configuration)  # Ray itself would share it with another service
        if not port.holds:
            raise StartError(f"{port.found}: {port.advice}")
    # A shell without job control starts what is in the background with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(ENVIRONMENT)  # Ray's processes inherit it
    watch = _Watch(configuration, say)
    threading.Thread(target=watch.run, daemon=True).start()
    place: Sequence[str] = () if address is None else ("--address", address)
    try:
        cli.main(["run", *place, str(configuration.path)], standalone_mode=False)
    except SystemExit:  # how it ends, in whichever way
        pass
    finally:
        watch.stopped.set()
    if watch.failure is not None:
        raise StartError(watch.failure)


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
            applications = serve.status().applications
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
