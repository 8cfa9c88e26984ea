"""A random forest as teacher (training mode ``tree_teacher_distillation``)."""

from collections.abc import Callable

import numpy as np
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from core.errors import TrainingStoppedError

TREES = 200
TREES_PER_CHUNK = 10
ROWS_PER_TREE = 100_000


def forest_outputs(
    features_NF: np.ndarray,
    target_N: np.ndarray,
    train: np.ndarray,
    n_classes: int | None,
    seed: int,
    stop: Callable[[], bool],
) -> np.ndarray:
    """Outputs of a forest fitted on the training rows, for all rows.

    On the rows it was fitted on, each tree speaks only where it did not see the row (out of bag): in sample a
    forest repeats the labels and would teach nothing.

    Returns:
        Probabilities (N, C) float32, or values (N, 1) in regression.

    Raises:
        TrainingStoppedError: between two chunks of trees.
    """
    kind = RandomForestRegressor if n_classes is None else RandomForestClassifier
    forest = kind(
        n_estimators=0,
        warm_start=True,
        min_samples_leaf=2,
        max_samples=min(len(train), ROWS_PER_TREE),
        random_state=seed % 2**32,
    )
    for size in range(TREES_PER_CHUNK, TREES + 1, TREES_PER_CHUNK):
        if stop():
            raise TrainingStoppedError("Training was stopped because nobody waits for its result any more.")
        forest.set_params(n_estimators=size, oob_score=size == TREES)
        forest.fit(features_NF[train], target_N[train])
    if n_classes is None:
        outputs = forest.predict(features_NF)[:, None]
        unseen = forest.oob_prediction_[:, None]
    else:
        outputs = np.zeros((len(features_NF), n_classes))
        outputs[:, forest.classes_] = forest.predict_proba(features_NF)
        unseen = np.zeros((len(train), n_classes))
        unseen[:, forest.classes_] = forest.oob_decision_function_
    outputs[train] = unseen  # that all 200 trees saw one of two rows has a probability of 1e-25
    return np.asarray(outputs, np.float32)
