"""Scores on held-out rows: the default network, scikit-learn's of the same shape, and the student."""

import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, r2_score, root_mean_squared_error
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.report import Section, Table, Target, load_average
from core.local import distill_model_from_file, train_model_from_file
from core.preparation import VALIDATION_SHARE
from core.splits import split_rows
from core.target import infer_target

SETS: Final = ("breast_cancer", "digits", "wine", "diabetes")
SEEDS: Final = range(5)
TEST_SIZE: Final = 0.2
KEPT_LIMIT: Final = 0.99
STUDENT_WIDTH: Final = 32  # with one layer at most a tenth of the teacher's parameters
RMSE_LIMIT: Final = 1.02


@dataclass(frozen=True, slots=True)
class Score:
    """Of one set and seed, on the same test rows.

    Attributes:
        ours, peer: Accuracy, or R² on diabetes.
        ours_rmse, peer_rmse: 0 in classification.
        kept: The student's accuracy over its teacher's, or its RMSE over its teacher's.
        parameters_kept: The student's share of its teacher's parameters.
    """

    ours: float
    peer: float
    ours_rmse: float
    peer_rmse: float
    kept: float
    parameters_kept: float


def measure() -> Section:
    load = load_average()
    scores = {name: [score(name, seed) for seed in SEEDS] for name in SETS}
    classified = [s for name in SETS if name != "diabetes" for s in scores[name]]
    return Section(
        name="quality",
        title="Quality",
        about=(
            f"`mlp_dense` at its defaults against scikit-learn's MLP of the same shape (128, 128) at its "
            f"defaults behind a StandardScaler, {len(SEEDS)} seeds each. A seed gives both the same test "
            "rows; the peer trains on our training and validation rows together. The student is `distill` at "
            f"its defaults with `student_hidden_dim` {STUDENT_WIDTH}. ± is one standard error over the "
            "seeds, of a difference that of the paired ones."
        ),
        targets=_targets(classified, scores["diabetes"]),
        tables=[
            Table(
                ("set", "Stillhouse", "scikit-learn", "difference"),
                [_compared(name, scores[name]) for name in SETS]
                + [_compared("three sets of classes", classified)],
                "Accuracy; R² and (RMSE) on diabetes.",
            ),
            Table(
                ("set", "student over teacher", "worst seed", "parameters"),
                [_student_row(name, scores[name]) for name in SETS],
                "Accuracy of the student over its teacher's; RMSE over RMSE on diabetes.",
            ),
        ],
        packages=("torch", "scikit-learn", "numpy"),
        started_load=load,
    )


def score(name: str, seed: int) -> Score:
    """Trains teacher, student and peer on one split."""
    frame = getattr(datasets, f"load_{name}")(as_frame=True).frame
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as folder:
        path = Path(folder) / "table.csv"
        frame.to_csv(path, index=False)
        settings: Any = {"random_seed": seed, "test_size": TEST_SIZE}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # pixels that are the same in every image
            bundle, metrics = train_model_from_file(path, "target", **settings)
            _, student = distill_model_from_file(
                path, "target", bundle, student_hidden_dim=STUDENT_WIDTH, **settings
            )
    peer, peer_rmse = _peer_score(frame, seed)
    regression = name == "diabetes"
    ours: Any = metrics["test_metric_value"]
    kept: Any = student["test_metric_value"]
    r2: Any = metrics["extra"]
    shares: Any = student["student_param_count"], student["teacher_param_count"]
    return Score(
        ours=r2["r2"] if regression else ours,
        peer=peer,
        ours_rmse=ours if regression else 0.0,
        peer_rmse=peer_rmse,
        kept=kept / ours,
        parameters_kept=shares[0] / shares[1],
    )


def _peer_score(frame: pd.DataFrame, seed: int) -> tuple[float, float]:
    """Accuracy and 0, or R² and RMSE."""
    target = infer_target(pa.chunked_array([pa.array(frame["target"])]), "target", "auto")
    split = split_rows(
        len(frame),
        test_size=TEST_SIZE,
        validation_size=VALIDATION_SHARE,
        seed=seed,
        strata=target.values if target.classes else None,
    )
    rows, truth = frame.drop(columns="target").to_numpy(), frame["target"].to_numpy()
    network = MLPClassifier if target.classes else MLPRegressor
    peer = make_pipeline(StandardScaler(), network(hidden_layer_sizes=(128, 128), random_state=seed))
    seen = np.concatenate([split.train, split.validation])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 200 epochs are its default
        peer.fit(rows[seen], truth[seen])
    guess, actual = peer.predict(rows[split.test]), truth[split.test]
    if target.classes:
        return float(accuracy_score(actual, guess)), 0.0
    return float(r2_score(actual, guess)), float(root_mean_squared_error(actual, guess))


def _targets(classified: list[Score], regressed: list[Score]) -> list[Target]:
    better = fmean(s.ours - s.peer for s in (*classified, *regressed))
    kept, rmse = fmean(s.kept for s in classified), fmean(s.kept for s in regressed)
    return [
        Target(
            "accuracy (R² on diabetes) minus scikit-learn's, mean over the four sets",
            "at least 0",
            f"{better:+.4f}",
            better >= 0,
        ),
        Target(
            "accuracy that the student keeps, mean",
            f"at least {KEPT_LIMIT}",
            f"{kept:.4f}",
            kept >= KEPT_LIMIT,
        ),
        Target(
            "RMSE of the student over its teacher's on diabetes, mean",
            f"at most {RMSE_LIMIT}",
            f"{rmse:.4f}",
            rmse <= RMSE_LIMIT,
        ),
    ]


def _compared(name: str, scores: list[Score]) -> tuple[str, ...]:
    gaps = [s.ours - s.peer for s in scores]
    ours, peer = _mean_text([s.ours for s in scores]), _mean_text([s.peer for s in scores])
    if rmse := fmean(s.ours_rmse for s in scores):
        ours, peer = f"{ours} ({rmse:.1f})", f"{peer} ({fmean(s.peer_rmse for s in scores):.1f})"
    return name, ours, peer, f"{_mean_text(gaps, signed=True)}"


def _student_row(name: str, scores: list[Score]) -> tuple[str, ...]:
    kept = [s.kept for s in scores]
    worst = max(kept) if name == "diabetes" else min(kept)
    return name, _mean_text(kept), f"{worst:.4f}", f"{100 * scores[0].parameters_kept:.1f} % of its teacher's"


def _mean_text(values: list[float], *, signed: bool = False) -> str:
    error = stdev(values) / len(values) ** 0.5
    return f"{fmean(values):{'+' if signed else ''}.4f} ± {error:.4f}"
