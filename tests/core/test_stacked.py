"""Networks that train together, each against itself trained alone."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from core import stacked
from core.architecture import Architecture
from core.ensembles import side_by_side, stack
from core.errors import CheckpointError, TrainingDivergedError, TrainingStoppedError
from core.layers import Network
from core.losses import cross_entropy, squared_error
from core.masks import BesideMasks, masks_for
from core.models import Dropout, build_network, export_weights, initialise
from core.stacked import Member, Together, fit_together, parts_of
from core.steps import FlatStep, learning
from core.training import Rows, Schedule, fit
from tests.core.problems import BATCHES, CPU, Problem, problems

SILENT = np.empty(0, np.int64)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def members(least=1, most=4, rates=(0.001, 0.01, 0.1)):
    return st.lists(
        st.builds(
            Member, st.sampled_from(rates), st.sampled_from([0.0, 0.1, 0.5, 0.9]), st.integers(0, 10**6)
        ),
        min_size=least,
        max_size=most,
    )


def alone(problem, member):
    """The problem of one member: its network has its dropout and its first weights."""
    dropout = member.dropout if problem.architecture.num_hidden_layers else 0.0
    architecture = dataclasses.replace(problem.architecture, dropout=dropout)
    return dataclasses.replace(problem, architecture=architecture)


def network_of(problem, member):
    network = build_network(alone(problem, member).architecture)
    initialise(network, member.seed, SILENT)
    return network.to(problem.features.dtype)


def rows_of(problem, validation=15):
    order = torch.arange(len(problem.features))
    return Rows(problem.features, order[validation:], order[:validation])


def together_of(problem, chosen, schedule, rows=None):
    networks = [network_of(problem, member) for member in chosen]
    rows = rows or rows_of(problem)
    return Together(networks, problem.architecture, chosen, problem.objective, rows, schedule)


def finish(work):
    """The reports of a generator and what it returned."""
    reports = []
    while True:
        try:
            reports.append(next(work))
        except StopIteration as end:
            return reports, end.value


def fit_all(together, stop=lambda: False, **options):
    reports, (fitted, progress) = finish(fit_together(together, stop, **options))
    return reports, fitted, progress


def fit_alone(problem, member, schedule, rows=None):
    network = network_of(problem, member)
    schedule = dataclasses.replace(schedule, learning_rate=member.learning_rate)
    reports = list(
        fit(network, problem.objective, rows or rows_of(problem), schedule, lambda: False, FlatStep)
    )
    return network, reports


# ── One step ────────────────────────────────────────────────────────────────────────────────────────────────


def gradients_alone(problem, member, rows_B):
    """Of autograd over the modules, with the masks of the first batch of epoch 3."""
    network = network_of(problem, member).train()
    for stream, dropout in enumerate(m for m in network.modules() if isinstance(m, Dropout)):
        dropout.masks = masks_for(dropout.probability, CPU, problem.seed, stream)
        dropout.masks.begin(3)
    loss = problem.objective(network(problem.features[rows_B]), rows_B)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in network.named_parameters() if p.requires_grad}


def gradients_together(problem, chosen, rows_B):
    """Of the closed forms over all members, in the shapes of one."""
    networks = [network_of(problem, member) for member in chosen]
    wide = side_by_side(problem.architecture, len(chosen), stack(networks))
    for stream, dropout in enumerate(m for m in wide.modules() if isinstance(m, Dropout)):
        streams = [masks_for(member.dropout, CPU, problem.seed, stream) for member in chosen]
        dropout.masks, dropout.probability = BesideMasks(streams), 0.5
        dropout.masks.begin(3)
    for parameter in learning(wide):
        parameter.grad = torch.full_like(parameter, torch.nan)
    closed = Network(wide, len(rows_B))
    with torch.no_grad():
        outputs = closed.forward(problem.features[rows_B]).unflatten(1, (len(chosen), -1))
        losses, by_outputs = problem.objective.gradient(outputs, rows_B)
        closed.backward(by_outputs.flatten(1))
    of_one = dict(networks[0].named_parameters())
    grads = {
        name: p.grad.view(len(chosen), *of_one[name].shape)
        for name, p in wide.named_parameters()
        if p.requires_grad
    }
    return losses, grads


@settings(deadline=None, max_examples=60)
@given(problems(varied=1), members(), BATCHES)
def test_each_member_s_gradient_is_that_of_autograd_over_its_own_modules(in_double, problem, chosen, rows_B):
    problem = problem.doubled(in_double)
    losses, found = gradients_together(problem, chosen, rows_B)
    for k, member in enumerate(chosen):
        loss, expected = gradients_alone(problem, member, rows_B)
        torch.testing.assert_close(losses[k], loss, rtol=1e-9, atol=1e-12)
        whole = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            # rounding errors of 1e-16, times up to 316 for each normalisation of what hardly varies
            torch.testing.assert_close(found[name][k], gradient, rtol=1e-8, atol=float(1e-9 * whole) + 1e-12)


@settings(deadline=None, max_examples=60)
@given(problems(), members(), BATCHES)
def test_gradients_in_float32_are_those_of_autograd_to_a_hundred_thousandth(
    in_double, problem, chosen, rows_B
):
    _, found = gradients_together(problem, chosen, rows_B)
    for k, member in enumerate(chosen):
        _, expected = gradients_alone(problem, member, rows_B)
        _, exact = gradients_alone(problem.doubled(in_double), member, rows_B)
        whole = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
        # rows that are all the same are normalised to rounding errors, which then differ from way to way
        rounding = max(float((expected[name] - exact[name]).norm()) for name in expected)
        for name, gradient in expected.items():
            assert float((found[name][k] - gradient).norm()) <= 1e-5 * whole + 4 * rounding + 1e-12


# ── A whole training ────────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None, max_examples=40)
@given(
    problems(varied=1),
    members(),
    st.integers(1, 5),
    st.sampled_from([0, 1, 3]),
    st.sampled_from([7, 16, 44, 45]),
    st.sampled_from([1, 2**30]),
)
def test_a_member_ends_as_it_does_alone(in_double, problem, chosen, epochs, patience, batch_size, cached):
    """In double precision: of a gradient that is rounding noise of float32 Adam makes a whole step."""
    problem = problem.doubled(in_double)
    schedule = Schedule(epochs, batch_size, 1.0, min(patience, epochs), problem.seed)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stacked, "UNITS_TOGETHER", cached)
        _, fitted, _ = fit_all(together_of(problem, chosen, schedule))
    assert [one.member for one in fitted] == chosen
    for member, one in zip(chosen, fitted, strict=True):
        network, reports = fit_alone(problem, member, schedule)
        losses = [report.validation_loss for report in reports]
        # two losses that differ by rounding alone may come in either order
        assume(all(abs(a - b) > 1e-6 * abs(a) for a, b in itertools.combinations(losses, 2)))
        assert one.epochs_run == len(reports)
        assert one.validation_loss == pytest.approx(
            min(losses) if schedule.patience else losses[-1], rel=1e-5
        )
        for name, array in export_weights(network).items():
            np.testing.assert_allclose(one.weights[name].numpy(), array, rtol=1e-4, atol=1e-6, err_msg=name)


ARCHITECTURES = {
    "mlp": Architecture("mlp", 12, 3, 32, 2, 0.1, batch_norm=True),
    "without normalisation": Architecture("mlp", 12, 3, 32, 2, 0.1, batch_norm=False),
    "resnet": Architecture("resnet", 12, 3, 32, 2, 0.1, batch_norm=True),
    "linear": Architecture("linear", 12, 3, 0, 0, 0.0, batch_norm=False),
}
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
FOUR = [Member(0.001, 0.1, 7), Member(0.03, 0.1, 7), Member(0.03, 0.5, 8), Member(0.01, 0.0, 9)]
PATIENT = Schedule(30, 64, 1.0, 2, 7)


def fixed(name, rows=700):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(rows, 12, generator=generator)
    classes = (features[:, :3] + 0.8 * torch.randn(rows, 3, generator=generator)).argmax(1)
    return Problem(ARCHITECTURES[name], features, cross_entropy(classes, 3), 7)


@every_architecture
def test_members_stop_at_epochs_of_their_own_with_the_weights_that_they_have_alone(name):
    problem = fixed(name)
    _, fitted, progress = fit_all(together_of(problem, FOUR, PATIENT, rows_of(problem, 100)))
    for member, one in zip(FOUR, fitted, strict=True):
        network, reports = fit_alone(problem, member, PATIENT, rows_of(problem, 100))
        assert one.epochs_run == len(reports)
        # float32, whose rounding some hundred steps enlarge
        assert one.validation_loss == pytest.approx(min(r.validation_loss for r in reports), rel=1e-4)
        for key, array in export_weights(network).items():
            np.testing.assert_allclose(one.weights[key].numpy(), array, rtol=1e-3, atol=1e-4, err_msg=key)
    assert progress.epoch == max(one.epochs_run for one in fitted)
    assert len({one.epochs_run for one in fitted}) > 1


@every_architecture
def test_one_member_has_the_losses_that_it_has_alone(name):
    problem, schedule = fixed(name), Schedule(4, 64, 1.0, 0, 7)
    reports, _, _ = fit_all(together_of(problem, FOUR[:1], schedule))
    _, expected = fit_alone(problem, FOUR[0], schedule)
    for found, wanted in zip(reports, expected, strict=True):
        assert found.train_loss == pytest.approx(wanted.train_loss, rel=1e-5)
        assert found.validation_loss == pytest.approx(wanted.validation_loss, rel=1e-5)


def test_reports_are_means_over_the_members():
    problem, schedule = fixed("mlp"), Schedule(2, 64, 1.0, 0, 7)
    reports, _, _ = fit_all(together_of(problem, FOUR, schedule))
    each = [fit_alone(problem, member, schedule)[1] for member in FOUR]
    for epoch, report in enumerate(reports):
        assert (report.epoch, report.epochs) == (epoch + 1, 2)
        assert report.train_loss == pytest.approx(np.mean([r[epoch].train_loss for r in each]), rel=1e-5)
        losses = [r[epoch].validation_loss for r in each]
        assert report.validation_loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_same_members_give_the_same_bits_and_leave_their_networks_as_they_were():
    problem = fixed("resnet")
    together = together_of(problem, FOUR, PATIENT)
    before = [export_weights(network) for network in together.networks]
    (_, first, _), (_, second, _) = fit_all(together), fit_all(together)
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    for network, weights in zip(together.networks, before, strict=True):
        assert all(np.array_equal(array, weights[name]) for name, array in export_weights(network).items())


def test_without_validation_rows_every_epoch_runs_and_there_is_no_loss():
    problem = fixed("mlp")
    order = torch.arange(len(problem.features))
    rows = Rows(problem.features, order, order[:0])
    reports, fitted, _ = fit_all(together_of(problem, FOUR, Schedule(3, 64, 1.0, 1, 7), rows))
    assert [report.validation_loss for report in reports] == [None] * 3
    assert {(one.epochs_run, one.validation_loss) for one in fitted} == {(3, None)}


WILD = Member(1e30, 0.0, 1)  # leaves the range of float32 with its first steps


def test_a_member_that_diverges_leaves_the_others_as_they_are():
    problem = Problem(ARCHITECTURES["mlp"], fixed("mlp").features, None, 7)
    architecture = Architecture("mlp", 12, 1, 32, 2, 0.0, batch_norm=False)
    values = problem.features[:, 0] * 2 - 1
    problem = dataclasses.replace(problem, architecture=architecture, objective=squared_error(values))
    chosen, schedule = [Member(0.01, 0.0, 1), WILD, Member(0.01, 0.0, 2)], Schedule(4, 64, 1.0, 2, 7)
    reports, fitted, _ = fit_all(together_of(problem, chosen, schedule))
    assert (fitted[1].weights, fitted[1].validation_loss) == (None, None)
    assert all(math.isfinite(report.train_loss) for report in reports)
    for k in (0, 2):
        network, _ = fit_alone(problem, chosen[k], schedule)
        for name, array in export_weights(network).items():
            np.testing.assert_allclose(fitted[k].weights[name].numpy(), array, rtol=1e-4, atol=1e-5)
    with pytest.raises(TrainingDivergedError):
        fit_all(together_of(problem, [WILD, WILD], schedule))


class Scripted:
    """Of two members the first gets worse each epoch, and the other is lost once it is alone."""

    def __init__(self, validation):
        self.validation, self.epoch = validation, 0

    def gradient(self, outputs_BKC, rows_B):
        if len(rows_B) != self.validation:
            losses = torch.ones(outputs_BKC.shape[1])
            return losses / (0 if outputs_BKC.shape[1] == 1 else 1), torch.zeros_like(outputs_BKC)
        self.epoch += 1
        return torch.tensor([self.epoch, 1 / self.epoch])[: outputs_BKC.shape[1]], outputs_BKC


def test_what_has_ended_well_outlives_what_diverges_after_it():
    problem = dataclasses.replace(fixed("mlp"), objective=Scripted(15))
    reports, fitted, _ = fit_all(together_of(problem, FOUR[:2], dataclasses.replace(PATIENT, patience=2)))
    assert [one.weights is None for one in fitted] == [False, True]
    assert ([one.epochs_run for one in fitted], len(reports)) == ([3, 4], 3)
    assert fitted[0].validation_loss == 1


def test_stopping_ends_it_within_one_batch():
    problem, asked = fixed("mlp"), []

    def stop():
        asked.append(1)
        return len(asked) == 5

    with pytest.raises(TrainingStoppedError):
        fit_all(together_of(problem, FOUR, PATIENT), stop)
    assert len(asked) == 5


@given(st.integers(1, 64), st.integers(1, 70))
def test_parts_are_the_fewest_and_differ_by_one_at_most(count, most):
    places = [list(range(count))[part] for part in parts_of(count, most)]
    sizes = [len(part) for part in places]
    assert [place for part in places for place in part] == list(range(count))
    assert (len(sizes), max(sizes) <= most, max(sizes) - min(sizes) <= 1) == (-(-count // most), True, True)


# ── Checkpoints ─────────────────────────────────────────────────────────────────────────────────────────────


class Shelf:
    """Keeps the state after every epoch."""

    def __init__(self, latest=None):
        self.states, self._latest = {}, latest

    def latest(self):
        return self._latest

    def due(self, epoch):
        return True

    def keep(self, epoch, state):
        self.states[epoch] = state


@every_architecture
@pytest.mark.parametrize("patience", [0, 2])
def test_a_training_goes_on_from_any_epoch_to_the_same_bits(name, patience, monkeypatch):
    problem = fixed(name)
    schedule, rows = dataclasses.replace(PATIENT, patience=patience, epochs=12), rows_of(problem, 100)
    chosen = [*FOUR, Member(0.05, 0.1, 3)]
    shelf = Shelf()
    together = together_of(problem, chosen, schedule, rows)
    reports, expected, _ = fit_all(together, checkpoints=shelf, fingerprint="f")
    assert shelf.states.keys() == {report.epoch for report in reports}
    for epoch, state in shelf.states.items():
        again, found, progress = fit_all(together, checkpoints=Shelf(state), fingerprint="f")
        assert [report.epoch for report in again] == [r.epoch for r in reports if r.epoch > epoch]
        assert progress.epoch == len(reports)
        for one, other in zip(expected, found, strict=True):
            assert (one.epochs_run, one.validation_loss) == (other.epochs_run, other.validation_loss)
            assert all(torch.equal(one.weights[key], other.weights[key]) for key in one.weights)


def test_a_checkpoint_fits_whatever_members_have_a_step_in_common(monkeypatch):
    problem, shelf = fixed("mlp"), Shelf()
    together = together_of(problem, FOUR, PATIENT)
    _, expected, _ = fit_all(together, checkpoints=shelf)
    monkeypatch.setattr(stacked, "UNITS_TOGETHER", 1)
    _, found, _ = fit_all(together, checkpoints=Shelf(shelf.states[2]))
    for one, other in zip(expected, found, strict=True):
        assert one.validation_loss == pytest.approx(other.validation_loss, rel=1e-4)


def test_a_checkpoint_of_a_member_that_diverged_is_one_where_it_has():
    problem = fixed("without normalisation")
    problem = dataclasses.replace(
        problem,
        architecture=dataclasses.replace(problem.architecture, outputs=1),
        objective=squared_error(problem.features[:, 0]),
    )
    shelf, together = Shelf(), together_of(problem, [FOUR[0], WILD], PATIENT)
    fit_all(together, checkpoints=shelf)
    _, found, _ = fit_all(together, checkpoints=Shelf(shelf.states[3]))
    assert [one.weights is None for one in found] == [False, True]


@pytest.mark.parametrize("other", ["fewer members", "another shape", "another fingerprint"])
def test_a_checkpoint_of_another_training_is_refused(other):
    problem, shelf = fixed("mlp"), Shelf()
    fit_all(together_of(problem, FOUR, PATIENT), checkpoints=shelf, fingerprint="f")
    fingerprint = "g" if other == "another fingerprint" else "f"
    chosen = [*FOUR, FOUR[0]] if other == "fewer members" else FOUR
    problem = fixed("resnet") if other == "another shape" else problem
    with pytest.raises(CheckpointError):
        fit_all(
            together_of(problem, chosen, PATIENT), checkpoints=Shelf(shelf.states[1]), fingerprint=fingerprint
        )


def test_no_epoch_begins_after_the_time_is_over():
    problem = fixed("mlp")
    schedule = dataclasses.replace(PATIENT, max_seconds=1e-9)
    reports, fitted, progress = fit_all(together_of(problem, FOUR, schedule))
    assert (len(reports), progress.epoch) == (1, 1)
    assert {one.epochs_run for one in fitted} == {1}
