"""Ensembles and sweeps, from the request to the bundle."""

import dataclasses
import io
import itertools
import json

import numpy as np
import onnxruntime
import pytest
import torch

from core import members
from core.bundles import ENSEMBLE_VERSION, FORMAT_VERSION, Bundle, read_header
from core.contract import Sweep
from core.contract.modes import ALLOWED_TRAINING_MODES
from core.errors import BundleError, TrainingDivergedError
from core.export import EXPORTS
from core.members import members_of
from core.prediction import Predictor
from core.stacked import Fitted

GRID = Sweep((0.001, 0.02), (0.0, 0.3))
CASES = [
    (target, mode)
    for target in ("five", "value")
    for mode in ALLOWED_TRAINING_MODES
    if target == "five" or mode not in ("imbalance_aware", "calibrated_classifier")
]
every_model = pytest.mark.parametrize(("target", "mode"), CASES)


def features_of(finished):
    columns = {name: finished.table[name] for name in finished.table.column_names if name != "y"}
    return finished.bundle.encoder.transform(columns).features


# ── Which they are ──────────────────────────────────────────────────────────────────────────────────────────


def test_one_model_has_no_members(engine):
    assert members_of(engine.request()) == []


def test_members_of_an_ensemble_differ_in_their_seeds_alone_of_which_the_first_is_the_request_s(engine):
    chosen = members_of(engine.request(ensemble_size=64, random_seed=7, learning_rate=0.5, dropout=0.2))
    assert chosen[0].seed == 7
    assert len({member.seed for member in chosen}) == 64
    assert {(member.learning_rate, member.dropout) for member in chosen} == {(0.5, 0.2)}
    assert all(0 <= member.seed < 2**32 for member in chosen)
    assert members_of(engine.request(ensemble_size=3, random_seed=7)) != chosen[:3]
    fewer = members_of(engine.request(ensemble_size=3, random_seed=7, learning_rate=0.5, dropout=0.2))
    assert fewer == chosen[:3]


def test_members_of_a_sweep_are_its_grid_with_one_seed(engine):
    chosen = members_of(engine.request(sweep=GRID, random_seed=7))
    pairs = [(member.learning_rate, member.dropout) for member in chosen]
    assert pairs == list(itertools.product(GRID.learning_rate, GRID.dropout))
    assert {member.seed for member in chosen} == {7}
    [single] = members_of(engine.request(sweep=Sweep(dropout=(0.5,)), learning_rate=0.3))
    assert (single.learning_rate, single.dropout) == (0.3, 0.5)


# ── An ensemble ─────────────────────────────────────────────────────────────────────────────────────────────


@every_model
def test_an_ensemble_predicts_the_mean_of_its_members(engine, target, mode):
    finished = engine.trained(target, mode, ensemble_size=3)
    bundle, features = finished.bundle, features_of(finished)
    alone = dataclasses.replace(bundle.architecture, members=1)
    parts = [
        dataclasses.replace(
            bundle, architecture=alone, weights={name: array[k] for name, array in bundle.weights.items()}
        )
        for k in range(3)
    ]
    each = np.stack([Predictor(part).outputs(features) for part in parts]).astype(np.float64)
    found = Predictor(Bundle.from_bytes(finished.outcome.file)).predict(features)
    if target == "value":
        expected = each[:, :, 0].mean(0) * bundle.target_std + bundle.target_mean
        np.testing.assert_allclose(found.values, expected, rtol=1e-5)
        return
    exponents = np.exp(each - each.max(2, keepdims=True))
    mean = (exponents / exponents.sum(2, keepdims=True)).mean(0)
    sharpened = mean ** (1 / bundle.temperature)
    np.testing.assert_allclose(
        found.probabilities, sharpened / sharpened.sum(1, keepdims=True), rtol=0, atol=1e-5
    )
    assert (bundle.temperature != 1) == (mode == "calibrated_classifier")


