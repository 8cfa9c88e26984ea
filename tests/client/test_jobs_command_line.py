"""``stillhouse jobs`` against the service in one process, and what it draws."""

import functools
import io
import json
from pathlib import Path

import httpx
import pytest
from rich.console import Console

import stillhouse
from core.catalogue import CATALOGUE
from stillhouse.command_line.output import EXIT_CODES
from stillhouse.curve import drawn
from stillhouse.job_answers import Job, JobMetrics, event_of
from stillhouse.job_display import JobDisplay, duration
from tests.client.service import Crossing, Terminal, over
from tests.client.test_command_line import QUICK

NOW = "2026-01-02T03:04:05.678Z"
TRAIN = ("jobs", "train", "trees.csv", "--target", "kind", *QUICK)
ORDER = {"kind": "train", "dataset_id": "csv-none", "target_column": "kind"}


@pytest.fixture
def job_id(terminal) -> str:
    """Of a job that has ended well."""
    job_id = terminal.json(*TRAIN)["job_id"]
    terminal("jobs", "watch", job_id)
    return job_id


@pytest.fixture
def order() -> str:
    """A job that cannot end well, in a file."""
    Path("order.json").write_text(json.dumps(ORDER))
    return "order.json"


# ── Filing ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_filing_says_where_the_job_stands_and_how_to_watch_it(terminal):
    done = terminal(*TRAIN, "--experiment-name", "trees", "--tags", "a", "--tags", "b")
    [job] = terminal.json("jobs")["data"]
    assert job["job_id"] in done.stdout
    assert f"stillhouse jobs watch {job['job_id']}" in done.stderr
    assert (job["experiment_name"], job["tags"]) == ("trees", ["a", "b"])


def test_filing_can_watch_at_once(terminal):
    done = terminal(*TRAIN, "--watch")
    assert "running → completed" in done.stderr
    assert "test accuracy" in done.stdout


def test_student_is_filed_too(terminal, job_id):
    teacher = terminal.json("jobs", "show", job_id)["run_id"]
    options = ("--teacher-run-id", teacher, "--epochs", "3", "--watch")
    assert "test accuracy" in terminal("jobs", "distill", "trees.csv", "--target", "kind", *options).stdout


def test_file_that_describes_a_job_is_filed(terminal, order):
    job = terminal.json("jobs", "create", order)
    assert (job["kind"], job["dataset_id"]) == ("train", "csv-none")


def test_refusal_tells_everything_that_is_wrong(terminal):
    wrong = (
        "--target",
        "kind",
        "--dataset-id",
        "x",
        "--epochs",
        "0",
        "--batch-size",
        "0",
        "--priority",
        "99",
    )
    told = terminal("jobs", "train", *wrong, expect=3).stderr
    assert [name for name in ("epochs", "batch_size", "priority") if f"{name} must be" not in told] == []


def test_validation_tells_everything_that_is_wrong_and_files_nothing(terminal, order):
    done = terminal("jobs", "validate", order, expect=EXIT_CODES[CATALOGUE["DATASET_NOT_FOUND"].type])
    assert "csv-none" in done.stdout
    wrong = json.dumps(ORDER | {"epochs": 0, "batch_size": 0}).encode()
    shown = terminal("jobs", "validate", "-", given=wrong, expect=3).stdout
    assert "epochs" in shown
    assert "batch_size" in shown
    assert terminal.json("jobs") == {"data": []}


def test_validation_of_what_is_right_says_so(terminal):
    dataset_id = terminal.json("datasets", "upload", "trees.csv")["dataset_id"]
    Path("right.json").write_text(json.dumps(ORDER | {"dataset_id": dataset_id}))
    assert "can be filed" in terminal("jobs", "validate", "right.json").stderr
    assert terminal.json("jobs", "validate", "right.json")["valid"] is True


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
@pytest.mark.parametrize("name", ["create", "validate"])
def test_file_that_is_no_json_object_is_a_usage_error(terminal, name, content):
    Path("bad.json").write_bytes(content)
    assert "must be" in terminal("jobs", name, "bad.json", expect=2).stderr
    assert terminal.json("jobs", name, "bad.json", expect=2)["error"]["type"] == "usage"


