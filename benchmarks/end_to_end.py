"""The whole way from a CSV file to the metric, next to scikit-learn and skorch over pandas."""

import tempfile
import warnings
from collections.abc import Callable
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
from core.local import train_model_from_file

ROWS: Final = 20_000
EPOCHS: Final = 20
END_REPEATS: Final = 3
OURS, SCIKIT, SKORCH = "Stillhouse", "scikit-learn", "skorch"


def end_to_end_times() -> Times:
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 20 epochs are what is asked for
        path = Path(folder) / "table.csv"
        write_csv(mixed_table(ROWS), path)
        settings: Any = {"epochs": EPOCHS, "batch_size": 256, "early_stopping_patience": 0}
        ways: dict[str, Callable[[], object]] = {
            OURS: lambda: train_model_from_file(path, TARGET, **settings),
            SCIKIT: lambda: _peer(path, _scikit()),
        }
        if (skorch := _skorch()) is not None:
            ways[SKORCH] = lambda: _peer(path, skorch())
        return interleaved(ways, END_REPEATS)


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


def _scikit() -> MLPClassifier:
    return MLPClassifier((128, 128), max_iter=EPOCHS, batch_size=256, n_iter_no_change=EPOCHS, random_state=0)


def _skorch() -> Callable[[], Any] | None:
    """Makes skorch's classifier over our network; None where skorch is not installed."""
    try:
        from skorch import NeuralNetClassifier
    except ImportError:
        return None

    def build() -> NeuralNetClassifier:
        return NeuralNetClassifier(
            _layers(NUMBERS + sum(TEXTS)),
            criterion=torch.nn.CrossEntropyLoss,
            optimizer=torch.optim.Adam,
            lr=0.001,
            max_epochs=EPOCHS,
            batch_size=256,
            iterator_train__shuffle=True,
            train_split=None,
            verbose=0,
        )

    return build


def _layers(inputs: int) -> torch.nn.Sequential:
    nn = torch.nn
    hidden = [nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.1)]
    return nn.Sequential(
        nn.Linear(inputs, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.1), *hidden, nn.Linear(128, 3)
    )
