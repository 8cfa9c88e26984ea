"""The event stream of a job, line by line."""

import json
from collections.abc import Callable

from pydantic import TypeAdapter

from stillhouse.answers import EpochReport
from stillhouse.failures import error_of_problem

Progress = Callable[[EpochReport], None]
_EPOCH = TypeAdapter(EpochReport)


class JobEvents:
    """Takes the lines of one answer in order.

    Attributes:
        result: The body of the ``result`` event as JSON; None until it comes.
    """

    def __init__(self, progress: Progress, request_id: str | None) -> None:
        self._progress, self._request_id = progress, request_id
        self.result: bytes | None = None

    def feed(self, line: str) -> None:
        """Raises the StillhouseError that an ``error`` event tells of."""
        if not line.startswith("data:"):
            return
        report = json.loads(line.removeprefix("data:"))
        if report["event"] == "epoch":
            self._progress(_EPOCH.validate_python(report))
        elif report["event"] == "error":
            problem = report.get("problem") or report["body"]
            raise error_of_problem(problem, status=report["status_code"], request_id=self._request_id)
        elif report["event"] == "result":
            self.result = json.dumps(report["body"]).encode()