# ── Looking ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_job_is_listed_shown_and_told_about(terminal, job_id):
    assert "100 %" in terminal("jobs", "list", "--status", "completed").stdout
    assert terminal("jobs", "list", "--status", "failed").stdout == "There are none.\n"
    shown = terminal("jobs", "show", job_id).stdout
    assert "test accuracy" in shown
    assert "3 of 3, 100 %" in shown
    assert terminal("jobs", "events", job_id).stdout.count("status_change") == 3
    events = terminal.json("jobs", "events", job_id, "--after", "3")["data"]
    assert [(event["seq"], event["type"]) for event in events] == [(4, "completed")]
    assert terminal("jobs", "checkpoints", job_id).stdout == "There are none.\n"
    assert "error" not in terminal.json("jobs", "logs", job_id)
    terminal("jobs", "logs", job_id, "--follow")


def test_list_ends_where_it_is_told_to(terminal, order):
    ids = [terminal.json("jobs", "create", order)["job_id"] for _ in range(3)]
    assert [job["job_id"] for job in terminal.json("jobs", "--limit", "2")["data"]] == ids[:0:-1]


def test_log_lines_are_printed_as_they_are(terminal_over, job_id, terminal):
    line = {"seq": 4, "attempt": 1, "at": NOW, "level": "warning", "message": "No checkpoint was kept."}
    answer = httpx.Response(200, json={"data": [line], "next_after": 4, "degraded": False})
    terminal = terminal_over(httpx.MockTransport(lambda _: answer))
    [shown] = terminal("jobs", "logs", job_id).stdout.splitlines()
    assert shown.endswith("warning No checkpoint was kept.")
    assert terminal.json("jobs", "logs", job_id)["data"][0]["message"] == line["message"]


# ── Ending and running again ────────────────────────────────────────────────────────────────────────────────


def test_retry_changes_what_its_options_say(terminal, job_id):
    done = terminal("jobs", "retry", job_id, "--epochs", "2", "--watch")
    assert "attempt 2: as it was asked to" in done.stderr
    job = terminal.json("jobs", "show", job_id)
    assert (job["attempt"], job["current_epoch"], job["total_epochs"]) == (2, 2, 2)
    wrong = terminal.json("jobs", "retry", job_id, "--resume-from", "last", expect=4)
    assert wrong["error"]["code"] == "CHECKPOINT_INVALID"


def test_job_that_has_ended_cannot_be_cancelled(terminal, job_id):
    assert "completed" in terminal("jobs", "cancel", job_id, expect=4).stderr


# ── Watching ────────────────────────────────────────────────────────────────────────────────────────────────


def test_watching_tells_states_beside_the_result(terminal):
    job_id = terminal.json(*TRAIN)["job_id"]
    done = terminal("jobs", "watch", job_id)
    assert [line.split(" ", 1)[1] for line in done.stderr.splitlines() if "→" in line] == [
        "pending → running",
        "running → completed",
    ]
    assert "test accuracy" in done.stdout


def test_watching_as_json_prints_each_event_as_a_line(terminal, job_id):
    frames = [json.loads(line) for line in terminal("jobs", "watch", job_id, "--json").stdout.splitlines()]
    assert [frame["seq"] for frame in frames if frame["type"] != "progress"] == [1, 2, 3, 4]
    assert frames[3]["result"]["run_id"]


def test_exit_code_of_watching_a_failed_job_is_that_of_its_error(terminal, order):
    job_id = terminal.json("jobs", "create", order)["job_id"]
    entry = CATALOGUE["DATASET_NOT_FOUND"]
    done = terminal("jobs", "watch", job_id, expect=EXIT_CODES[entry.type])
    assert "csv-none" in done.stderr
    assert entry.suggested_action in done.stderr
    assert f"(DATASET_NOT_FOUND, {entry.type}, request " in done.stderr
    lines = terminal("jobs", "watch", job_id, "--json", expect=EXIT_CODES[entry.type]).stdout.splitlines()
    assert json.loads(lines[-1])["error"]["code"] == "DATASET_NOT_FOUND"
    shown = terminal("jobs", "show", job_id).stdout
    assert entry.suggested_action in shown


def test_watching_nothing_is_not_found(terminal):
    assert "JOB_NOT_FOUND" in terminal("jobs", "watch", "nobody", expect=4).stderr
    [line] = terminal("jobs", "watch", "nobody", "--json", expect=4).stdout.splitlines()
    assert json.loads(line)["error"]["code"] == "JOB_NOT_FOUND"


