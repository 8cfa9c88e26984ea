"""The command line against the service in one process: results on stdout, errors with advice, exit codes."""

import functools
import io
import subprocess
import sys
from pathlib import Path

import click
import pandas as pd
import pytest
from click.testing import CliRunner
from rich.console import Console

import stillhouse
from core.bundles import Bundle
from core.catalogue import CATALOGUE, ErrorType
from core.errors import StillhouseError
from deployments.routes.examples import EXAMPLE_CSV
from stillhouse.answers import EpochReport
from stillhouse.command_line.main import command
from stillhouse.command_line.output import EXIT_CODES
from stillhouse.progress import ProgressBar
from tests.client.service import Scripted
from tests.client.test_failures import ERRORS, action_of, failing

QUICK = ["--epochs", "3", "--hidden-dim", "8", "--num-hidden-layers", "1"]
LISTING = ("jobs", "runs", "models", "datasets", "errors")


@pytest.fixture
def model(terminal) -> str:
    terminal("train", "trees.csv", "--target", "kind", "--model-id", "oaks", *QUICK)
    return "oaks"


def every_command(group: click.Group = command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, part in group.commands.items():
        found += every_command(part, (*path, name)) if isinstance(part, click.Group) else [(*path, name)]
    return found


# ── Work ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_train_uploads_the_file_and_shows_the_run(terminal):
    shown = terminal("train", "trees.csv", "--target", "kind", *QUICK).stdout
    [run] = terminal.json("runs")["data"]
    assert run["run_id"] in shown
    assert "test accuracy" in shown
    assert [dataset["name"] for dataset in terminal.json("datasets")["data"]] == ["trees.csv"]


def test_train_prints_all_of_the_answer_as_json(terminal):
    answer = terminal.json("train", "trees.csv", "--target", "kind", *QUICK, "--exclude-columns", "width")
    assert answer["epochs_run"] == 3
    columns = terminal.json("runs", "show", answer["run_id"])["schema"]["columns"]
    assert "width" not in {column["name"] for column in columns if column["role"] == "feature"}


def test_uploaded_table_is_named_by_its_id(terminal):
    dataset = terminal.json("datasets", "upload", "trees.csv")["dataset_id"]
    assert terminal.json("train", "--dataset-id", dataset, "--target", "kind", *QUICK)["epochs_run"] == 3


def test_a_sweep_is_json_and_shows_what_was_kept(terminal):
    sweep = '{"learning_rate": [0.001, 0.01]}'
    shown = terminal("train", "trees.csv", "--target", "kind", "--sweep", sweep, *QUICK).stdout
    assert "of 2 models" in shown
    done = terminal("train", "trees.csv", "--target", "kind", "--sweep", "0.1", *QUICK, expect=2)
    assert "must be a JSON object" in done.stderr
    wrong = terminal("train", "trees.csv", "--target", "kind", "--sweep", '{"lr": [1]}', *QUICK, expect=3)
    assert "sweep may have learning_rate and dropout" in wrong.stderr


def test_an_ensemble_shows_how_many_it_has(terminal):
    done = terminal.json("train", "trees.csv", "--target", "kind", "--ensemble-size", "2", *QUICK)
    assert [member["kept"] for member in done["members"]] == [True, True]


def test_distil_compares_with_the_teacher(terminal, model):
    shown = terminal("distill", "trees.csv", "--target", "kind", "--teacher-model-id", model, "--epochs", "3")
    assert "fidelity" in shown.stdout
    assert "teacher's accuracy" in shown.stdout


@pytest.mark.parametrize("wanted", ["csv", "parquet"])
def test_predict_turns_a_file_into_a_file(terminal, model, wanted):
    terminal("predict", "trees.csv", "--model-id", model, "-o", f"out.{wanted}")
    read = pd.read_csv if wanted == "csv" else pd.read_parquet
    assert list(read(f"out.{wanted}").columns) == ["prediction", "probability_ash", "probability_oak"]
    assert not [file for file in Path().iterdir() if "partial" in file.name]


def test_predict_wants_to_know_a_format_that_no_ending_tells(terminal, model):
    done = terminal("predict", "trees.csv", "--model-id", model, "-o", "out.xlsx", expect=2)
    assert "--output-format" in done.stderr
    terminal("predict", "trees.csv", "--model-id", model, "-o", "out.xlsx", "--output-format", "csv")


@pytest.mark.parametrize("sent", ["csv", "parquet"])
def test_predict_turns_stdin_into_stdout(terminal, model, sent):
    frame = pd.read_csv("trees.csv")
    given = frame.to_csv(index=False).encode() if sent == "csv" else frame.to_parquet()
    done = terminal("predict", "--model-id", model, "--input-format", sent, given=given)
    read = pd.read_csv if sent == "csv" else pd.read_parquet
    assert len(read(io.BytesIO(done.stdout_bytes))) == len(frame)


def test_predict_as_json_is_the_answer_of_the_service(terminal, model):
    answer = terminal.json("predict", "trees.csv", "--model-id", model)
    assert (len(answer["predictions"]), answer["classes"]) == (60, ["ash", "oak"])


def test_predict_warns_beside_its_result(terminal, model):
    Path("violet.csv").write_text(EXAMPLE_CSV.replace("red", "violet"))
    done = terminal("predict", "violet.csv", "--model-id", model)
    assert "Warning: " in done.stderr
    assert "colour" in done.stderr
    assert done.stdout.startswith('"prediction"')


def test_runs_are_saved_downloaded_and_deleted(terminal):
    run_id = terminal.json("train", "trees.csv", "--target", "kind", *QUICK)["run_id"]
    assert terminal.json("runs", "save", run_id, "--model-id", "kept")["model_id"] == "kept"
    terminal("runs", "download", run_id, "-o", "run.safetensors")
    assert Bundle.from_bytes(Path("run.safetensors").read_bytes()).classes == ("ash", "oak")
    terminal("runs", "delete", run_id)
    assert terminal("runs").stdout == "There are none.\n"


def test_models_are_shown_exported_and_deleted(terminal, model):
    assert "mlp_dense" in terminal("models").stdout
    assert "ash, oak" in terminal("models", "show", model).stdout
    stored = terminal("models", "export", model, "-o", "-").stdout_bytes
    assert Bundle.from_bytes(stored).classes == ("ash", "oak")
    terminal("models", "delete", model)
    assert terminal.json("models") == {"data": []}


def test_datasets_are_shown_previewed_and_deleted(terminal):
    dataset = terminal.json("datasets", "upload", "trees.csv")["dataset_id"]
    assert "colour" in terminal("datasets", "show", dataset).stdout
    assert len(terminal.json("datasets", "preview", dataset, "--rows", "2")["rows"]) == 2
    header, first = terminal("datasets", "preview", dataset, "--rows", "1").stdout.splitlines()
    assert (header.split(), first.split()) == (
        EXAMPLE_CSV.splitlines()[0].split(","),
        [str(value) for value in pd.read_csv("trees.csv").iloc[0]],
    )
    terminal("datasets", "delete", dataset)
    assert terminal.json("datasets", "list") == {"data": []}


def test_catalogue_of_errors_is_shown_whole_and_by_code(terminal):
    assert {entry["code"] for entry in terminal.json("errors")["data"]} == CATALOGUE.keys()
    shown = terminal("errors", "run_not_found").stdout
    assert CATALOGUE["RUN_NOT_FOUND"].suggested_action in shown
    assert "INVALID_TOKEN" not in shown


def test_tables_in_a_pipe_are_neither_cut_off_nor_filled_up(terminal, model):
    lines = terminal("errors").stdout.splitlines()
    assert len(lines) == len(CATALOGUE) + 1
    assert all(line == line.rstrip() for line in lines)
    assert "\x1b" not in "".join(lines)


# ── Errors ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_exit_code_says_who_has_to_act(terminal_over, error):
    terminal = terminal_over(Scripted(failing(error("This must hold.", allow="GET"))))
    entry = CATALOGUE[error.code]
    done = terminal("models", expect=EXIT_CODES[entry.type])
    assert done.stdout == ""
    assert "Error: This must hold.\n" in done.stderr
    assert action_of(error) in done.stderr
    assert f"({error.code}, {entry.type}, request request-7)" in done.stderr


def test_exit_codes_differ_and_leave_those_of_the_shell_alone():
    assert EXIT_CODES.keys() == set(ErrorType)
    assert len({0, 1, 2, 130, *EXIT_CODES.values()}) == 4 + len(ErrorType)


def test_one_error_is_explained_with_message_and_status(terminal):
    shown = terminal("errors", "QUEUE_FULL").stdout
    assert CATALOGUE["QUEUE_FULL"].message in shown
    assert " 503" in shown
    [entry] = terminal.json("errors", "QUEUE_FULL")["data"]
    assert (entry["status"], entry["message"]) == (503, CATALOGUE["QUEUE_FULL"].message)


class Connections:
    """Remembers where clients were told to connect, and goes nowhere."""

    def __init__(self):
        self.asked = []

    def __call__(self, url, token, **options):
        self.asked.append((url, token))
        raise ValueError("nowhere")


@pytest.mark.parametrize(
    ("args", "connected"),
    [
        (["--url", "http://a", "--token", "t", "models"], ("http://a", "t")),
        (["models", "--url", "http://b", "--token", "u"], ("http://b", "u")),
        (["--url", "http://a", "--token", "t", "models", "--url", "http://b"], ("http://b", "t")),
        (["models"], ("http://env", None)),
    ],
)
def test_address_may_stand_before_the_command_or_behind_it(args, connected):
    connections = Connections()
    CliRunner().invoke(command, args, obj=connections, env={"STILLHOUSE_URL": "http://env"})
    assert connections.asked == [connected]


def test_errors_are_json_on_stdout_where_it_is_asked_for(terminal):
    error = terminal.json("runs", "show", "nobody", expect=4)["error"]
    assert (error["code"], error["type"], error["status"]) == ("RUN_NOT_FOUND", "permanent", 404)
    assert error["suggested_action"] == CATALOGUE["RUN_NOT_FOUND"].suggested_action
    assert error["request_id"]


@pytest.mark.parametrize(
    "args",
    [
        ("runs", "--nothing"),
        ("train", "missing.csv", "--target", "kind"),
        ("train", "trees.csv"),
        ("train", "--target", "kind"),
        ("train", "trees.csv", "--data-path", "trees.csv", "--target", "kind"),
        ("train", "trees.csv", "--target", "kind", "--epochs", "many"),
        ("predict", "trees.csv"),
        ("predict", "trees.csv", "--run-id", "a", "--model-id", "b"),
        ("errors", "NO_SUCH_CODE"),
        ("models", "--url", "not an address"),
        ("nothing",),
    ],
)
def test_commands_that_are_not_written_correctly_are_usage_errors(terminal, args):
    assert "Error: " in terminal(*args, expect=2).stderr
    error = terminal.json(*args, expect=2)["error"]
    assert error["type"] == "usage"
    assert error["message"]


def test_output_that_cannot_be_written_is_said(terminal, model):
    done = terminal("models", "export", model, "-o", "nowhere/model.safetensors", expect=2)
    assert "nowhere" in done.stderr


def test_service_that_cannot_be_reached_is_transient():
    connect = functools.partial(stillhouse.Client, sleep=lambda _: None)
    done = CliRunner().invoke(command, ["models", "--url", "http://127.0.0.1:1"], obj=connect)
    assert done.exit_code == EXIT_CODES[ErrorType.TRANSIENT]
    assert "stillhouse up" in done.stderr


def test_interruption_has_its_own_exit_code():
    def connect(*_: object, **__: object):
        raise KeyboardInterrupt

    done = CliRunner().invoke(command, ["models"], obj=connect)
    assert (done.exit_code, done.stderr) == (130, "Stopped.\n")


# ── The command ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
def test_every_command_explains_itself_and_prints_json(path):
    done = CliRunner().invoke(command, [*path, "--help"])
    assert done.exit_code == 0
    assert "--json" in done.stdout
    assert done.stdout.count("\n\n") >= 2


def test_help_names_every_exit_code():
    shown = CliRunner().invoke(command, ["--help"]).stdout
    for error_type, exit_code in EXIT_CODES.items():
        assert f"  {exit_code}    {error_type}: " in shown


@pytest.mark.parametrize("name", LISTING)
def test_lists_need_no_further_word(terminal, name):
    assert (
        terminal.json(name)["data"]
        == terminal.json(*((name, "list") if name != "errors" else (name,)))["data"]
    )


def test_address_and_token_come_from_options_or_the_environment(portal):
    told = []

    def connect(url, token, **_):
        told.append((url, token))
        raise StillhouseError("Enough is known.")

    environment = {"STILLHOUSE_URL": "http://one", "STILLHOUSE_TOKEN": "first"}
    for args in ([], ["--url", "http://two", "--token", "second"]):
        CliRunner().invoke(command, ["models", *args], obj=connect, env=environment)
    assert told == [("http://one", "first"), ("http://two", "second")]


def test_progress_bar_shows_epoch_and_loss():
    screen = io.StringIO()
    with ProgressBar("train", Console(file=screen, force_terminal=True, width=100)) as bar:
        bar(EpochReport(3, 10, 0.75, None, 0.1))
        bar(EpochReport(9, 10, 0.5, 0.25, 0.1))
    assert "epoch 9 of 10, loss 0.2500" in screen.getvalue()


def test_client_and_command_load_neither_ray_nor_torch_nor_the_service():
    code = (
        "import sys, stillhouse.command_line.main\n"
        "print(sorted({'ray', 'torch', 'deployments', 'pandas', 'pyarrow', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
