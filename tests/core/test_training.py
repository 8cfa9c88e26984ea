import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core import training
from core.architecture import Architecture
from core.checkpoints import Progress
from core.errors import ParameterError, TrainingError, TrainingStoppedError
from core.losses import squared_error
from core.models import build_network, export_weights, initialise
from core.steps import EagerStep, FlatStep
from core.training import (
    EVALUATION_ROWS,
    Rows,
    Schedule,
    choose_batch_size,
    choose_device,
    loss_on,
    outputs_of,
    threads_for,
)

MLP = Architecture("mlp", 4, 1, 8, 1, 0.3, batch_norm=True)
LINEAR = Architecture("linear", 4, 1, 0, 0, 0.0, batch_norm=False)


class Watched:
    """An objective from a function of outputs and rows; its gradient is that of autograd."""

    def __init__(self, loss):
        self.loss = loss

    def __call__(self, outputs, rows_B):
        return self.loss(outputs, rows_B)

    def gradient(self, outputs, rows_B):
        with torch.inference_mode(False), torch.enable_grad():
            leaf = outputs.clone().requires_grad_()
            loss = self.loss(leaf, rows_B)
            loss.backward()
        return loss.detach(), leaf.grad


@pytest.fixture(params=[EagerStep, FlatStep], ids=["eager", "flat"], scope="module")
def fit(request):
    """Every claim about a training holds whichever way its steps run."""
    return functools.partial(training.fit, make_step=request.param)


def never():
    return False


def problem(rows=40, validation=10, seed=0):
    """Features, and values that follow from them linearly."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, 4, generator=generator)
    values = features @ torch.tensor([1.0, -2.0, 0.5, 0.0])
    order = torch.arange(rows)
    return Rows(features, order[: rows - validation], order[rows - validation :]), squared_error(values)


def network_of(architecture, seed=0, silent=()):
    network = build_network(architecture)
    initialise(network, seed, np.array(silent, np.int64))
    return network


def schedule(epochs=5, batch_size=8, learning_rate=0.01, patience=0, seed=0):
    return Schedule(epochs, batch_size, learning_rate, patience, seed)


def bits(network):
    return {name: array.tobytes() for name, array in export_weights(network).items()}


def scripted(validation_losses):
    """An objective with the given validation losses, epoch by epoch, that still trains."""
    losses = iter(validation_losses)

    def objective(outputs, rows_B):
        if outputs.requires_grad:
            return outputs.square().mean()
        return torch.tensor(next(losses))

    return Watched(objective)


def test_each_epoch_yields_one_report(fit):
    rows, objective = problem()
    reports = list(fit(network_of(MLP), objective, rows, schedule(epochs=4), never))
    assert [report.epoch for report in reports] == [1, 2, 3, 4]
    assert {report.epochs for report in reports} == {4}
    assert all(report.seconds > 0 and report.train_loss > 0 for report in reports)


def test_the_last_report_holds_the_validation_loss_of_the_weights_that_stay_without_patience(fit):
    rows, objective = problem()
    network = network_of(MLP)
    *_, last = fit(network, objective, rows, schedule(), never)
    assert not network.training
    assert last.validation_loss == loss_on(network, objective, rows.features_NF, rows.validation)


def test_without_validation_rows_there_is_no_validation_loss(fit):
    rows, objective = problem(validation=0)
    reports = list(fit(network_of(MLP), objective, rows, schedule(patience=3), never))
    assert [report.validation_loss for report in reports] == [None] * 5


def test_the_train_loss_is_the_mean_over_rows_not_over_batches(fit):
    """With a learning rate that moves nothing, the loss seen in batches is that of the whole."""
    rows, objective = problem(rows=21, validation=0)
    network = network_of(LINEAR)
    expected = loss_on(network, objective, rows.features_NF, rows.train)
    report = next(fit(network, objective, rows, schedule(batch_size=16, learning_rate=1e-12), never))
    # float32 sums in another order
    assert report.train_loss == pytest.approx(expected, rel=1e-5)


def test_a_linear_network_learns_a_linear_function(fit):
    rows, objective = problem(rows=200)
    network = network_of(LINEAR)
    list(fit(network, objective, rows, schedule(epochs=60, learning_rate=0.05), never))
    # the loss of the mean alone would be 5.25, the squared norm of the coefficients
    assert loss_on(network, objective, rows.features_NF, rows.validation) < 1e-3
    weights = network[0].weight.detach().numpy()[0]
    np.testing.assert_allclose(weights, [1.0, -2.0, 0.5, 0.0], atol=0.05)


def test_the_learning_rate_falls_along_half_a_cosine_to_a_hundredth(fit):
    """Adam's first step is the learning rate in each coordinate, whatever the size of the gradient."""
    rows = Rows(torch.ones(1, 1), torch.tensor([0]), torch.tensor([], dtype=torch.long))
    network = network_of(Architecture("linear", 1, 1, 0, 0, 0.0, batch_norm=False))
    work = fit(network, Watched(lambda outputs, _: outputs.sum()), rows, schedule(10, 2, 0.1), never)
    start = network[0].bias.item()
    steps = -np.diff([start, *(network[0].bias.item() for _ in work)])
    expected = [0.001 + 0.099 * (1 + math.cos(math.pi * epoch / 10)) / 2 for epoch in range(10)]
    # a constant gradient keeps Adam's ratio at 1 up to its epsilon; float32
    np.testing.assert_allclose(steps, expected, rtol=1e-3)


