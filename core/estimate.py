"""What memory a training takes, and what there is. Free of torch, so that the ingress may ask too.

Axes: N rows of the table, F features, B rows of a batch, H hidden units, C outputs, P weights.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core.architecture import Architecture

FLOAT: Final = 4  # bytes of a float32
POSITION: Final = 8  # and of an int64
EVALUATION_ROWS: Final = 16_384  # of a block whose outputs are computed at once


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a training holds at its peak: a lower bound, so that what fits is never refused.

    Attributes:
        table: Features, targets and row numbers.
        weights: With their gradients, Adam's moments and the best so far.
        batch: What is computed from a batch, or in the evaluation.
    """

    table: int
    weights: int
    batch: int

    @property
    def total(self) -> int:
        return self.table + self.weights + self.batch

    @property
    def advice(self) -> str:
        """What to lower, by what weighs most."""
        advice = {
            "send fewer rows or columns": self.table,
            "lower hidden_dim": self.weights,
            "lower batch_size": self.batch,
        }
        return max(advice, key=advice.__getitem__)


def training_need(
    architecture: Architecture, *, rows: int, train_rows: int, batch_size: int, watched: bool, on_cuda: bool
) -> Need:
    """Memory of one training, on the device where it runs.

    Args:
        watched: Whether the best weights are kept beside the present ones.
    """
    a, block = architecture, min(EVALUATION_ROWS, rows)
    full = min(batch_size, train_rows)
    rest = train_rows % full if train_rows % full > 1 else 0
    sizes = (full,) if on_cuda else (full, rest)  # the flat step keeps buffers for both sizes of an epoch
    learning = sum(_batch_floats(a, size, on_cuda=on_cuda) for size in sizes)
    evaluating = 2 * block * max(a.hidden_dim, a.outputs) + 2 * train_rows * a.outputs
    return Need(
        table=rows * (a.inputs * FLOAT + POSITION) + 2 * train_rows * POSITION,
        weights=(5 if watched else 4) * weight_count(a) * a.members * FLOAT,
        batch=max(learning, evaluating) * FLOAT,
    )


def weight_count(a: Architecture) -> int:
    """P, with running statistics."""
    if a.kind == "linear":
        return (a.inputs + 1) * a.outputs
    square, norm = a.hidden_dim * (a.hidden_dim + 1), 4 * a.hidden_dim if a.batch_norm else 0
    ends = (a.inputs + 1) * a.hidden_dim + (a.hidden_dim + 1) * a.outputs
    if a.kind == "mlp":
        return ends + (a.num_hidden_layers - 1) * square + a.num_hidden_layers * norm
    return ends + a.num_hidden_layers * (2 * square + norm) + norm


def _batch_floats(a: Architecture, rows: int, *, on_cuda: bool) -> int:
    """What one batch leaves until its gradients are known: inputs, outputs of the layers, and masks."""
    masks = (2 if on_cuda else 1) * (a.dropout > 0)
    of_layer = (1 if a.kind == "mlp" else 2) + a.batch_norm + masks
    hidden = a.num_hidden_layers * of_layer + (a.kind == "resnet")
    return rows * (a.inputs + hidden * a.hidden_dim + 2 * a.outputs)


def available_bytes(root: Path = Path("/")) -> int | None:
    """What this process may still take without another giving it up; None where the system does not tell.

    The least of what the machine has left, swap included, and of what each control group above it allows
    (versions 1 and 2), with the file cache that it would give back.
    """
    machine = _table(root / "proc/meminfo")
    if "MemAvailable" not in machine:
        return None
    swap = machine.get("SwapFree", 0) * 1024
    return min([machine["MemAvailable"] * 1024 + swap, *(left + swap for left in _left_in_groups(root))])


def _left_in_groups(root: Path) -> Iterator[int]:
    for folder, (limit, usage, cache) in _groups(root):
        try:
            most, used = (int((folder / name).read_text()) for name in (limit, usage))
        except (OSError, ValueError):  # no such group here, or no limit: "max"
            continue
        yield max(0, most - used + _table(folder / "memory.stat").get(cache, 0))


def _groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The control groups of this process, each with those above it, and what their files are called."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        names = _VERSION_1 if controllers else _VERSION_2
        here = Path(path.lstrip("/"))
        for group in (here, *here.parents):  # in a container the mount itself may be the group
            yield mount / group, names


_VERSION_1: Final = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2: Final = ("memory.max", "memory.current", "inactive_file")


def _table(path: Path) -> Mapping[str, int]:
    """Lines of a name and a number."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.replace(":", " ").split()[:2] for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
