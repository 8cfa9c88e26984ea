import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from core.architecture import Architecture
from core.inference import BLOCK_ROWS, fold
from core.models import build_network, export_weights, initialise

ARCHITECTURES = {
    "linear": Architecture("linear", 77, 3, 0, 0, 0.0, batch_norm=False),
    "mlp": Architecture("mlp", 77, 3, 128, 2, 0.1, batch_norm=True),
    "mlp for values": Architecture("mlp", 77, 1, 128, 2, 0.1, batch_norm=False),
    "resnet": Architecture("resnet", 77, 3, 128, 2, 0.1, batch_norm=True),
    "resnet for values": Architecture("resnet", 77, 1, 128, 2, 0.1, batch_norm=False),
}
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def network_of(architecture, seed=0):
    """A network whose normalisations differ from the identity, as after a training."""
    network = build_network(architecture)
    initialise(network, seed, np.empty(0, np.int64))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.3, 2.0, generator=generator)
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_(0, 0.5, generator=generator)
    return network.eval()


def features_of(architecture, rows, seed=1):
    return np.random.default_rng(seed).normal(size=(rows, architecture.inputs)).astype(np.float32)


def by_torch(network, features):
    with torch.inference_mode():
        return network(torch.as_tensor(features)).numpy()


@every_architecture
@pytest.mark.parametrize("rows", [0, 1, 3, BLOCK_ROWS, BLOCK_ROWS + 1, 3 * BLOCK_ROWS])
def test_outputs_are_those_of_the_module(name, rows):
    architecture = ARCHITECTURES[name]
    network, features = network_of(architecture), features_of(architecture, rows)
    found = fold(architecture, export_weights(network))(features)
    assert (found.dtype, found.shape) == (np.float32, (rows, architecture.outputs))
    np.testing.assert_allclose(found, by_torch(network, features), rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(
    st.builds(
        Architecture,
        kind=st.sampled_from(["mlp", "resnet"]),
        inputs=st.integers(1, 20),
        outputs=st.integers(1, 6),
        hidden_dim=st.integers(8, 40),
        num_hidden_layers=st.integers(1, 4),
        dropout=st.just(0.1),
        batch_norm=st.booleans(),
    ),
    st.integers(0, 1000),
)
def test_outputs_of_any_architecture_are_those_of_the_module_in_double_precision(architecture, seed):
    """Double precision is what float32 may differ from, by 30 roundings or so a layer."""
    network, features = network_of(architecture, seed), features_of(architecture, 5, seed)
    expected = by_torch(network.double(), features.astype(np.float64))
    found = fold(architecture, export_weights(network))(features)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_features_are_not_written():
    architecture = ARCHITECTURES["resnet"]
    features = features_of(architecture, 5)
    before = features.copy()
    forward = fold(architecture, export_weights(network_of(architecture)))
    first = forward(features)
    assert np.array_equal(features, before)
    assert np.array_equal(forward(features), first)


@every_architecture
def test_weights_that_do_not_fit_are_named(name):
    architecture = ARCHITECTURES[name]
    weights = export_weights(network_of(architecture))
    for key in weights.keys() - {k for k in weights if k.endswith("num_batches_tracked")}:
        with pytest.raises(ValueError, match=f"'{key}' must have the shape .*absent"):
            fold(architecture, {k: v for k, v in weights.items() if k != key})
        with pytest.raises(ValueError, match=f"'{key}' must have the shape .*of shape"):
            fold(architecture, weights | {key: weights[key][:-1]})


def test_predicting_needs_no_torch():
    code = "import sys, core.prediction; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
