"""Networks side by side, and what they say together."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.architecture import Architecture
from core.ensembles import evaluation_rows, load_model, side_by_side, stack
from core.inference import fold, mixture
from core.models import build_network, count_parameters, export_weights, initialise

ARCHITECTURES = st.builds(
    Architecture,
    kind=st.sampled_from(["mlp", "resnet"]),
    inputs=st.integers(1, 12),
    outputs=st.integers(1, 5),
    hidden_dim=st.integers(8, 33),
    num_hidden_layers=st.integers(1, 3),
    dropout=st.just(0.1),
    batch_norm=st.booleans(),
    members=st.integers(2, 5),
) | st.builds(
    Architecture,
    kind=st.just("linear"),
    inputs=st.integers(1, 12),
    outputs=st.integers(1, 5),
    hidden_dim=st.just(0),
    num_hidden_layers=st.just(0),
    dropout=st.just(0.0),
    batch_norm=st.just(False),
    members=st.integers(2, 5),
)


def members_of(architecture, seed=0):
    """Networks of which each has normalisations of its own."""
    networks = []
    for member in range(architecture.members):
        network = build_network(dataclasses.replace(architecture, members=1))
        initialise(network, 100 * seed + member, np.empty(0, np.int64))
        generator = torch.Generator().manual_seed(100 * seed + member)
        for name, tensor in network.state_dict().items():
            if name.endswith(("running_mean", "running_var")):
                tensor.uniform_(0.3, 2, generator=generator)
        networks.append(network.eval())
    return networks


def stacked_weights(networks):
    return {name: tensor.numpy() for name, tensor in stack(networks).items()}


def features_of(architecture, rows, seed=1):
    return np.random.default_rng(seed).normal(size=(rows, architecture.inputs)).astype(np.float32)


def outputs_of_each(networks, features):
    with torch.no_grad():
        return torch.stack([network.double()(torch.tensor(features).double()) for network in networks])


@settings(deadline=None, max_examples=40)
@given(ARCHITECTURES, st.integers(0, 100))
def test_outputs_are_those_of_the_members_one_behind_the_other(architecture, seed):
    networks, features = members_of(architecture, seed), features_of(architecture, 7)
    wide = side_by_side(architecture, architecture.members, stack(networks)).eval()
    with torch.no_grad():
        found = wide(torch.tensor(features)).view(7, architecture.members, -1).transpose(0, 1)
    torch.testing.assert_close(found.double(), outputs_of_each(networks, features), rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(ARCHITECTURES, st.integers(0, 100), st.sampled_from([0, 1, 3, 2049]))
def test_an_ensemble_says_the_mean_of_probabilities_or_of_values(architecture, seed, rows):
    networks, features = members_of(architecture, seed), features_of(architecture, rows)
    weights = stacked_weights(networks)
    each = outputs_of_each(networks, features)
    with torch.no_grad():
        by_torch = load_model(architecture, weights)(torch.tensor(features)).numpy()
    by_numpy = fold(architecture, weights)(features)
    assert by_torch.shape == by_numpy.shape == (rows, architecture.outputs)
    assert by_numpy.dtype == np.float32
    if architecture.outputs == 1:
        expected = each.mean(0).numpy()
        np.testing.assert_allclose(by_torch, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(by_numpy, expected, rtol=1e-5, atol=1e-5)
        return
    expected = each.softmax(2).mean(0).numpy()
    for found in (by_torch, by_numpy):
        np.testing.assert_allclose(torch.tensor(found).double().softmax(1), expected, rtol=0, atol=1e-5)
        # logits whose softmax is the mean, without a scale to be undone
        np.testing.assert_allclose(np.exp(found).sum(1), 1, rtol=1e-5)


def test_a_class_that_no_member_believes_in_has_a_finite_logit():
    outputs_KBC = np.array([[[0.0, -200.0]], [[0.0, -300.0]]], np.float32)
    np.testing.assert_allclose(mixture(outputs_KBC), [[0.0, -200 - np.log(2)]], rtol=1e-6)


MLP = Architecture("mlp", 5, 3, 16, 2, 0.1, batch_norm=True, members=4)


def test_parameters_of_an_ensemble_are_those_of_its_members():
    networks = members_of(MLP)
    whole = load_model(MLP, stacked_weights(networks))
    assert count_parameters(whole) == sum(count_parameters(network) for network in networks)


def test_one_member_is_the_network_itself():
    alone = dataclasses.replace(MLP, members=1)
    [network] = members_of(alone)
    weights, features = export_weights(network), torch.tensor(features_of(MLP, 3))
    assert torch.equal(load_model(alone, weights)(features), network(features))


@pytest.mark.parametrize("kind", ["mlp", "resnet", "linear"])
def test_weights_that_do_not_fit_are_refused(kind):
    shape = {"hidden_dim": 0, "num_hidden_layers": 0, "batch_norm": False} if kind == "linear" else {}
    architecture = dataclasses.replace(MLP, kind=kind, **shape)
    weights = stacked_weights(members_of(architecture))
    cut = {name: array[:3] for name, array in weights.items()}
    without = {name: array for name, array in weights.items() if name != "0.bias"}
    for wrong in (cut, without, {}):
        with pytest.raises(RuntimeError):
            load_model(architecture, wrong)
        with pytest.raises(ValueError, match="must have the shape"):
            fold(architecture, wrong)


def test_evaluation_takes_fewer_rows_of_more_members():
    networks = members_of(MLP)
    whole = load_model(MLP, stacked_weights(networks))
    assert (evaluation_rows(networks[0], 1000), evaluation_rows(whole, 1000)) == (1000, 250)
