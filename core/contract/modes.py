"""Training modes: which exist, what they are called and which can be a student."""

from typing import Final, Literal, get_args

TrainingMode = Literal[
    "mlp_dense",
    "linear_glm_baseline",
    "tabresnet",
    "imbalance_aware",
    "calibrated_classifier",
    "tree_teacher_distillation",
]
ALLOWED_TRAINING_MODES: Final[tuple[TrainingMode, ...]] = get_args(TrainingMode)
UNSUPPORTED_DISTILL_MODES: Final = frozenset(
    {"imbalance_aware", "calibrated_classifier", "tree_teacher_distillation"}
)
CLASSIFICATION_ONLY: Final = frozenset({"imbalance_aware", "calibrated_classifier"})

_ALIASES: Final = {"mlp": "mlp_dense"}


def normalise_mode(given: str) -> str:
    """The one spelling of a mode: trimmed, lower case, ``_`` for hyphens and blanks, aliases resolved.

    >>> normalise_mode(" Tree-Teacher distillation ")
    'tree_teacher_distillation'
    >>> normalise_mode("MLP")
    'mlp_dense'
    """
    name = given.strip().lower().replace("-", "_").replace(" ", "_")
    return _ALIASES.get(name, name)
