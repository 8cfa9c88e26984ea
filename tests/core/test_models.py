import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from core.architecture import Architecture
from core.models import (
    Dropout,
    Residual,
    build_network,
    count_parameters,
    export_weights,
    initialise,
    load_network,
    seed_dropout,
)

NONE_SILENT = np.array([], np.int64)
ARCHITECTURES = [
    Architecture("linear", 5, 3, 0, 0, 0.0, batch_norm=False),
    Architecture("mlp", 5, 3, 8, 2, 0.2, batch_norm=True),
    Architecture("mlp", 5, 1, 8, 3, 0.2, batch_norm=False),
    Architecture("resnet", 5, 3, 8, 2, 0.2, batch_norm=True),
    Architecture("resnet", 5, 1, 8, 2, 0.2, batch_norm=False),
]
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)


def built(architecture, seed=0, silent=NONE_SILENT):
    network = build_network(architecture)
    initialise(network, seed, silent)
    return network


def bits(network):
    return {name: array.tobytes() for name, array in export_weights(network).items()}


def expected_count(a):
    if a.kind == "linear":
        return a.outputs * (a.inputs + 1)
    h, layers = a.hidden_dim, a.num_hidden_layers
    norm = 2 * h if a.batch_norm else 0
    if a.kind == "mlp":
        return h * (a.inputs + 1) + (layers - 1) * h * (h + 1) + layers * norm + a.outputs * (h + 1)
    return h * (a.inputs + 1) + layers * (2 * h * (h + 1) + norm) + norm + a.outputs * (h + 1)


@given(
    st.builds(
        Architecture,
        kind=st.sampled_from(["linear", "mlp", "resnet"]),
        inputs=st.integers(1, 20),
        outputs=st.integers(1, 6),
        hidden_dim=st.integers(8, 32),
        num_hidden_layers=st.integers(1, 4),
        dropout=st.just(0.1),
        batch_norm=st.booleans(),
    )
)
def test_parameter_count_follows_from_the_architecture(architecture):
    assert count_parameters(build_network(architecture)) == expected_count(architecture)


def test_running_statistics_are_weights_but_not_parameters():
    network = built(ARCHITECTURES[1])
    stored = export_weights(network)
    assert {"1.running_mean", "1.running_var", "1.num_batches_tracked"} < stored.keys()
    statistics = 2 * (8 + 8 + 1)
    assert sum(array.size for array in stored.values()) - statistics == count_parameters(network)


@every_architecture
def test_what_does_not_learn_are_biases_that_a_normalisation_takes_away(architecture):
    """Shifting one of them leaves the outputs of training as they are, shifting any other does not."""
    network = built(architecture).train()
    features = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).double()
    network.double()
    for dropout in (module for module in network.modules() if isinstance(module, Dropout)):
        dropout.probability = 0.0
    expected = network(features)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            with torch.no_grad():
                parameter += 1
                moved = (network(features) - expected).abs().max()
                parameter -= 1
            assert (moved < 1e-9) != parameter.requires_grad, name


@every_architecture
def test_initial_weights_depend_on_the_seed_alone(architecture):
    torch.manual_seed(1)
    first = bits(built(architecture, seed=5))
    torch.manual_seed(2)
    assert bits(built(architecture, seed=5)) == first
    assert bits(built(architecture, seed=6)) != first


@every_architecture
def test_building_and_initialising_leave_the_global_generators_alone(architecture):
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    built(architecture)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_initial_weights_are_uniform_within_the_inverse_root_of_the_fan_in():
    network = built(Architecture("mlp", 64, 2, 256, 1, 0.0, batch_norm=False))
    weights = network[0].weight.detach().numpy()
    bound = 1 / np.sqrt(64)
    assert np.abs(weights).max() <= bound
    # of 16,384 uniform draws: variance bound²/3, five standard errors of its estimate are under 4 %
    assert weights.var() == pytest.approx(bound**2 / 3, rel=0.04)
    assert np.abs(network[0].bias.detach().numpy()).max() <= bound


@every_architecture
def test_silent_inputs_have_no_weight_in_the_first_layer_and_change_no_other_draw(architecture):
    silent = np.array([1, 4])
    with_silent, without = built(architecture, silent=silent), built(architecture)
    for name, value in export_weights(without).items():
        if name == "0.weight":
            value[:, silent] = 0
        assert np.array_equal(export_weights(with_silent)[name], value)


@every_architecture
def test_weights_survive_a_round_trip_and_give_the_same_outputs(architecture):
    network = built(architecture).train()
    seed_dropout(network, 0, torch.device("cpu"))
    network(torch.ones(4, 5))  # moves the running statistics
    copy = load_network(architecture, export_weights(network))
    assert not copy.training
    assert bits(copy) == bits(network)
    features = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(copy(features), network.eval()(features))


def test_exported_weights_are_copies():
    network = built(ARCHITECTURES[0])
    before = export_weights(network)
    with torch.no_grad():
        network[0].weight.zero_()
    assert before["0.weight"].any()


def test_weights_of_another_architecture_are_refused():
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_network(ARCHITECTURES[0], export_weights(built(Architecture("linear", 4, 3, 0, 0, 0.0, False))))


def test_dropout_multiplies_by_its_masks():
    layer, again = (nn.Sequential(Dropout(0.4), Dropout(0.4)).train() for _ in range(2))
    for network in (layer, again):
        seed_dropout(network, 3, torch.device("cpu"))
    features = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    masks = [dropout.masks.draw(features).clone() for dropout in again]
    assert not torch.equal(*masks)
    assert torch.equal(layer(features), features * masks[0] * masks[1])


@pytest.mark.parametrize("layer", [Dropout(0.5).eval(), Dropout(0.0).train()])
def test_dropout_passes_everything_in_evaluation_and_at_probability_zero(layer):
    features = torch.ones(3, 4)
    assert layer(features) is features


@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_residual_block_with_a_silent_branch_is_the_identity(batch_norm):
    block = Residual(4, 0.0, batch_norm)
    nn.init.zeros_(block.branch[-1].weight)
    nn.init.zeros_(block.branch[-1].bias)
    features = torch.randn(5, 4)
    assert torch.equal(block(features), features)
