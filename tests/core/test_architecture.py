import pytest

from core.architecture import Architecture, design
from core.contract.modes import ALLOWED_TRAINING_MODES

SIZES = {"inputs": 7, "outputs": 3, "hidden_dim": 32, "num_hidden_layers": 4, "dropout": 0.3}


@pytest.mark.parametrize("mode", ALLOWED_TRAINING_MODES)
@pytest.mark.parametrize("classification", [True, False])
def test_every_mode_has_a_network_of_the_wanted_shape(mode, classification):
    found = design(mode, **SIZES, classification=classification)
    assert (found.inputs, found.outputs) == (7, 3)
    if found.kind == "linear":
        assert found == Architecture("linear", 7, 3, 0, 0, 0.0, batch_norm=False)
    else:
        assert (found.hidden_dim, found.num_hidden_layers, found.dropout) == (32, 4, 0.3)
        assert found.batch_norm == classification


def test_modes_differ_from_the_mlp_only_where_their_names_say_so():
    kinds = {mode: design(mode, **SIZES, classification=True).kind for mode in ALLOWED_TRAINING_MODES}
    assert kinds.pop("linear_glm_baseline") == "linear"
    assert kinds.pop("tabresnet") == "resnet"
    assert set(kinds.values()) == {"mlp"}
