"""The README's code blocks run as they stand, against the live service."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHOWN = {
    0: ("test accuracy", "fidelity", "wine-student", '"run_id"', "RUN_NOT_FOUND"),
    2: ('"status":"ok"', '"prediction","probability_0"', "event: result"),
}
pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def folder(service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data root of the service, where the blocks write ``wine.csv``."""
    return service.folder / "data"


def test_readme_has_the_walks_it_promises() -> None:
    assert [language for language, _ in BLOCKS] == ["bash", "python", "bash", "python", "python"]


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_block_runs(service, folder: Path, index: int, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    language, code = BLOCKS[index]
    code = code.replace("http://127.0.0.1:8000", service.url)
    monkeypatch.chdir(folder)
    if language == "python":
        if not Path("wine.csv").exists():
            write_wine()
        exec(compile(code, f"README block {index}", "exec"), {})  # noqa: S102
        assert capsys.readouterr().out.strip()
        return
    assert shutil.which("curl"), "the README's walk needs curl"
    monkeypatch.setenv("STILLHOUSE_URL", service.url)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    local = code.replace(".venv/bin/python", "python").replace(".venv/bin/stillhouse", "python -m stillhouse")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", local],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for shown in SHOWN[index]:
        assert shown in done.stdout


def write_wine() -> None:
    from sklearn.datasets import load_wine

    load_wine(as_frame=True).frame.to_csv("wine.csv", index=False)
