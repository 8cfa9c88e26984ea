"""A training that goes on from any kept state ends as if it had never been interrupted."""

import contextlib
import dataclasses
import itertools
import json
from operator import attrgetter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from core.architecture import Architecture
from core.checkpoints import Checkpoint, Progress, fingerprint_of
from core.contract.modes import ALLOWED_TRAINING_MODES, CLASSIFICATION_ONLY
from core.errors import CheckpointError, TrainingStoppedError
from core.losses import cross_entropy, squared_error
from core.models import build_network, export_weights, initialise
from core.steps import EagerStep, FlatStep
from core.training import Rows, Schedule, fit


class Drawer:
    """Keeps every state of the epochs that are due, in memory."""

    def __init__(self, latest=None, every=1):
        self.states, self._latest, self._every = {}, latest, every

    def latest(self):
        return self._latest

    def due(self, epoch):
        return epoch % self._every == 0

    def keep(self, epoch, state):
        self.states[epoch] = state


def never():
    return False


def finished(work):
    """What a generator yielded, without the seconds, and what it returned."""
    reports = []
    while True:
        try:
            report = next(work)
        except StopIteration as end:
            return reports, end.value
        reports.append(dataclasses.replace(report, seconds=0.0))


# ── The loop ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True)
class Case:
    architecture: Architecture
    schedule: Schedule
    make_step: type

    def fit(self, drawer=None, stop=never):
        """The weights at the end, the reports, and the progress."""
        generator = torch.Generator().manual_seed(3)
        features = torch.randn(40, self.architecture.inputs, generator=generator)
        noise = torch.randn(40, generator=generator)
        if self.architecture.outputs == 1:
            objective = squared_error(features[:, 0] + noise)
        else:
            objective = cross_entropy((features[:, 0] + noise > 0).long(), self.architecture.outputs)
        order = torch.arange(40)
        network = build_network(self.architecture)
        initialise(network, self.schedule.seed, np.empty(0, np.int64))
        rows = Rows(features, order[:30], order[30:])
        work = fit(network, objective, rows, self.schedule, stop, self.make_step, drawer, "case")
        reports, progress = finished(work)
        weights = {name: array.tobytes() for name, array in export_weights(network).items()}
        return weights, reports, dataclasses.replace(progress, seconds=0.0)


@st.composite
def cases(draw):
    kind, outputs = draw(st.sampled_from(["linear", "mlp", "resnet"])), draw(st.sampled_from([1, 2, 3]))
    if kind == "linear":
        architecture = Architecture(kind, 4, outputs, 0, 0, 0.0, batch_norm=False)
    else:
        dropout, depth = draw(st.sampled_from([0.0, 0.1, 0.5])), draw(st.integers(1, 3))
        architecture = Architecture(kind, 4, outputs, 8, depth, dropout, batch_norm=outputs > 1)
    epochs = draw(st.integers(2, 8))
    # a large step makes the validation loss rise, so that patience ends some of them
    schedule = Schedule(
        epochs=epochs,
        batch_size=draw(st.sampled_from([2, 7, 16, 64])),
        learning_rate=draw(st.sampled_from([0.001, 0.05])),
        patience=draw(st.integers(0, 3)),
        seed=draw(st.integers(0, 10**6)),
    )
    return Case(architecture, schedule, draw(st.sampled_from([EagerStep, FlatStep])))


@settings(deadline=None, max_examples=40)
@given(cases())
def test_a_training_resumed_from_any_epoch_ends_with_the_same_bits_and_reports(case):
    expected, reports, progress = case.fit()
    drawer = Drawer()
    assert case.fit(drawer) == (expected, reports, progress)  # keeping states changes nothing
    assert drawer.states.keys() == {report.epoch for report in reports}
    for epoch, state in drawer.states.items():
        assert case.fit(Drawer(state)) == (expected, reports[epoch:], progress)


