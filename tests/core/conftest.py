"""Small tables, and models trained on them, for every test of the engine."""

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
import torch

from core.contract import DataSource, DistillRequest, TeacherSource, TrainRequest
from core.distillation import Teacher, distill
from core.exchange import write_arrow
from core.losses import CrossEntropy, Divergence, SoftCrossEntropy
from core.pipeline import train

DEFAULTS = {"target_column": "y", "epochs": 3, "early_stopping_patience": 3, "device": "cpu"}


@dataclass(frozen=True, slots=True)
class Finished:
    """A training that ended: its outcome, its reports and the table it read."""

    outcome: object
    reports: list
    table: pa.Table

    @property
    def bundle(self):
        return self.outcome.bundle

    @property
    def teacher(self):
        return Teacher(self.outcome.bundle, len(self.outcome.file), {"run_id": "r1"})


class Engine:
    """Trains and distils on tables in memory, without storage and HTTP."""

    def source(self):
        return DataSource("path", "table.arrow", "arrow", "table.arrow")

    def opener(self, table):
        buffer = pa.py_buffer(write_arrow(table))
        return lambda: pa.BufferReader(buffer)

    def table(self, target, rows=120, seed=0):
        """Columns of every kind and, as ``y``, a target that follows from them with a little noise."""
        rng = np.random.default_rng(seed)
        x, z = rng.normal(size=(2, rows))
        colour = rng.choice(["red", "green", "blue"], rows)
        score = x - 0.8 * z + (colour == "red") + rng.normal(0, 0.1, rows)
        z = np.where(rng.random(rows) < 0.1, np.nan, z)
        labels = {
            "binary": np.where(score > 0.3, "yes", "no"),
            "flag": score > 0.3,
            "number": np.where(score > 0.3, 7, 3),
            "five": np.array(["a", "b", "c", "d", "e"])[np.digitize(score, [-0.8, 0, 0.6, 1.3])],
            "value": 50 + 20 * score,
        }
        return pa.table(
            {
                "x": x,
                "z": pa.array(z, from_pandas=True),
                "colour": colour,
                "flag": rng.random(rows) < 0.5,
                "day": np.datetime64("2024-01-01") + rng.integers(0, 700, rows),
                "y": labels[target],
            }
        )

    def request(self, **fields):
        return TrainRequest(self.source(), **DEFAULTS | {"hidden_dim": 16} | fields)

    def work(self, table, stop=lambda: False, checkpoints=None, **fields):
        return train(self.request(**fields), self.opener(table), stop, checkpoints)

    def train(self, table, **fields):
        return finish(self.work(table, **fields), table)

    @functools.cache  # noqa: B019  # one instance lives as long as the session
    def trained(self, target, mode="mlp_dense", **fields):
        return self.train(self.table(target), training_mode=mode, **fields)

    def distill_work(self, table, teacher, stop=lambda: False, checkpoints=None, **fields):
        request = DistillRequest(self.source(), teacher=TeacherSource("run_id", "r1"), **DEFAULTS | fields)
        return distill(request, self.opener(table), teacher, stop, checkpoints)

    def distill(self, table, teacher, **fields):
        return finish(self.distill_work(table, teacher, **fields), table)


def finish(work, table):
    reports = []
    while True:
        try:
            reports.append(next(work))
        except StopIteration as end:
            return Finished(end.value, reports, table)


def doubled(part):
    """An objective in double precision, its probabilities made to sum to 1 as exactly."""
    if isinstance(part, torch.Tensor):
        return part.double() if part.is_floating_point() else part
    if not dataclasses.is_dataclass(part):
        return part
    changes = {f.name: doubled(getattr(part, f.name)) for f in dataclasses.fields(part)}
    match part:
        case CrossEntropy(label_smoothing=share, targets_CC=targets_CC):
            count = len(targets_CC)
            changes["targets_CC"] = (1 - share) * torch.eye(count).double() + share / count
        case SoftCrossEntropy():
            changes["probabilities_NC"] /= changes["probabilities_NC"].sum(1, keepdim=True)
        case Divergence():
            changes["teacher_NC"] = changes["teacher_NC"].log_softmax(1)
    return dataclasses.replace(part, **changes)


@pytest.fixture(scope="session")
def in_double():
    return doubled


@pytest.fixture(scope="session")
def engine():
    return Engine()
