"""What operators see: metrics, and failures in the log."""

import logging
from typing import Literal

from starlette.types import Scope

from core.errors import StillhouseError
from deployments.origin import Origin
from deployments.settings import TelemetrySettings

log = logging.getLogger(__name__)


class Telemetry:
    """Watches answers, failures and attempts."""

    def __init__(self, settings: TelemetrySettings) -> None:
        self._settings = settings

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """An answer went out; status 0 is one that never began."""

    def failed(self, error: StillhouseError, scope: Scope, origin: Origin) -> None:
        """A request failed."""

    def attempted(self, service: str, outcome: Literal["ok", "retried", "failed"]) -> None:
        """A call to another part of the service went well, is tried again, or failed for good."""
