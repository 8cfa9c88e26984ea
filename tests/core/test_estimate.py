"""What a training is said to need, against what it is built of and against what it used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.architecture import Architecture
from core.errors import CudaOutOfMemoryError, HostOutOfMemoryError
from core.estimate import Need, available_bytes, training_need, weight_count
from core.memory import require_room
from core.models import build_network

CPU = torch.device("cpu")
GIB = 2**30


@st.composite
def architectures(draw):
    inputs, outputs = draw(st.integers(1, 20)), draw(st.integers(1, 5))
    kind = draw(st.sampled_from(["linear", "mlp", "resnet"]))
    if kind == "linear":
        return Architecture(kind, inputs, outputs, 0, 0, 0.0, batch_norm=False)
    width, depth, norm = draw(st.integers(1, 20)), draw(st.integers(1, 4)), draw(st.booleans())
    return Architecture(kind, inputs, outputs, width, depth, draw(st.sampled_from([0.0, 0.5])), norm)


@given(architectures())
def test_weights_are_counted_as_the_network_has_them(architecture):
    state = build_network(architecture).state_dict()
    counted = [tensor.numel() for name, tensor in state.items() if "num_batches" not in name]
    assert weight_count(architecture) == sum(counted)


@given(architectures(), st.integers(2, 10**7), st.integers(2, 65_536), st.booleans(), st.booleans())
def test_more_rows_wider_tables_and_larger_batches_never_need_less(a, rows, batch_size, watched, on_cuda):
    def need(architecture=a, rows=rows, **changes):
        sizes = {"batch_size": batch_size, "watched": watched, "on_cuda": on_cuda} | changes
        return training_need(architecture, rows=rows, train_rows=rows, **sizes)

    least = need()
    assert min(least.table, least.weights, least.batch) > 0
    assert need(rows=2 * rows).table > least.table
    # twice the rows of a batch may leave no smaller one at the end of an epoch, which has buffers of its own
    assert need(batch_size=2 * batch_size, on_cuda=True).batch >= need(on_cuda=True).batch
    assert need(watched=True).weights >= need(watched=False).weights


SIZES = {
    "rows": {"rows": 200_000, "columns": 100, "classes": 0, "batch_size": 8192, "hidden_dim": 16},
    "batch": {"rows": 16_000, "columns": 5, "classes": 3, "batch_size": 8192, "hidden_dim": 512},
    "weights": {"rows": 500, "columns": 5, "classes": 3, "batch_size": 64, "hidden_dim": 2048},
    "classes": {"rows": 60_000, "columns": 4, "classes": 200, "batch_size": 4096, "hidden_dim": 32},
    "resnet": {"rows": 16_000, "columns": 5, "classes": 0, "batch_size": 8192, "hidden_dim": 384},
}


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs the peak of Linux")
@pytest.mark.parametrize("name", SIZES)
def test_the_estimate_is_below_what_was_used_and_near_it(name, tmp_path):
    """Below, for what fits must not be refused."""
    mode = "tabresnet" if name == "resnet" else "mlp_dense"
    fields = SIZES[name] | {"training_mode": mode, "epochs": 1, "num_hidden_layers": 5}
    script = Path(__file__).with_name("peak.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(tmp_path), json.dumps(fields)]
    answer = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    found = json.loads(answer.stdout)
    assert 0.7 < found["need"] / found["used"] < 1, found


# ── What there is ───────────────────────────────────────────────────────────────────────────────────────────


def system(root, files, available=8, swap=0):
    """A file system with what the kernel tells there; memory in GiB."""
    meminfo = f"MemTotal: 999 kB\nMemAvailable: {available * 2**20} kB\nSwapFree: {swap * 2**20} kB\n"
    for name, text in {"proc/meminfo": meminfo, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def group(limit, used, cache=0):
    return {
        "memory.max": str(limit),
        "memory.current": str(used * GIB),
        "memory.stat": f"anon 5\ninactive_file {cache * GIB}\n",
    }


def version_2(path, **files):
    return {f"sys/fs/cgroup{path}/{name}": text for name, text in group(**files).items()}


def version_1(path, limit, used, cache=0):
    folder = f"sys/fs/cgroup/memory{path}"
    return {
        f"{folder}/memory.limit_in_bytes": str(limit),
        f"{folder}/memory.usage_in_bytes": str(used * GIB),
        f"{folder}/memory.stat": f"inactive_file 1\ntotal_inactive_file {cache * GIB}\n",
    }


IN_2 = {"proc/self/cgroup": "0::/pod/box\n"}
IN_1 = {"proc/self/cgroup": "3:cpu,cpuacct:/other\n4:memory:/pod/box\n0::/\n"}
SYSTEMS = {
    "no group": ({}, 8),
    "no limit": (IN_2 | version_2("/pod/box", limit="max", used=1), 8),
    "a limit above what the machine has": (IN_2 | version_2("/pod/box", limit=99 * GIB, used=1), 8),
    "a limit": (IN_2 | version_2("/pod/box", limit=4 * GIB, used=1), 3),
    "file cache is given back": (IN_2 | version_2("/pod/box", limit=4 * GIB, used=3, cache=2), 3),
    "the limit of a group above": (
        IN_2 | version_2("/pod/box", limit="max", used=1) | version_2("/pod", limit=4 * GIB, used=2),
        2,
    ),
    "the mount of a container": (IN_2 | version_2("", limit=4 * GIB, used=2), 2),
    "a group that is over its limit": (IN_2 | version_2("/pod/box", limit=GIB, used=2), 0),
    "version 1": (IN_1 | version_1("/pod/box", limit=4 * GIB, used=3, cache=1), 2),
    "version 1 without a limit": (IN_1 | version_1("/pod/box", limit=2**63 - 4096, used=3), 8),
    "version 1 in a container": (IN_1 | version_1("", limit=4 * GIB, used=1), 3),
    "the group of another controller": ({"proc/self/cgroup": "4:cpu:/\n"} | version_1("", GIB, 1), 8),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_available_is_the_least_of_what_machine_and_groups_leave(tmp_path, name):
    files, expected = SYSTEMS[name]
    assert available_bytes(system(tmp_path, files)) == expected * GIB


def test_swap_counts_for_machine_and_groups(tmp_path):
    files = IN_2 | version_2("/pod/box", limit=4 * GIB, used=1)
    assert available_bytes(system(tmp_path, files, swap=2)) == 5 * GIB


def test_a_system_that_does_not_tell_refuses_nothing(tmp_path):
    assert available_bytes(tmp_path) is None


def test_this_machine_has_room_for_a_small_training():
    require_room(Need(10**6, 10**6, 10**6), 64, CPU)


# ── Refusals ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def room(monkeypatch):
    """Sets what this machine has left."""
    return lambda size: monkeypatch.setattr("core.memory.available_bytes", lambda: size)


@pytest.mark.parametrize(
    ("need", "advice"),
    [
        (Need(3 * GIB, GIB, 0), "send fewer rows or columns"),
        (Need(GIB, 3 * GIB, 0), "lower hidden_dim"),
        (Need(0, GIB, 3 * GIB), "lower batch_size"),
    ],
)
def test_what_cannot_fit_is_refused_with_its_numbers(room, need, advice):
    room(2 * GIB)
    with pytest.raises(HostOutOfMemoryError) as caught:
        require_room(need, 64, CPU)
    assert caught.value.message == f"Training needs 4.00 GiB and 2.00 are free: {advice}."
    assert caught.value.details == {
        "batch_size": 64,
        "needed_bytes": 4 * GIB,
        "available_bytes": 2 * GIB,
        "table_bytes": need.table,
        "weights_bytes": need.weights,
        "batch_bytes": need.batch,
    }


def test_what_fits_to_the_byte_is_not_refused(room):
    for size in (None, 4 * GIB, 3 * GIB):
        room(size)
        require_room(Need(4 * GIB, 0, 0), 64, CPU, given_back=GIB)
    room(3 * GIB - 1)
    with pytest.raises(HostOutOfMemoryError):
        require_room(Need(4 * GIB, 0, 0), 64, CPU, given_back=GIB)


def test_a_training_that_cannot_fit_is_refused_before_its_memory_is_taken(engine, room):
    table = engine.table("five")
    teacher = engine.trained("five").teacher
    room(10**6)
    with pytest.raises(HostOutOfMemoryError, match=r"needs 2\.\d\d GiB and 0\.00 are free: lower hidden_dim"):
        engine.train(table, hidden_dim=4096, num_hidden_layers=8)
    with pytest.raises(HostOutOfMemoryError, match=r"needs 2\.\d\d GiB and 0\.00 are free: lower hidden_dim"):
        engine.distill(table, teacher, student_hidden_dim=4096, student_num_hidden_layers=8)
    room(10**9)
    engine.train(table)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_cannot_fit_a_gpu_is_refused_with_its_numbers():
    with pytest.raises(CudaOutOfMemoryError, match="GiB of the GPU and"):
        require_room(Need(0, 0, 2**50), 64, torch.device("cuda:0"))