@settings(deadline=None, max_examples=20)
@given(cases(), st.data())
def test_a_training_killed_between_any_two_batches_again_and_again_ends_with_the_same_bits(case, data):
    expected, reports, progress = case.fit()
    every = data.draw(st.integers(1, 3))
    state = None
    for _ in range(3):
        drawer, asked = Drawer(state, every), itertools.count()
        calls = data.draw(st.integers(0, 20))
        with contextlib.suppress(TrainingStoppedError):
            case.fit(drawer, lambda asked=asked, calls=calls: next(asked) >= calls)
        state = [state, *drawer.states.values()][-1]
    weights, tail, ended = case.fit(Drawer(state))
    assert (weights, ended) == (expected, progress)
    assert tail == reports[len(reports) - len(tail) :]


CASE = Case(
    Architecture("mlp", 4, 2, 8, 2, 0.3, batch_norm=True), Schedule(6, 8, 0.01, 3, 0), make_step=FlatStep
)


def test_states_are_kept_only_when_they_are_due():
    drawer = Drawer(every=4)
    case = dataclasses.replace(CASE, schedule=dataclasses.replace(CASE.schedule, patience=0))
    case.fit(drawer)
    assert list(drawer.states) == [4]


def test_the_report_of_an_epoch_is_taken_before_its_state_is_kept():
    """Whoever dies between the two repeats the epoch instead of losing its report."""
    events = []

    class Told(Drawer):
        def keep(self, epoch, state):
            events.append(("kept", epoch))

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(8, 4, generator=generator)
    network = build_network(CASE.architecture)
    initialise(network, 0, np.empty(0, np.int64))
    rows = Rows(features, torch.arange(8), torch.arange(0))
    objective = cross_entropy(torch.zeros(8, dtype=torch.long), 2)
    work = fit(network, objective, rows, Schedule(2, 8, 0.01, 0, 0), never, checkpoints=Told())
    events.extend(("told", report.epoch) for report in work)
    assert events == [("told", 1), ("kept", 1), ("told", 2), ("kept", 2)]


def test_both_ways_to_step_read_one_another_s_states():
    """Not to the bit: they round differently."""
    drawer = Drawer()
    CASE.fit(drawer)
    for make_step in (EagerStep, FlatStep):
        case = dataclasses.replace(CASE, make_step=make_step)
        _, reports, _ = case.fit(Drawer(drawer.states[2]))
        assert [report.epoch for report in reports] == [3, 4, 5, 6][: len(reports)]


def test_seconds_of_earlier_attempts_count():
    drawer = Drawer()
    CASE.fit(drawer)
    early, late = (Checkpoint.from_bytes(drawer.states[epoch], "case") for epoch in (1, 3))
    assert 0 < early.progress.seconds < late.progress.seconds
    aged = dataclasses.replace(early, progress=dataclasses.replace(early.progress, seconds=1e6))
    again = Drawer(aged.to_bytes("case"))
    CASE.fit(again)
    assert Checkpoint.from_bytes(again.states[2], "case").progress.seconds > 1e6


def test_weights_of_another_shape_are_refused():
    drawer = Drawer()
    CASE.fit(drawer)
    wider = dataclasses.replace(CASE, architecture=dataclasses.replace(CASE.architecture, hidden_dim=16))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        wider.fit(Drawer(drawer.states[1]))


@pytest.mark.parametrize("make_step", [EagerStep, FlatStep])
@pytest.mark.parametrize("name", ["mean_P", "square_P", "steps"])
def test_moments_of_other_weights_are_refused(make_step, name):
    drawer = Drawer()
    case = dataclasses.replace(CASE, make_step=make_step)
    case.fit(drawer)
    kept = Checkpoint.from_bytes(drawer.states[1], "case")
    for wrong in ({**kept.moments, name: np.zeros((3, 1), np.float32)}, {"mean_P": kept.moments["mean_P"]}):
        file = dataclasses.replace(kept, moments=wrong).to_bytes("case")
        with pytest.raises(CheckpointError, match="does not fit the model"):
            case.fit(Drawer(file))


# ── The file ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def file():
    drawer = Drawer()
    CASE.fit(drawer)
    return drawer.states[2]


