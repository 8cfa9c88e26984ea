"""What people read when something fails."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [path for folder in ("core", "deployments") for path in sorted((ROOT / folder).rglob("*.py"))]
LIMIT = 100
FILLED = 10  # characters of a typical placeholder; one that is cut off may be as long as it is let


def texts_of_errors(tree: ast.AST) -> Iterator[ast.expr]:
    """What is given to an error first, where it is written, or kept as ``message`` until then."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Error") and node.args:
            yield node.args[0]
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "message":
            yield node.value


def typical_length(text: ast.expr) -> int:
    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
    return sum(len(str(part.value)) if isinstance(part, ast.Constant) else filled(part) for part in parts)


def filled(part: ast.expr) -> int:
    spec = ast.unparse(part.format_spec) if isinstance(part, ast.FormattedValue) and part.format_spec else ""
    cut = re.fullmatch(r"f'\.(\d+)'", spec)
    return int(cut[1]) if cut else FILLED


def test_messages_are_found_and_measured() -> None:
    tree = ast.parse(
        "raise ValueError('abc')\nmessage = f'{x} must be'\nraise errors.DataError(f'a{x}b{y:.3f}')"
        "\nE.DataError(f'{z!r:.40}')"
    )
    assert sorted(typical_length(text) for text in texts_of_errors(tree)) == [3, 18, 22, 40]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_messages_of_errors_are_short(path: Path) -> None:
    texts = texts_of_errors(ast.parse(path.read_text()))
    assert [ast.unparse(text) for text in texts if typical_length(text) >= LIMIT] == []