@pytest.mark.parametrize("allowed", [0, 1, 2, 7, 9])
def test_stop_is_asked_before_every_batch_and_ends_the_training_there(fit, allowed):
    rows, objective = problem()
    trained = []

    def counted(outputs, rows_B):
        if outputs.requires_grad:
            trained.append(len(rows_B))
        return objective(outputs, rows_B)

    asked = itertools.count(1)
    work = fit(network_of(MLP), Watched(counted), rows, schedule(), lambda: next(asked) > allowed)
    with pytest.raises(TrainingStoppedError):
        list(work)
    assert len(trained) == allowed
    assert next(asked) == allowed + 2


@settings(deadline=None, max_examples=50)  # an epoch takes its time on a busy machine
@given(st.integers(2, 70), st.integers(2, 20))
def test_batches_cover_the_training_rows_once_and_none_has_a_single_row(fit, count, batch_size):
    rows, objective = problem(rows=count, validation=0)
    seen = []

    def counted(outputs, rows_B):
        seen.append(rows_B.tolist())
        return objective(outputs, rows_B)

    next(fit(network_of(MLP), Watched(counted), rows, schedule(batch_size=batch_size), never))
    assert sorted(itertools.chain.from_iterable(seen)) == list(range(count))
    assert min(map(len, seen)) >= 2
    assert max(map(len, seen)) <= batch_size + 1


def test_training_stops_after_the_patience_and_restores_the_best_weights(fit):
    rows, _ = problem()
    network = network_of(MLP)
    objective = scripted([5.0, 3.0, 4.0, 3.0, 3.5, 1.0, 0.5])
    kept = [bits(network) for _ in fit(network, objective, rows, schedule(epochs=7, patience=3), never)]
    assert len(kept) == 5  # an equal loss is no improvement
    assert bits(network) == kept[1]
    assert kept[1] != kept[4]


def test_improvement_restarts_the_patience(fit):
    rows, _ = problem()
    objective = scripted([5.0, 6.0, 4.0, 6.0, 3.0, 6.0, 6.0, 1.0])
    assert len(list(fit(network_of(MLP), objective, rows, schedule(epochs=8, patience=2), never))) == 7


def test_best_weights_return_even_when_no_epoch_was_saved(fit):
    rows, _ = problem()
    network = network_of(MLP)
    objective = scripted([2.0, 1.0, 3.0])
    kept = [bits(network) for _ in fit(network, objective, rows, schedule(epochs=3, patience=3), never)]
    assert bits(network) == kept[1]


def test_patience_zero_runs_every_epoch_and_keeps_the_last_weights(fit):
    rows, _ = problem()
    network = network_of(MLP)
    objective = scripted([1.0, 2.0, 3.0, 4.0])
    kept = [bits(network) for _ in fit(network, objective, rows, schedule(epochs=4), never)]
    assert len(kept) == 4
    assert bits(network) == kept[3]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_fails_the_training(fit, bad):
    rows, _ = problem()
    with pytest.raises(TrainingError, match="no longer finite"):
        list(fit(network_of(MLP), Watched(lambda outputs, _: outputs.mean() * bad), rows, schedule(), never))


@pytest.mark.parametrize("seed", [0, 1])
def test_weights_depend_on_the_schedule_s_seed_and_not_on_global_generators(fit, seed):
    results = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        np.random.seed(disturbance)
        rows, objective = problem()
        network = network_of(MLP)
        for _ in fit(network, objective, rows, schedule(seed=seed), never):
            torch.rand(disturbance)
        results.append(bits(network))
    assert results[0] == results[1]
    rows, objective = problem()
    other = network_of(MLP)
    list(fit(other, objective, rows, schedule(seed=seed + 10), never))
    assert bits(other) != results[0]


