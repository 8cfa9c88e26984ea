"""A reference for trainers that are no part of the service: standard library, environment and HTTP alone.

It learns how often each class of the target occurs, which takes no time, and says how that goes. What went
wrong is a line of JSON on stderr, an exit code, and a callback:

    0 a model, and the service knows        3 configuration    124 out of time
    1 no model                              4 dataset          143 told to end
    2 the service could not be told         6 no room for artefacts

The first argument makes it misbehave for tests; ``--wait`` shortens its pauses, in seconds.
"""

import argparse
import csv
import io
import json
import math
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

TRIES = 3
PASSING = (408, 425, 429, 500, 502, 503, 504)
FAULTS = ("none", "oom", "crash", "lost", "twice", "disordered", "slow", "stubborn", "deaf", "mute")


class EndedError(Exception):
    """The training cannot go on. ``code`` is the service's word for it."""

    def __init__(self, exit_code: int, code: str, message: str, **details: object) -> None:
        super().__init__(message)
        self.exit_code, self.code, self.message, self.details = exit_code, code, message, details


class UnreachableError(Exception):
    """The service did not take what it was told."""


class Service:
    """The one that started this process, as its environment names it."""

    def __init__(self, url: str, token: str, data_url: str, attempt: int, wait_s: float) -> None:
        self._url, self._token, self._data_url = url, token, data_url
        self._attempt, self._wait_s = attempt, wait_s
        self.dead = False

    def data(self) -> str:
        try:
            return self._ask(urllib.request.Request(self._data_url)).decode()  # noqa: S310  # ours
        except urllib.error.HTTPError as error:
            code = error.headers.get("X-Error-Code", "DATASET_INVALID_FORMAT")
            raise EndedError(4, code, f"The dataset cannot be read: {error.code}.") from error

    def tell(self, form: str, **body: object) -> dict:
        """Progress and logs: a service that does not answer stops no training."""
        try:
            return self._post(form, body)
        except (UnreachableError, OSError):
            return {}

    def complete(self, **body: object) -> dict:
        """The last word must get through; it is kept beside the artefacts where it does not."""
        for number in range(TRIES):
            try:
                return self._post("/completion", body)
            except (UnreachableError, OSError):
                time.sleep(self._wait_s if number < TRIES - 1 else 0)
        Path("completion.json").write_text(json.dumps(body))
        raise EndedError(2, "NETWORK_ERROR", "The service could not be told how this ended.")

    def _post(self, form: str, body: dict) -> dict:
        request = urllib.request.Request(  # noqa: S310  # ours
            self._url + form, json.dumps({"attempt": self._attempt, **body}).encode(), method="POST"
        )
        request.add_header("Content-Type", "application/json")
        try:
            return json.loads(self._ask(request))
        except urllib.error.HTTPError as error:
            if error.code in PASSING:
                raise UnreachableError from error
            raise EndedError(
                1, "CALLBACK_REJECTED", f"The service refused what it was told: {error.code}."
            ) from error

    def _ask(self, request: urllib.request.Request) -> bytes:
        if self.dead:
            raise UnreachableError
        request.add_header("Authorization", f"Bearer {self._token}")
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  # ours
            return answer.read()


def write(level: str, message: str, **fields: object) -> None:
    """One line on stderr; the last one before a bad end says why."""
    line = {
        "timestamp": datetime.now(UTC).isoformat(),
        "level": level,
        "service": "trainer",
        "message": message,
    }
    print(json.dumps(line | fields), file=sys.stderr, flush=True)


def learn(service: Service, job: dict, fault: str, wait_s: float) -> dict:
    """The final metrics."""
    rows = list(csv.DictReader(io.StringIO(service.data())))
    target = job["request"]["target_column"]
    if not rows or target not in rows[0]:
        raise EndedError(4, "DATASET_INVALID_FORMAT", f"The data has no column {target}.")
    counts = Counter(row[target] for row in rows)
    shares = [count / len(rows) for count in counts.values()]
    epochs = int(job["request"].get("epochs", 3))
    service.tell("/logs", seq=1, logs=[{"level": "info", "message": f"{len(rows)} rows"}])
    order = list(range(1, epochs + 1))
    if fault == "disordered":
        order.reverse()
    for epoch in order:
        loss = -sum(share * math.log(share) for share in shares) / epoch
        metrics = {"loss": loss, "validation_loss": loss, "zero": 0.0}
        for _ in range(2 if fault == "twice" else 1):
            answer = service.tell(
                "/progress", status="running", epoch=epoch, total_epochs=epochs, metrics=metrics
            )
        if answer.get("cancel_requested"):
            raise EndedError(143, "JOB_CANCELLED", "The job is to end.")
        misbehave(fault, wait_s)
    return {"accuracy": max(shares), "zero": 0.0}


def misbehave(fault: str, wait_s: float) -> None:
    if fault == "oom":
        details = {"allocated_memory": 8_000, "max_memory": 9_000, "batch_size": 64}
        raise EndedError(1, "CUDA_OOM", "GPU out of memory", **details)
    if fault == "crash":
        write("error", "No space left on device", code="DISK_FULL", exit_code=1)
        os._exit(1)
    if fault == "mute":
        os._exit(0)
    if fault in ("slow", "stubborn", "deaf"):
        if fault != "slow":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path("ready").touch()
        time.sleep(wait_s)


def run(service: Service, job: dict, fault: str, wait_s: float) -> None:
    started = time.monotonic()
    final = learn(service, job, fault, wait_s)
    Path("model.json").write_text(json.dumps(final))
    service.dead = fault == "lost"
    for _ in range(2 if fault == "twice" else 1):
        service.complete(
            status="succeeded",
            exit_code=0,
            final_metrics=final,
            artifact_path="model.json",
            total_seconds=round(time.monotonic() - started, 3),
        )


def end(service: Service, ended: EndedError) -> int:
    """Tells why, once as a callback and once as the last line; the exit code."""
    if ended.exit_code != 2:
        error = {
            "type": "system_error",
            "code": ended.code,
            "message": ended.message,
            "details": ended.details,
        }
        status = "stopped" if ended.exit_code == 143 else "failed"
        try:
            service.complete(status=status, exit_code=ended.exit_code, error=error)
        except EndedError as silent:
            write("warning", silent.message, code=silent.code)
    write("error", ended.message, code=ended.code, exit_code=ended.exit_code, details=ended.details)
    return ended.exit_code


def terminate(*_: object) -> None:
    raise EndedError(143, "JOB_CANCELLED", "The trainer was told to end.")


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("fault", nargs="?", default="none", choices=FAULTS)
    parser.add_argument("--wait", type=float, default=5.0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, terminate)
    given = os.environ
    try:
        job = json.loads(Path(given["STILLHOUSE_JOB"]).read_text())
        service = Service(
            given["STILLHOUSE_CALLBACK_URL"],
            given["STILLHOUSE_CALLBACK_TOKEN"],
            given["STILLHOUSE_DATA_URL"],
            int(given["STILLHOUSE_ATTEMPT"]),
            options.wait,
        )
    except (KeyError, OSError, ValueError) as error:
        write("error", f"The environment is not that of a job: {error!r}", code="INVALID_CONFIG", exit_code=3)
        return 3
    try:
        run(service, job, options.fault, options.wait)
    except EndedError as ended:
        return end(service, ended)
    except Exception as error:  # noqa: BLE001  # whatever it is, the service must hear of it
        return end(service, EndedError(1, "TRAINING_FAILED", f"{type(error).__name__}: {error}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
