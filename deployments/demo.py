"""``make demo``: a real table becomes a teacher, the teacher a student, and both predict, over HTTP.

Starts a Ray cluster and the service on the loopback address for itself, with storage of its own, and stops
and removes all of it in the end. Exits non-zero when anything fails.
"""

import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import yaml
from sklearn.datasets import load_breast_cancer

from deployments.proxy import ENVIRONMENT

START_TIMEOUT_S: Final = 180
CONFIG: Final = Path(__file__).parents[1] / "serve_config.yaml"
TEACHER: Final = {"hidden_dim": 256, "num_hidden_layers": 2}


def main() -> int:
    """Runs the demonstration; returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="stillhouse-demo-") as folder:
        try:
            with running_service(Path(folder)) as url, httpx.Client(base_url=url, timeout=300) as client:
                demonstrate(client)
        except (httpx.HTTPError, DemoError) as error:
            print(f"\nThe demonstration failed: {error}", file=sys.stderr)
            return 1
    return 0


class DemoError(Exception):
    """What went wrong, for the person who typed the command."""


@contextlib.contextmanager
def running_service(folder: Path, **arguments: Mapping[str, object]) -> Iterator[str]:
    """The service of ``serve_config.yaml`` on a free port and a new local cluster, until the block ends.

    Args:
        arguments: Sections of the application's arguments, each laid over the file's.

    Yields:
        Its address.

    Raises:
        DemoError: if it does not become ready.
    """
    config, port = folder / "serve_config.yaml", _free_port()
    config.write_text(yaml.safe_dump(_configured(folder, port, arguments)))
    log = folder / "service.log"
    command = [sys.executable, "-m", "stillhouse", "up", "--address", "local", "--config", str(config)]
    say(f"Starting Ray and the service on http://127.0.0.1:{port} …")
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  # our own command
            command,
            cwd=CONFIG.parent,
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            say("Stopping the service and its cluster …")
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()  # Ray's processes end with it


def demonstrate(client: httpx.Client) -> None:
    """Uploads, trains, distils, predicts and prints the comparison."""
    frame = load_breast_cancer(as_frame=True).frame
    table = frame.to_csv(index=False).encode()
    dataset = _json(client.post("/api/v1/datasets", files={"file": ("breast_cancer.csv", table, "text/csv")}))
    say(f"Uploaded breast_cancer.csv: {dataset['rows']} rows, {len(dataset['columns'])} columns")

    data = {"dataset_id": dataset["dataset_id"], "target_column": "target"}
    teacher = run_job(client, "train", {**data, **TEACHER})
    student = run_job(client, "distill", {**data, "teacher_run_id": teacher["run_id"]})

    features = frame.drop(columns="target")
    answers = {}
    for name, run in (("teacher", teacher), ("student", student)):
        answer = _json(_predict(client, run["run_id"], features))
        right = sum(p == t for p, t in zip(answer["predictions"], frame["target"], strict=True))
        say(f"The {name} predicts all {len(frame)} rows: {right} as labelled")
        answers[name] = {
            "one_row_ms": _median_ms(partial(_predict, client, run["run_id"], features[:1])),
            "all_rows_ms": _median_ms(partial(_predict, client, run["run_id"], features)),
        }
    _print_comparison(student, answers)


def run_job(client: httpx.Client, kind: str, payload: Mapping[str, object]) -> dict[str, Any]:
    """Trains or distils and shows each epoch as it comes.

    Raises:
        DemoError: with the service's own message.
    """
    with client.stream(
        "POST", f"/api/v1/{kind}", json=payload, headers={"Accept": "text/event-stream"}
    ) as response:
        if response.status_code != 200:
            response.read()
            _json(response)
        for line in response.iter_lines():
            if not line.startswith("data: "):
                continue
            report = json.loads(line.removeprefix("data: "))
            if report["event"] == "epoch":
                show_progress(kind, report)
            elif report["event"] == "error":
                raise DemoError(f"{kind}: {report['body']['error']}")
            elif report["event"] == "result":
                body: dict[str, Any] = report["body"]
                metrics = body["metrics"]
                end_progress()
                say(
                    f"{kind}: {body['epochs_run']} epochs in {body['timings_s']['train']:.2f} s on "
                    f"{body['device']}, {metrics['test_metric_name']} {metrics['test_metric_value']:.4f}"
                )
                return body
    raise DemoError(f"{kind}: the connection ended before the result")


def show_progress(kind: str, report: Mapping[str, Any]) -> None:
    """One line that is rewritten on a terminal, and a line an epoch elsewhere."""
    filled = round(30 * report["epoch"] / report["epochs"])
    loss = report["validation_loss"] if report["validation_loss"] is not None else report["train_loss"]
    line = f"  {kind:8}[{'█' * filled:30}] epoch {report['epoch']:3} of {report['epochs']}, loss {loss:.4f}"
    print(f"\r{line}" if sys.stdout.isatty() else line, end="" if sys.stdout.isatty() else "\n", flush=True)


def end_progress() -> None:
    if sys.stdout.isatty():
        print("\r\033[K", end="")


def say(text: str) -> None:
    print(text, flush=True)


def _print_comparison(student: Mapping[str, Any], answers: Mapping[str, Mapping[str, float]]) -> None:
    teacher_metrics, metrics = student["teacher_metrics"], student["metrics"]
    rows = [
        (
            "accuracy (test rows)",
            f"{teacher_metrics['test_metric_value']:.4f}",
            f"{metrics['test_metric_value']:.4f}",
        ),
        ("parameters", f"{student['teacher_param_count']:,}", f"{student['student_param_count']:,}"),
        (
            "file (bytes)",
            f"{student['teacher_model_size_bytes']:,}",
            f"{student['student_model_size_bytes']:,}",
        ),
        *(
            (label, f"{answers['teacher'][key]:.2f}", f"{answers['student'][key]:.2f}")
            for label, key in (
                ("1 row over HTTP (ms)", "one_row_ms"),
                ("569 rows over HTTP (ms)", "all_rows_ms"),
            )
        ),
    ]
    say(f"\n{'':26}{'teacher':>12}{'student':>12}")
    for label, of_teacher, of_student in rows:
        say(f"{label:26}{of_teacher:>12}{of_student:>12}")
    say(
        f"\nThe student's file is {student['size_saved_percent']:.0f} % smaller, with "
        f"{student['param_saved_percent']:.0f} % fewer parameters, and it agrees with its teacher on "
        f"{100 * student['fidelity']:.1f} % of the test rows.\n"
    )


def _predict(client: httpx.Client, run_id: str, features: Any) -> httpx.Response:  # noqa: ANN401  # a DataFrame
    return client.post("/api/v1/predict", json={"run_id": run_id, "columns": features.to_dict("list")})


def _median_ms(call: Callable[[], httpx.Response], times: int = 21) -> float:
    def once() -> float:
        started = time.perf_counter()
        _json(call())
        return 1000 * (time.perf_counter() - started)

    return statistics.median(once() for _ in range(times))


def _json(response: httpx.Response) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    if response.is_error:
        raise DemoError(f"{response.status_code} {body.get('error') or body.get('detail')}")
    return body


def _configured(folder: Path, port: int, changes: Mapping[str, Mapping[str, object]]) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    config["http_options"]["port"] = port
    arguments = config["applications"][0]["args"]
    arguments["storage_url"] = f"file://{folder}/storage"
    arguments["data_roots"] = [f"{folder}/data"]
    arguments["jobs"] = {"database_url": f"sqlite:///{folder}/jobs.db"}
    for section, changed in changes.items():
        arguments[section] = {**arguments.get(section, {}), **changed}
    return config


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoError(f"the service did not start:\n{_tail(log)}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        time.sleep(0.5)
    raise DemoError(f"the service was not ready after {START_TIMEOUT_S} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


if __name__ == "__main__":
    sys.exit(main())