def ticking(seconds):
    """A clock that goes on by so much at each look: two to an epoch."""
    return functools.partial(next, itertools.count(0.0, seconds))


@pytest.mark.parametrize(("max_seconds", "epochs"), [(1e-9, 1), (2, 1), (3, 2), (8, 4), (9, 5), (1e9, 5)])
def test_no_epoch_begins_after_max_seconds(fit, max_seconds, epochs):
    rows, objective = problem()
    plan = dataclasses.replace(schedule(epochs=5), max_seconds=max_seconds)
    # looks: the start at 0, epoch n from 2n - 1 to 2n
    reports = list(fit(network_of(MLP), objective, rows, plan, never, clock=ticking(1.0)))
    assert len(reports) == epochs
    assert {report.seconds for report in reports} == {1.0}


def test_out_of_time_the_best_weights_so_far_return(fit):
    rows, _ = problem()
    network, objective = network_of(MLP), scripted([5.0, 3.0, 4.0, 1.0])
    plan = dataclasses.replace(schedule(epochs=9, patience=9), max_seconds=6.0)
    kept = [bits(network) for _ in fit(network, objective, rows, plan, never, clock=ticking(1.0))]
    assert len(kept) == 3
    assert bits(network) == kept[1]


def test_a_training_that_is_complete_is_not_out_of_time():
    plan = dataclasses.replace(schedule(epochs=5, patience=2), max_seconds=10.0)
    assert plan.is_out_of_time(Progress(4, 10.0))
    assert not plan.is_out_of_time(Progress(4, 9.9))
    assert not plan.is_out_of_time(Progress(5, 11.0))
    assert not plan.is_out_of_time(Progress(4, 11.0, 1.0, 2))


def test_silent_inputs_keep_the_weight_zero(fit):
    rows, objective = problem()
    rows.features_NF[rows.train, 2] = 0
    network = network_of(MLP, silent=[2])
    list(fit(network, objective, rows, schedule(), never))
    assert not network[0].weight[:, 2].any()
    assert network[0].weight[:, :2].all()


def test_outputs_in_blocks_are_those_of_all_rows_at_once():
    features = torch.randn(EVALUATION_ROWS + 3, 4, generator=torch.Generator().manual_seed(0))
    network = network_of(MLP)
    with torch.no_grad():
        expected = network.eval()(features)
    # a block's products may be summed in another order
    torch.testing.assert_close(outputs_of(network.train(), features), expected, rtol=0, atol=1e-6)
    picked = torch.tensor([EVALUATION_ROWS + 2, 0, 5])
    torch.testing.assert_close(outputs_of(network, features, picked), expected[picked], rtol=0, atol=1e-6)
    assert outputs_of(network, features[:0]).shape == (0, 1)


def test_no_rows_have_no_loss():
    rows, objective = problem()
    empty = torch.tensor([], dtype=torch.long)
    assert loss_on(network_of(MLP), objective, rows.features_NF, empty) is None


def test_the_cpu_is_always_there():
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("wanted", ["cuda", "cuda:0", "cuda:128", "cuda:256", "cuda:999"])
def test_an_absent_device_is_the_request_s_fault(wanted):
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(wanted.partition(":")[2] or 0)
    if index < available:
        assert choose_device(wanted) == torch.device(f"cuda:{index}")
        return
    with pytest.raises(ParameterError, match=f"{wanted} is absent") as caught:
        choose_device(wanted)
    assert caught.value.details == {"field": "device"}


def test_without_a_wish_the_best_device_is_chosen():
    assert choose_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


@given(st.integers(1, 10**8), st.booleans())
def test_batch_sizes_are_powers_of_two_within_their_range_and_never_fall_with_more_rows(rows, batch_norm):
    size = choose_batch_size(rows, batch_norm=batch_norm)
    assert 16 <= size <= 1024
    assert size & (size - 1) == 0
    assert choose_batch_size(2 * rows, batch_norm=batch_norm) >= size


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_small_work_runs_on_one_thread_and_the_count_returns(threads, count):
    threads(count)
    with threads_for(batch_size=16, width=128):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == count
    with threads_for(batch_size=1024, width=1024):
        assert torch.get_num_threads() == count


def test_the_thread_count_returns_after_a_failure(threads):
    threads(2)
    with pytest.raises(TrainingStoppedError), threads_for(16, 16):
        raise TrainingStoppedError("stopped")
    assert torch.get_num_threads() == 2