def test_the_first_member_is_what_the_request_makes_alone(engine):
    together, alone = engine.trained("five", ensemble_size=3).bundle, engine.trained("five").bundle
    for name, array in alone.weights.items():
        np.testing.assert_allclose(together.weights[name][0], array, rtol=1e-4, atol=1e-5)
        if name.endswith("weight") and array.ndim == 2:
            assert not np.allclose(together.weights[name][1], array, rtol=1e-2)


@every_model
def test_an_ensemble_reports_each_member(engine, target, mode):
    finished = engine.trained(target, mode, ensemble_size=3)
    report = finished.outcome.comparison["members"]
    assert [entry["random_seed"] for entry in report] == [
        member.seed for member in members_of(engine.request(ensemble_size=3))
    ]
    for entry in report:
        assert entry["kept"]
        assert entry["validation_loss"] > 0
        assert 0 <= entry["validation_metric_value"] <= (1 if target == "five" else np.inf)
        assert entry["epochs_run"] <= finished.outcome.epochs_run
    assert json.loads(json.dumps(report)) == list(report)
    assert finished.bundle.settings["ensemble_size"] == 3


def test_an_ensemble_is_a_file_of_its_own_version_and_one_model_is_as_ever(engine):
    ensemble, single = engine.trained("five", ensemble_size=3).outcome, engine.trained("five").outcome
    assert read_header(ensemble.file)["format_version"] == ENSEMBLE_VERSION
    assert read_header(ensemble.file)["architecture"]["members"] == 3
    assert read_header(single.file)["format_version"] == FORMAT_VERSION
    assert "members" not in read_header(single.file)["architecture"]
    assert Bundle.from_bytes(ensemble.file).to_bytes() == ensemble.file


@pytest.mark.parametrize("members_", [0, -1, "3", None, 1.5])
def test_a_bundle_of_no_members_is_refused(engine, members_):
    bundle = engine.trained("five", ensemble_size=3).bundle
    architecture = dataclasses.replace(bundle.architecture, members=members_)
    with pytest.raises(BundleError):
        Bundle.from_bytes(dataclasses.replace(bundle, architecture=architecture).to_bytes())


def run_onnx(file, features):
    return onnxruntime.InferenceSession(file).run(None, {"features": features})[0]


def run_torchscript(file, features):
    return torch.jit.load(io.BytesIO(file))(torch.tensor(features)).detach().numpy()


RUN = {"onnx": run_onnx, "torchscript": run_torchscript}


