"""Results as Markdown: a section a subject, each between two marks of its own in README.md."""

import os
import platform
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True)
class Target:
    """What has to hold, and what was found.

    Attributes:
        limit, measured: As the reader sees them, with their unit.
    """

    claim: str
    limit: str
    measured: str
    met: bool


@dataclass(frozen=True, slots=True)
class Table:
    """Attributes:
    note: A line above the table.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """The results of one subject.

    Attributes:
        about: What is compared, and how.
        packages: Whose versions matter, besides Python and Stillhouse.
        started_load: The machine's load average when measuring began: others' work makes times longer.
    """

    name: str
    title: str
    about: str
    targets: Sequence[Target]
    tables: Sequence[Table]
    packages: Sequence[str]
    started_load: float


def load_average() -> float:
    """Over the last minute."""
    return os.getloadavg()[0]


def to_text(section: Section, *, command: str) -> str:
    """The section as Markdown, its targets first."""
    parts = [f"## {section.title}", section.about]
    if section.targets:
        rows = [(t.claim, t.limit, t.measured, "yes" if t.met else "**no**") for t in section.targets]
        parts.append(_markdown(("target", "limit", "measured", "met"), rows))
    for table in section.tables:
        parts += [table.note] if table.note else []
        parts.append(_markdown(table.heads, table.rows))
    parts.append(
        f"Measured on {datetime.now(UTC):%Y-%m-%d} with `{command}` on {machine()}; "
        f"load average at the start {section.started_load:.1f}. {versions(section.packages)}."
    )
    return "\n\n".join(parts)


def replace_section(document: str, name: str, text: str) -> str:
    """The document with what lies between the marks of ``name`` replaced; appended where there are none.

    >>> replace_section("Intro", "x", "new").splitlines()
    ['Intro', '', '<!-- begin x -->', '', 'new', '', '<!-- end x -->']
    >>> replace_section("a<!-- begin x -->old<!-- end x -->b", "x", "new").splitlines()[-1]
    '<!-- end x -->b'
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, found, rest = document.partition(begin)
    if not found:
        return f"{document.rstrip()}\n\n{begin}\n\n{text}\n\n{end}\n"
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"


def machine() -> str:
    """CPU model, cores, memory and GPU."""
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{_cpu_model()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB memory, {gpu}"


def versions(packages: Iterable[str]) -> str:
    named = [f"{package} {_version(package)}" for package in packages]
    return ", ".join([f"Python {platform.python_version()}", f"Stillhouse {_own_version()}", *named])


def _own_version() -> str:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    return str(project["project"]["version"])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
