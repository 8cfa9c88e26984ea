"""The flat step against the reference, and both against what they must not do."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from core.architecture import Architecture
from core.layers import Network
from core.losses import (
    cross_entropy,
)
from core.models import build_network, export_weights, seed_dropout
from core.steps import EagerStep, FlatStep, choose_step
from core.training import Rows, Schedule, fit
from tests.core.problems import BATCHES, Problem, problems


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def by_autograd(problem, rows_B):
    network = problem.network()
    loss = problem.objective(network(problem.features[rows_B]), rows_B)
    loss.backward()
    return loss.detach(), gradients_of(network)


def in_closed_form(problem, rows_B):
    network = problem.network()
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, torch.nan)
    closed = Network(network, len(rows_B))
    with torch.no_grad():
        outputs = closed.forward(problem.features[rows_B])
        loss, by_outputs = problem.objective.gradient(outputs, rows_B)
        closed.backward(by_outputs)
    return loss, gradients_of(network)


def gradients_of(network):
    return {name: p.grad for name, p in network.named_parameters() if p.requires_grad}


def distance(first, second):
    return norm([first[name] - second[name] for name in first])


def norm(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients]).norm()


@settings(deadline=None, max_examples=60)
@given(problems(), BATCHES)
def test_the_gradient_in_closed_form_is_that_of_autograd(in_double, problem, rows_B):
    expected_loss, expected = by_autograd(problem, rows_B)
    loss, found = in_closed_form(problem, rows_B)
    # float32
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
    # rows that are all the same are normalised to rounding errors, which then differ from way to way
    _, exact = by_autograd(problem.doubled(in_double), rows_B)
    rounding = distance(expected, exact)
    assert distance(found, expected) <= 1e-5 * norm(expected.values()) + 3 * rounding + 1e-12


@settings(deadline=None, max_examples=60)
@given(problems(varied=1), BATCHES)
def test_each_weight_s_gradient_is_that_of_autograd_in_double_precision(in_double, problem, rows_B):
    problem = problem.doubled(in_double)
    _, expected = by_autograd(problem, rows_B)
    _, found = in_closed_form(problem, rows_B)
    whole = norm(expected.values())
    for name, gradient in expected.items():
        # rounding errors of 1e-16, times up to 316 for each normalisation of what hardly varies
        tolerance = {"rtol": 1e-8, "atol": 1e-9 * whole + 1e-12}
        torch.testing.assert_close(
            found[name], gradient, **tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


@settings(deadline=None, max_examples=30)
@given(problems(varied=1), st.lists(BATCHES, min_size=1, max_size=5))
def test_steps_of_both_ways_leave_the_same_weights_and_statistics(in_double, problem, batches):
    """In double precision: of a gradient that is rounding noise of float32 Adam makes a whole step."""
    problem, results = problem.doubled(in_double), []
    for make in (EagerStep, FlatStep):
        network = problem.network()
        step = make(network, problem.objective, problem.features)
        losses = [float(step(rows_B, 0.01)) for rows_B in batches]
        results.append((losses, export_weights(network)))
    (expected_losses, expected), (losses, found) = results
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-7, err_msg=name)


ARCHITECTURES = {
    "mlp": Architecture("mlp", 12, 3, 32, 2, 0.1, batch_norm=True),
    "without normalisation": Architecture("mlp", 12, 3, 32, 2, 0.1, batch_norm=False),
    "resnet": Architecture("resnet", 12, 3, 32, 2, 0.1, batch_norm=True),
    "linear": Architecture("linear", 12, 3, 0, 0, 0.0, batch_norm=False),
}
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def fixed_problem(name, rows=700):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(rows, 12, generator=generator)
    classes = (features[:, :3] + 0.3 * torch.randn(rows, 3, generator=generator)).argmax(1)
    return Problem(ARCHITECTURES[name], features, cross_entropy(classes, 3), 7)


def trained(problem, make_step, epochs=4):
    network = problem.network()
    order = torch.arange(len(problem.features))
    rows, schedule = Rows(problem.features, order[:600], order[600:]), Schedule(epochs, 64, 0.001, 0, 7)
    reports = fit(network, problem.objective, rows, schedule, lambda: False, make_step)
    return network, [(report.train_loss, report.validation_loss) for report in reports]


@every_architecture
def test_both_ways_report_the_same_losses_for_the_same_seed(name):
    problem = fixed_problem(name)
    (_, expected), (_, found) = (trained(problem, make) for make in (EagerStep, FlatStep))
    # the same order and masks: what is left is rounding, which 40 steps in float32 enlarge
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found[-1][0] < found[0][0]


def test_other_masks_would_show_in_the_losses(monkeypatch):
    problem = fixed_problem("mlp")
    _, expected = trained(problem, EagerStep)
    monkeypatch.setattr(
        "core.training.seed_dropout", lambda network, seed, device: seed_dropout(network, 8, device)
    )
    _, found = trained(problem, EagerStep)
    assert abs(found[0][0] / expected[0][0] - 1) > 1e-3


@every_architecture
@pytest.mark.parametrize("make_step", [EagerStep, FlatStep])
def test_the_same_seed_gives_the_same_bits(name, make_step):
    first, second = (export_weights(trained(fixed_problem(name), make_step)[0]) for _ in range(2))
    assert {n: a.tobytes() for n, a in first.items()} == {n: a.tobytes() for n, a in second.items()}


@pytest.mark.parametrize("make_step", [EagerStep, FlatStep])
def test_biases_that_a_normalisation_takes_away_stay_as_they_were_drawn(make_step):
    problem = fixed_problem("mlp")
    before, after = problem.network()[0], trained(problem, make_step)[0][0]
    assert torch.equal(after.bias, before.bias)
    assert not torch.equal(after.weight, before.weight)


@every_architecture
def test_a_flat_step_keeps_the_network_usable(name):
    """Weights that are views of one vector are stored, restored and predicted with as any others."""
    network, _ = trained(fixed_problem(name), FlatStep)
    stored = export_weights(network)
    features = torch.randn(3, 12, generator=torch.Generator().manual_seed(1))
    expected = network(features).detach()
    assert all(array.base is None and array.flags.c_contiguous for array in stored.values())
    copy = build_network(ARCHITECTURES[name])
    copy.load_state_dict({key: torch.tensor(array) for key, array in stored.items()})
    torch.testing.assert_close(copy.eval()(features), expected, rtol=0, atol=0)
    network(features).sum().backward()  # autograd still works on it


def test_a_module_without_a_closed_form_is_named():
    with pytest.raises(TypeError, match="Tanh"):
        Network(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), 4)


def test_the_cpu_takes_the_flat_step():
    problem = fixed_problem("linear")
    assert isinstance(choose_step(problem.network(), problem.objective, problem.features), FlatStep)
