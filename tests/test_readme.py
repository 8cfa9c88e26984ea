"""What the README says of errors is what the catalogue and the command line say."""

import re
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from core.catalogue import CATALOGUE
from core.errors import class_of
from core.jobs.exits import ENDED_BY_SIGNAL, EXITS
from deployments.telemetry.metrics import METRICS
from deployments.webhooks import signature
from stillhouse.command_line.main import EXIT_CODES_HELP
from stillhouse.command_line.output import EXIT_CODES

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_table_of_errors_is_the_catalogue_of_the_tabular_core() -> None:
    expected = defaultdict(set)
    for entry in CATALOGUE.values():
        if class_of(entry.code).__module__ == "core.errors.platform":
            expected[entry.status].add(entry.code)
    rows = re.findall(r"^\| (\d{3}) \| (.+?) \|", README, re.MULTILINE)
    assert {int(status): set(re.findall(r"`(\w+)`", codes)) for status, codes in rows} == expected


def test_table_of_exit_codes_is_that_of_the_command() -> None:
    told = [line.split(maxsplit=1) for line in EXIT_CODES_HELP.splitlines()[2:]]
    rows = [f"| {code} | {meaning} |" for code, meaning in told]
    assert [line for line in README.replace("`", "").splitlines() if line in rows] == rows
    assert {(str(code), str(error_type)) for error_type, code in EXIT_CODES.items()} <= {
        (code, meaning.partition(":")[0]) for code, meaning in told
    }


def test_table_of_metrics_is_that_of_the_code() -> None:
    rows = [line for line in README.splitlines() if line.startswith("| `ray_")]
    assert rows == [
        f"| `ray_{m.name}` | {m.kind} | "
        f"{', '.join(f'`{label}`' for label in m.labels) or '–'} | {m.description} |"
        for m in METRICS.values()
    ]


def test_signature_is_checked_as_the_readme_says() -> None:
    [code] = re.findall(r"```py\n(.*?)```", README, re.DOTALL)
    shown: dict[str, Callable[..., bool]] = {}
    exec(compile(code, "README", "exec"), shown)  # noqa: S102
    is_genuine, now = shown["is_genuine"], int(time.time())
    header = signature(b"secret", b"{}", now)
    assert is_genuine("secret", header, b"{}")
    assert not is_genuine("secret", header, b"{ }")
    assert not is_genuine("another", header, b"{}")
    assert not is_genuine("secret", signature(b"secret", b"{}", now - 301), b"{}")


def test_exit_codes_of_trainers_are_those_of_the_code() -> None:
    told = README.split("## Callbacks")[1].split("## Errors")[0].split("its exit\ncode: ")[1]
    for code, error_class in EXITS.items():
        if code not in (126, 127, *ENDED_BY_SIGNAL):
            assert re.search(rf"\b{code}\b[^;`]*`{error_class.code}`", told), code