class Interrupting(httpx.BaseTransport):
    """Somebody types Ctrl-C when the stream of events is asked for."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner

    def handle_request(self, request):
        if "text/event-stream" in request.headers["accept"]:
            raise KeyboardInterrupt
        return self._inner.handle_request(request)


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_interruption_leaves_the_job_and_says_how_to_come_back(portal, service, job_id, options):
    transport = Interrupting(Crossing(portal, over(service)))
    terminal = Terminal(functools.partial(stillhouse.Client, transport=transport))
    done = terminal("jobs", "watch", job_id, *options, expect=130)
    assert done.stderr.endswith(f"The job goes on. Come back with: stillhouse jobs watch {job_id}\n")
    assert terminal.json("jobs", "show", job_id)["status"] == "completed"


# ── Drawing ─────────────────────────────────────────────────────────────────────────────────────────────────


def picture(*series: dict[int, float], steps: int, width: int = 10, height: int = 4) -> list[str]:
    rows, _, _ = drawn(series, steps, width, height)
    return ["".join(character for character, _ in row) for row in rows]


def test_curve_falls_from_the_first_corner_to_the_last_without_a_hole():
    rows, low, high = drawn([{1: 3.0, 50: 1.0}], 50, 10, 4)
    text = ["".join(character for character, _ in row) for row in rows]
    assert (low, high) == (1.0, 3.0)
    assert (len(text), {len(row) for row in text}) == (4, {10})
    assert ord(text[0][0]) & 0x01
    assert ord(text[-1][-1]) & 0x80
    assert all(any(row[x][1] == 0 for row in rows) for x in range(10))


def test_curve_of_half_a_training_fills_half_the_picture():
    for row in picture({1: 2.0, 10: 1.0}, steps=19):
        assert set(row[6:]) == {"\u2800"}


@pytest.mark.parametrize("points", [{}, {1: 5.0}, {1: 5.0, 2: 5.0}, {n: float(n) for n in range(1, 2000)}])
def test_curve_of_any_length_fits(points):
    text = picture(points, steps=max(points, default=1))
    assert (len(text), {len(row) for row in text}) == (4, {10})
    assert ("".join(text).strip("\u2800") == "") == (not points)


def test_two_curves_are_told_apart():
    rows, _, _ = drawn([{1: 1.0, 9: 1.0}, {1: 2.0, 9: 2.0}], 9, 5, 2)
    assert [{owner for _, owner in row} for row in rows] == [{1}, {0}]


def progress(epoch: int, train: object = 0.5, attempt: int = 1, eta_s: float | None = 90.0):
    return event_of(
        {
            "type": "progress",
            "job_id": "j",
            "attempt": attempt,
            "seq": 2,
            "timestamp": NOW,
            "current_epoch": epoch,
            "total_epochs": 50,
            "progress_percent": 2.0 * epoch,
            "metrics": {"train_loss": train, "validation_loss": 0.75, "seconds": 0.1},
            "eta_s": eta_s,
        }
    )


def change(old: str, new: str, **data: object):
    frame = {"type": "status_change", "job_id": "j", "attempt": 1, "seq": 2, "timestamp": NOW}
    return event_of(frame | {"old": old, "new": new} | data)


@pytest.fixture
def job(client) -> Job:
    return client.jobs.train(dataset_id="csv-none", target_column="kind", epochs=50)


def shown(job: Job, *events, terminal: bool) -> str:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=90, color_system=None)
    with JobDisplay(job, JobMetrics(1, ()), console) as display:
        for event in events:
            display.tell(event)
    return screen.getvalue()


def test_terminal_shows_bar_losses_time_to_go_and_curve(job):
    text = shown(job, change("pending", "running"), progress(1), progress(7, 0.25), terminal=True)
    assert "pending → running" in text
    assert "epoch 7 of 50, training 0.25, validation 0.75, 1 min 30 s to go" in text
    assert "━ training loss  ━ validation loss" in text
    assert any("\u2801" <= character <= "\u28ff" for character in text)


def test_pipe_gets_a_line_for_each_tenth_and_no_drawing(job):
    text = shown(job, *map(progress, range(1, 51)), terminal=False)
    assert text.count(" epoch ") == 11
    assert "\x1b" not in text
    assert not any("\u2800" <= character <= "\u28ff" for character in text)


def test_loss_that_is_no_number_is_left_out(job):
    text = shown(job, progress(1, None), progress(2, "NaN"), progress(3, float("nan")), terminal=True)
    assert "training" not in text
    assert "validation 0.75" in text


def test_further_attempt_takes_the_place_of_what_it_does_again(job):
    lost = change("running", "queued", reason="lost", attempt=2)
    text = shown(job, progress(9, 9.0), progress(20, 2.0), lost, progress(9, 1.0, 2), terminal=True)
    assert "attempt 2: its trainer was lost" in text
    assert "epoch 9 of 50, training 1, " in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (59, "59 s"), (60, "1 min 0 s"), (7199, "1 h 59 min")]
)
def test_durations_are_written_for_people(seconds, text):
    assert duration(seconds) == text