def test_a_state_survives_its_file_to_the_bit(file):
    kept = Checkpoint.from_bytes(file, "case")
    assert kept.progress.epoch == 2
    assert kept.moments["steps"] == 8  # 30 rows in batches of 8, twice
    assert kept.weights.keys() == kept.best.keys()
    assert kept.to_bytes("case") == file


def test_losses_keep_all_their_digits():
    progress = Progress(3, 0.1 + 0.2, 1 / 3, 1)
    file = Checkpoint(progress, {"w": np.ones(1)}, {}).to_bytes("x")
    assert Checkpoint.from_bytes(file, "x").progress == progress


@settings(deadline=None)
@given(st.data())
def test_a_truncated_or_changed_file_is_refused(file, data):
    cut = file[: data.draw(st.integers(0, len(file) - 1))]
    position, flip = data.draw(st.integers(0, len(file) - 1)), data.draw(st.integers(1, 255))
    changed = bytearray(file)
    changed[position] ^= flip
    for wrong in (cut, bytes(changed), file + b"\0"):
        with pytest.raises(CheckpointError, match="damaged: resume from an earlier one or start anew"):
            Checkpoint.from_bytes(wrong, "case")


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_what_is_no_checkpoint_is_refused(data):
    with pytest.raises(CheckpointError):
        Checkpoint.from_bytes(data, "case")


def test_a_bundle_is_no_checkpoint(engine):
    with pytest.raises(CheckpointError, match="damaged"):
        Checkpoint.from_bytes(engine.trained("binary").outcome.file, "case")


def test_a_state_of_another_version_is_refused(file, monkeypatch):
    monkeypatch.setattr("core.checkpoints.FORMAT_VERSION", 2)
    with pytest.raises(CheckpointError, match="another model, table or settings"):
        Checkpoint.from_bytes(file, "case")


@pytest.mark.parametrize("header", [[], {}, {"sha256": "0"}, "text"])
def test_headers_of_another_shape_are_refused(file, header):
    with pytest.raises(CheckpointError, match="damaged"):
        Checkpoint.from_bytes(save(load(file), {"stillhouse_checkpoint": json.dumps(header)}), "case")


def test_the_error_is_permanent_and_asks_for_a_change():
    error = CheckpointError()
    assert (error.code, error.entry.status) == ("CHECKPOINT_INVALID", 422)
    assert (error.error_type, error.severity, error.retryable) == ("permanent", "medium", False)
    assert error.entry.retry == "after_change"


def test_fingerprints_differ_with_every_part_of_what_they_are_of():
    numbers = [np.arange(3), np.arange(3.0)]
    found = {
        fingerprint_of({"a": 1}, numbers),
        fingerprint_of({"a": 2}, numbers),
        fingerprint_of({"a": 1}, numbers[:1]),
        fingerprint_of({"a": 1}, numbers[::-1]),
        fingerprint_of({"a": 1}, [np.arange(3), np.arange(3.0) + 1e-12]),
        fingerprint_of({"a": 1}, [np.arange(3)[:, None], np.arange(3.0)]),
    }
    assert len(found) == 6
    assert fingerprint_of({"a": 1}, numbers) in found


# ── The whole pipeline ──────────────────────────────────────────────────────────────────────────────────────

FIELDS = {"epochs": 5, "early_stopping_patience": 2, "learning_rate": 0.02, "dropout": 0.3}
MODES = [
    (mode, target)
    for mode in ALLOWED_TRAINING_MODES
    for target in ("five", "value")
    if target == "five" or mode not in CLASSIFICATION_ONLY
]


def assert_resumes(start):
    """Args: start: ``Checkpoints -> Work``."""
    drawer = Drawer()
    reports, expected = finished(start(drawer))
    assert len(reports) == expected.epochs_run == len(drawer.states)
    for epoch, state in drawer.states.items():
        tail, outcome = finished(start(Drawer(state)))
        assert tail == reports[epoch:]
        assert outcome.file == expected.file
        same = attrgetter("epochs_run", "rows", "warnings", "comparison")
        assert same(outcome) == same(expected)


@pytest.mark.parametrize(("mode", "target"), MODES)
def test_every_mode_and_task_resumes_to_the_same_file(engine, mode, target):
    table = engine.table(target)
    assert_resumes(lambda drawer: engine.work(table, checkpoints=drawer, training_mode=mode, **FIELDS))


