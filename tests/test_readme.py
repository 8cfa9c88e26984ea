"""What the README says of the catalogue is what the catalogue says."""

from pathlib import Path

from core.catalogue import CATALOGUE

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_table_of_errors_is_the_catalogue() -> None:
    rows = [line for line in README.splitlines() if line.startswith("| `") and line.count("|") == 6]
    expected = [
        f"| `{e.code}` | {e.status} | {e.type} | "
        f"{f'after {e.retry_after_s} s' if e.retryable else 'no'} | {e.suggested_action} |"
        for e in CATALOGUE.values()
    ]
    assert rows == expected
