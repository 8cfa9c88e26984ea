"""What the README says of the catalogue is what the catalogue says."""

from pathlib import Path

from core.catalogue import CATALOGUE
from deployments.telemetry.metrics import METRICS

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_table_of_errors_is_the_catalogue() -> None:
    rows = [line for line in README.splitlines() if line.startswith("| `") and line.count("|") == 6]
    expected = [
        f"| `{e.code}` | {e.status} | {e.type} | "
        f"{f'after {e.retry_after_s} s' if e.retryable else 'no'} | {e.suggested_action} |"
        for e in CATALOGUE.values()
    ]
    assert rows == expected


def test_table_of_metrics_is_that_of_the_code() -> None:
    rows = [line for line in README.splitlines() if line.startswith("| `ray_")]
    assert rows == [
        f"| `ray_{m.name}` | {m.kind} | "
        f"{', '.join(f'`{label}`' for label in m.labels) or '–'} | {m.description} |"
        for m in METRICS.values()
    ]