@pytest.mark.parametrize("target", ["five", "value"])
@pytest.mark.parametrize("mode", ["mlp_dense", "tabresnet", "linear_glm_baseline"])
def test_a_distillation_resumes_to_the_same_file(engine, mode, target):
    teacher, table = engine.trained(target).teacher, engine.table(target)
    fields = {"epochs": 5, "early_stopping_patience": 2, "student_dropout": 0.3, "training_mode": mode}
    assert_resumes(lambda drawer: engine.distill_work(table, teacher, checkpoints=drawer, **fields))


def test_a_training_without_validation_rows_resumes_to_the_same_file(engine):
    table, fields = engine.table("five"), {**FIELDS, "early_stopping_patience": 0}
    assert_resumes(lambda drawer: engine.work(table, checkpoints=drawer, **fields))


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 6},
        {"learning_rate": 0.01},
        {"batch_size": 32},
        {"random_seed": 1},
        {"hidden_dim": 24},
        {"dropout": 0.2},
        {"early_stopping_patience": 3},
        {"test_size": 0.3},
        {"training_mode": "tabresnet"},
        {"training_mode": "imbalance_aware"},
        {"exclude_columns": ("x",)},
    ],
    ids=str,
)
def test_a_state_of_other_settings_is_refused(engine, change):
    drawer, table = Drawer(), engine.table("five")
    finished(engine.work(table, checkpoints=drawer, **FIELDS))
    with pytest.raises(CheckpointError, match="another model, table or settings"):
        finished(engine.work(table, checkpoints=Drawer(drawer.states[1]), **FIELDS | change))


def test_more_time_may_be_given_to_what_ran_out_of_it(engine):
    drawer, table = Drawer(), engine.table("five")
    _, expected = finished(engine.work(table, **FIELDS))
    _, early = finished(engine.work(table, checkpoints=drawer, max_seconds=1e-6, **FIELDS))
    assert early.epochs_run == 1
    again = [Drawer(drawer.states[1]), Drawer(drawer.states[1])]
    reports, same = finished(engine.work(table, checkpoints=again[0], max_seconds=1e-6, **FIELDS))
    assert (reports, same.file) == ([], early.file)  # its time is over already
    _, outcome = finished(engine.work(table, checkpoints=again[1], max_seconds=1e6, **FIELDS))
    assert outcome.epochs_run == expected.epochs_run
    for name, array in expected.bundle.weights.items():
        assert outcome.bundle.weights[name].tobytes() == array.tobytes()


def test_a_state_of_another_table_is_refused(engine):
    drawer = Drawer()
    finished(engine.work(engine.table("five"), checkpoints=drawer, **FIELDS))
    for other in (engine.table("five", rows=121), engine.table("five", seed=1)):
        with pytest.raises(CheckpointError, match="another model, table or settings"):
            finished(engine.work(other, checkpoints=Drawer(drawer.states[1]), **FIELDS))


def test_a_state_of_another_teacher_is_refused(engine):
    drawer, table = Drawer(), engine.table("five")
    first, second = (engine.trained("five", hidden_dim=width).teacher for width in (16, 18))
    fields = {"student_hidden_dim": 16, "student_num_hidden_layers": 1, "student_dropout": 0.0}
    finished(engine.distill_work(table, first, checkpoints=drawer, **fields))
    with pytest.raises(CheckpointError, match="another model, table or settings"):
        finished(engine.distill_work(table, second, checkpoints=Drawer(drawer.states[1]), **fields))


def test_without_checkpoints_nothing_is_hashed_or_written(engine, monkeypatch):
    def forbidden(*_):
        raise AssertionError("work that only checkpoints need")

    monkeypatch.setattr("core.pipeline.fingerprint_of", forbidden)
    monkeypatch.setattr("core.checkpoints.Checkpoint.to_bytes", forbidden)
    engine.train(engine.table("five"))
    with pytest.raises(AssertionError):
        finished(engine.work(engine.table("five"), checkpoints=Drawer()))