@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize(("target", "mode"), [("five", "mlp_dense"), ("value", "tabresnet")])
def test_an_exported_ensemble_predicts_as_its_bundle_does(engine, kind, target, mode):
    finished = engine.trained(target, mode, ensemble_size=3)
    file, bundle = EXPORTS[kind](finished.bundle), finished.bundle
    for rows in (1, 50):
        features = features_of(finished)[:rows]
        found, expected = RUN[kind](file, features), Predictor(bundle).predict(features)
        if target == "value":
            np.testing.assert_allclose(found, expected.values, rtol=0, atol=1e-5 * bundle.target_std)
        else:
            np.testing.assert_allclose(found, expected.probabilities, rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", ["five", "value"])
def test_an_ensemble_teaches(engine, target):
    slow = {"epochs": 30, "early_stopping_patience": 0, "learning_rate": 0.01}
    teacher = engine.trained(target, ensemble_size=3, **slow)
    student = engine.distill(teacher.table, teacher.teacher, alpha=0.0, **slow)
    found = student.outcome.comparison
    assert student.bundle.architecture.members == 1
    assert found["teacher_metrics"]["test_metric_value"] == pytest.approx(
        teacher.bundle.metrics["test_metric_value"]
    )
    alone = engine.trained(target)
    one = engine.distill(alone.table, alone.teacher).outcome.comparison["teacher_param_count"]
    assert found["teacher_param_count"] == 3 * one
    features = features_of(teacher)
    outputs = [Predictor(of).outputs(features) for of in (student.bundle, teacher.bundle)]
    if target == "value":
        assert np.abs(outputs[0] - outputs[1]).mean() < 0.5 * outputs[1].std()
    else:
        assert (outputs[0].argmax(1) == outputs[1].argmax(1)).mean() > 0.8


# ── A sweep ─────────────────────────────────────────────────────────────────────────────────────────────────


@every_model
def test_a_sweep_keeps_the_lowest_validation_loss(engine, target, mode):
    grid = Sweep(GRID.learning_rate) if mode == "linear_glm_baseline" else GRID
    finished = engine.trained(target, mode, sweep=grid)
    report = finished.outcome.comparison["members"]
    assert len(report) == len(grid.learning_rate) * max(1, len(grid.dropout))
    [kept] = [entry for entry in report if entry["kept"]]
    assert kept["validation_loss"] == min(entry["validation_loss"] for entry in report)
    assert finished.outcome.epochs_run == kept["epochs_run"]
    bundle = finished.bundle
    assert bundle.architecture.members == 1
    assert bundle.architecture.dropout == (0 if mode == "linear_glm_baseline" else kept["dropout"])
    assert (bundle.settings["learning_rate"], bundle.settings["dropout"]) == (
        kept["learning_rate"],
        kept["dropout"],
    )
    assert read_header(finished.outcome.file)["settings"]["sweep"]["learning_rate"] == [0.001, 0.02]


@pytest.mark.parametrize("target", ["five", "value"])
def test_what_a_sweep_keeps_is_what_its_settings_make_alone(engine, target):
    finished = engine.trained(target, sweep=GRID)
    settings = finished.bundle.settings
    alone = engine.trained(target, learning_rate=settings["learning_rate"], dropout=settings["dropout"])
    for name, array in alone.bundle.weights.items():
        np.testing.assert_allclose(finished.bundle.weights[name], array, rtol=1e-3, atol=1e-4, err_msg=name)
    metrics = finished.bundle.metrics
    assert metrics["test_metric_value"] == pytest.approx(alone.bundle.metrics["test_metric_value"], rel=1e-4)


def test_a_sweep_has_validation_rows_also_without_patience(engine):
    finished = engine.trained("five", sweep=GRID, early_stopping_patience=0)
    assert finished.outcome.rows["validation"] > 0
    assert {entry["epochs_run"] for entry in finished.outcome.comparison["members"]} == {3}


def test_validation_metrics_are_in_the_target_s_units(engine):
    finished = engine.trained("value", sweep=Sweep(dropout=(0.0,)))
    [entry] = finished.outcome.comparison["members"]
    root = np.sqrt(entry["validation_loss"]) * finished.bundle.target_std
    assert entry["validation_metric_value"] == pytest.approx(root, rel=1e-5)


def fitted(losses):
    """Members of these validation losses; those of None have diverged."""
    weights = {"0.weight": torch.ones(1)}
    return [
        Fitted(members.Member(0.1, 0.0, 0), None if loss is None else weights, 1, loss) for loss in losses
    ]


@pytest.mark.parametrize(
    ("losses", "best"),
    [([0.3, 0.1, 0.2], 1), ([None, 0.5], 1), ([float("nan"), 0.5, float("inf")], 1), ([0.2, 0.2], 0)],
)
def test_the_best_has_a_loss_that_is_finite(losses, best):
    assert members._best(fitted(losses)) == best


@pytest.mark.parametrize("fields", [{"ensemble_size": 2}, {"sweep": Sweep(dropout=(0.0, 0.1))}])
def test_where_nothing_can_be_kept_the_training_has_diverged(engine, monkeypatch, fields):
    def diverging(*_, **__):
        yield from ()
        return fitted([None, None]), members.Progress()

    monkeypatch.setattr(members, "fit_together", diverging)
    with pytest.raises(TrainingDivergedError):
        engine.train(engine.table("five"), **fields)
