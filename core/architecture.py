"""What a network looks like, as JSON says it; ``core.models`` builds it. Free of torch."""

from dataclasses import dataclass
from typing import Final, Literal

from core.contract.modes import TrainingMode

Kind = Literal["linear", "mlp", "resnet"]

_KINDS: Final[dict[TrainingMode, Kind]] = {"linear_glm_baseline": "linear", "tabresnet": "resnet"}


@dataclass(frozen=True, slots=True)
class Architecture:
    """Shape of one network.

    Attributes:
        inputs: Width F of the encoded features.
        outputs: C logits in classification, 1 standardised value in regression.
        hidden_dim, num_hidden_layers, dropout: 0 for ``linear``, which has no hidden layer.
        batch_norm: Whether hidden layers normalise over the batch (Ioffe and Szegedy 2015).
        members: How many networks of this shape there are: more than one are an ensemble, which says the mean
            of their probabilities or values.
    """

    kind: Kind
    inputs: int
    outputs: int
    hidden_dim: int
    num_hidden_layers: int
    dropout: float
    batch_norm: bool
    members: int = 1


def design(
    mode: TrainingMode,
    *,
    inputs: int,
    outputs: int,
    hidden_dim: int,
    num_hidden_layers: int,
    dropout: float,
    classification: bool,
) -> Architecture:
    """The network of a training mode.

    Batch normalisation only in classification: without it regression was better on all of 12 paired seeds.
    """
    kind = _KINDS.get(mode, "mlp")
    if kind == "linear":
        return Architecture(kind, inputs, outputs, 0, 0, 0.0, batch_norm=False)
    return Architecture(
        kind, inputs, outputs, hidden_dim, num_hidden_layers, dropout, batch_norm=classification
    )
