"""The whole way from a CSV file to the metric, next to scikit-learn and skorch over pandas."""

import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from sklearn.compose import make_column_transformer
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from benchmarks.samples import NUMBERS, TARGET, TEXTS, mixed_table, write_csv
from benchmarks.timing import Times, interleaved
from core.local import distill_model_from_file, train_model_from_file

ROWS: Final = 20_000
EPOCHS: Final = 20
END_REPEATS: Final = 3
WIDTH: Final = 128
SCIKIT, SKORCH = "scikit-learn (128, 128)", "skorch (128, 128)"
DEEP_SCIKIT, FLAT_SCIKIT, SMALL_SCIKIT = "scikit-learn (128,) × 5", "scikit-learn ()", "scikit-learn (64,)"
PEER_OF: Final[Mapping[str, str]] = {
    "mlp_dense": SCIKIT,
    "tabresnet": DEEP_SCIKIT,
    "linear_glm_baseline": FLAT_SCIKIT,
    "distill": SMALL_SCIKIT,
}
"""Of each of ours scikit-learn's network with the same products: a residual block has two layers."""
HIDDEN: Final[Mapping[str, tuple[int, ...]]] = {
    SCIKIT: (WIDTH,) * 2,
    DEEP_SCIKIT: (WIDTH,) * 5,
    FLAT_SCIKIT: (),
    SMALL_SCIKIT: (WIDTH // 2,),
}


def end_to_end_times(batch: int) -> Times:
    """Seconds of each way. Distilling is timed without training its teacher."""
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 20 epochs are what is asked for
        path = Path(folder) / "table.csv"
        write_csv(mixed_table(ROWS), path)
        return interleaved(_ways(path, batch), END_REPEATS)


def _ways(path: Path, batch: int) -> dict[str, Callable[[], object]]:
    settings: Any = {"epochs": EPOCHS, "batch_size": batch, "early_stopping_patience": 0}
    teacher, _ = train_model_from_file(path, TARGET, **settings | {"epochs": 1})
    ways: dict[str, Callable[[], object]] = {}
    for mode, peer in PEER_OF.items():
        if mode == "distill":
            ways[mode] = lambda: distill_model_from_file(path, TARGET, teacher, **settings)
        else:
            ways[mode] = lambda mode=mode: train_model_from_file(  # type: ignore[misc]
                path, TARGET, training_mode=mode, **settings
            )
        ways[peer] = lambda peer=peer: _peer(path, _scikit(peer, batch))  # type: ignore[misc]
    if (skorch := _skorch(batch)) is not None:
        ways[SKORCH] = lambda: _peer(path, skorch())
    return ways


def _peer(path: Path, network: Any) -> float:  # noqa: ANN401  # an estimator
    """Reads with pandas, encodes, fits and scores on a fifth of the rows."""
    frame = pd.read_csv(path)
    train, test = train_test_split(frame, test_size=0.2, random_state=0)
    numeric = [name for name in frame if name.startswith("n")]
    textual = [name for name in frame if name.startswith("t")]
    encoder = make_column_transformer(
        (StandardScaler(), numeric), (OneHotEncoder(sparse_output=False, handle_unknown="ignore"), textual)
    )
    classes = {"high": 0, "low": 1, "middle": 2}
    network.fit(encoder.fit_transform(train).astype(np.float32), train[TARGET].map(classes).to_numpy())
    guess = network.predict(encoder.transform(test).astype(np.float32))
    return float(accuracy_score(test[TARGET].map(classes), guess))


def _scikit(name: str, batch: int) -> MLPClassifier:
    return MLPClassifier(
        HIDDEN[name], max_iter=EPOCHS, batch_size=batch, n_iter_no_change=EPOCHS, random_state=0
    )


def _skorch(batch: int) -> Callable[[], Any] | None:
    """Makes skorch's classifier over our network; None where skorch is not installed."""
    try:
        from skorch import NeuralNetClassifier
    except ImportError:
        return None

    def build() -> NeuralNetClassifier:
        return NeuralNetClassifier(
            plain_network(NUMBERS + sum(TEXTS)),
            criterion=torch.nn.CrossEntropyLoss,
            optimizer=torch.optim.Adam,
            lr=0.001,
            max_epochs=EPOCHS,
            batch_size=batch,
            iterator_train__shuffle=True,
            train_split=None,
            verbose=0,
        )

    return build


def plain_network(inputs: int) -> torch.nn.Sequential:
    """``mlp_dense`` as PyTorch's own modules have it."""
    nn = torch.nn
    hidden = [nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Dropout(0.1)]
    return nn.Sequential(
        nn.Linear(inputs, WIDTH),
        nn.BatchNorm1d(WIDTH),
        nn.ReLU(),
        nn.Dropout(0.1),
        *hidden,
        nn.Linear(WIDTH, 3),
    )
