"""Intervals hold what they promise, and importance is what shuffling costs."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.inspection import permutation_importance as reference_importance
from sklearn.linear_model import LinearRegression
from sklearn.metrics import make_scorer, root_mean_squared_error

from core.bundles import Bundle
from core.conformal import fewest_rows, interval_radius
from core.details import REPEATS, permutation_importance
from core.errors import DatasetError, ParameterError, TrainingStoppedError
from core.evaluation import MOST_LISTED
from core.prediction import Predictor
from core.splits import split_rows

# ── Intervals ───────────────────────────────────────────────────────────────────────────────────────────────

LEVELS = st.floats(0.01, 0.99)


@given(st.integers(1, 300), LEVELS)
def test_the_radius_is_the_first_residual_of_sufficient_rank(count, level):
    residuals = np.random.default_rng(0).normal(size=count)
    if count < fewest_rows(level):
        with pytest.raises(ValueError, match=f"needs {fewest_rows(level)} residuals, got {count}"):
            interval_radius(residuals, level)
        return
    radius = interval_radius(residuals, level)
    held = np.count_nonzero(np.abs(residuals) <= radius)
    assert held >= (count + 1) * level - 1e-6
    assert held - 1 < (count + 1) * level  # the next smaller one would not do


@pytest.mark.parametrize(("level", "rows"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99), (0.1, 1)])
def test_the_fewest_rows_are_exact_where_floats_are_not(level, rows):
    assert fewest_rows(level) == rows
    interval_radius(np.ones(rows), level)


def test_intervals_hold_new_values_as_often_as_they_promise():
    """Exactly ⌈(N + 1) level⌉ / (N + 1) of the time where residuals have no ties."""
    rng, held = np.random.default_rng(0), []
    for _ in range(4000):
        *residuals, new = rng.standard_t(3, size=20)
        held.append(abs(new) <= interval_radius(np.array(residuals), 0.8))
    expected = math.ceil(21 * 0.8) / 21
    # four standard errors
    assert np.mean(held) == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 4000))


FIELDS = {"epochs": 8, "early_stopping_patience": 8, "learning_rate": 0.02}


def test_a_run_s_intervals_cover_rows_that_it_never_saw(engine):
    """Over seeds of the whole pipeline; early stopping looks at the same rows, which costs little."""
    covered, new = [], engine.table("value", rows=2000, seed=99)
    columns = {name: new[name] for name in new.column_names if name != "y"}
    for seed in range(12):
        bundle = engine.train(
            engine.table("value", rows=400, seed=seed), interval=0.8, random_seed=seed, **FIELDS
        ).bundle
        predictor = Predictor(bundle)
        low, high = predictor.intervals(predictor.predict(predictor.encode(columns).features).values).T
        truth = new["y"].to_numpy()
        covered.append(np.mean((low <= truth) & (truth <= high)))
    # of 32 validation rows: the coverage of one run scatters by 0.07 around 27/33, their mean by 0.02
    assert np.mean(covered) == pytest.approx(27 / 33, abs=0.06)


def test_the_interval_is_that_of_the_validation_residuals(engine):
    table = engine.table("value", rows=200)
    finished = engine.train(table, interval=0.8, **FIELDS)
    split = split_rows(200, test_size=0.2, validation_size=0.1, seed=42, strata=None)
    predictor = Predictor(finished.bundle)
    columns = {name: table[name] for name in table.column_names if name != "y"}
    errors = np.abs(table["y"].to_numpy() - predictor.predict(predictor.encode(columns).features).values)
    expected = np.sort(errors[split.validation])[math.ceil(17 * 0.8) - 1]
    interval = finished.bundle.interval
    # float32, batches of another size
    assert (interval.level, interval.radius) == (0.8, pytest.approx(expected, rel=1e-5))
    found = finished.bundle.metrics["details"]["interval"]
    assert found == {
        "level": 0.8,
        "radius": interval.radius,
        "test_coverage": pytest.approx(np.mean(errors[split.test] <= interval.radius)),
    }


def test_an_interval_survives_the_file_and_the_old_ones_have_none(engine):
    bundle = engine.train(engine.table("value"), interval=0.5).bundle
    copy = Bundle.from_bytes(bundle.to_bytes())
    assert copy.interval == bundle.interval
    assert copy.to_bytes() == bundle.to_bytes()
    values = np.array([0.0, 5.0])
    radius = bundle.interval.radius
    assert Predictor(copy).intervals(values).tolist() == [[-radius, radius], [5 - radius, 5 + radius]]
    with pytest.raises(ParameterError, match="The model has no intervals: leave intervals out"):
        Predictor(engine.trained("value").bundle).intervals(values)


def test_an_interval_keeps_validation_rows_aside_without_early_stopping(engine):
    outcome = engine.train(engine.table("value"), interval=0.5, early_stopping_patience=0).outcome
    assert outcome.rows["validation"] == 10


def test_a_student_has_an_interval_of_its_own_or_none(engine):
    teacher = engine.train(engine.table("value"), interval=0.5).teacher
    assert engine.distill(engine.table("value"), teacher).bundle.interval is None
    student = engine.distill(engine.table("value"), teacher, interval=0.6).bundle
    assert student.interval.level == 0.6
    assert student.interval.radius != teacher.bundle.interval.radius


def test_an_interval_around_classes_is_refused_before_training(engine):
    for target in ("five", "flag"):
        with pytest.raises(ParameterError, match="interval needs a regression") as caught:
            next(engine.work(engine.table(target), interval=0.9))
        assert caught.value.details == {"field": "interval"}


def test_too_few_validation_rows_for_the_level_are_refused_before_training(engine):
    with pytest.raises(
        DatasetError, match=r"interval 0\.99 needs 99 validation rows, there are 10: lower it"
    ) as caught:
        next(engine.work(engine.table("value"), interval=0.99))
    assert caught.value.details == {"needed": 99, "rows": 10}


# ── Importance ──────────────────────────────────────────────────────────────────────────────────────────────


def never():
    return False


def test_importance_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2000, 3)).astype(np.float32)
    y = 3 * features[:, 0] - features[:, 1] + rng.normal(0, 0.5, 2000)
    model = LinearRegression().fit(features, y)
    found = permutation_importance(
        lambda x: float(root_mean_squared_error(y, model.predict(x.numpy()))),
        torch.tensor(features),
        {name: np.array([index]) for index, name in enumerate("abc")},
        np.random.Generator(np.random.PCG64(0)),
        never,
    )
    scorer = make_scorer(root_mean_squared_error, greater_is_better=False)
    expected = reference_importance(model, features, y, scoring=scorer, n_repeats=50, random_state=0)
    for index, name in enumerate("abc"):
        # the mean of five orders against that of fifty
        spread = expected.importances_std[index] / np.sqrt(REPEATS)
        assert found[name][0] == pytest.approx(expected.importances_mean[index], abs=4 * spread + 1e-6)


def test_columns_matter_by_what_the_target_follows_from(engine):
    table = engine.table("value", rows=600).append_column("constant", pa.array([1.0, 2.0] * 300))
    fields = {"epochs": 30, "early_stopping_patience": 30, "learning_rate": 0.01}
    bundle = engine.train(table, importance=True, **fields).bundle
    found = bundle.metrics["details"]["importance"]
    means = {row["column"]: row["mean"] for row in found["columns"]}
    assert (found["metric"], found["rows"], found["repeats"]) == ("rmse", 120, REPEATS)
    assert set(means) == {"x", "z", "colour", "flag", "day", "constant"}
    assert next(iter(means)) == "x"
    assert list(means.values()) == sorted(means.values(), reverse=True)
    # 20 · x has a spread of 20; what the target does not follow from costs next to nothing
    assert means["x"] > 10 > 5 > max(means["flag"], means["day"], means["constant"])
    assert min(means["z"], means["colour"]) > 3


def test_importance_of_a_classifier_is_lost_accuracy_and_leaves_the_rest_as_it_is(engine):
    plain = engine.trained("five").bundle
    bundle = engine.train(engine.table("five"), importance=True).bundle
    found = bundle.metrics["details"].pop("importance")
    assert found["metric"] == "accuracy"
    assert all(-1 <= row["mean"] <= 1 for row in found["columns"])
    assert bundle.metrics == plain.metrics
    for name, array in plain.weights.items():
        assert bundle.weights[name].tobytes() == array.tobytes()


def test_importance_is_the_same_for_the_same_seed(engine):
    first, second = (
        engine.train(engine.table("five"), importance=True).bundle.metrics["details"]["importance"]
        for _ in range(2)
    )
    assert first == second


def test_features_are_put_back_after_each_column():
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    before, seen = features.clone(), []

    def loss(x):
        seen.append((x != before).any(0).tolist())
        return 0.0

    groups = {"a": np.array([0, 2]), "b": np.array([1]), "c": np.array([], np.int64)}
    permutation_importance(loss, features, groups, np.random.Generator(np.random.PCG64(0)), never)
    assert torch.equal(features, before)
    moved = [[True, False, True, False], [False, True, False, False], [False] * 4]
    assert seen == [[False] * 4, *(row for row in moved for _ in range(REPEATS))]


def test_every_feature_belongs_to_the_column_that_it_is_of(engine):
    encoder = engine.trained("five").bundle.encoder
    groups = encoder.features_of_columns()
    assert sorted(np.concatenate(list(groups.values()))) == list(range(encoder.width))
    for name, positions in groups.items():
        assert all(encoder.feature_names[index].startswith(name) for index in positions)
    assert len(groups["z"]) == 2  # its values and whether they are null
    assert len(groups["colour"]) == 4  # three colours and the bucket


def test_of_many_columns_the_most_important_are_told(engine):
    rng = np.random.default_rng(0)
    table = {f"n{index}": rng.normal(size=60) for index in range(MOST_LISTED + 20)}
    bundle = engine.train(pa.table({**table, "y": rng.normal(size=60)}), importance=True, epochs=1,
                          early_stopping_patience=0).bundle  # fmt: skip
    found = bundle.metrics["details"]["importance"]
    assert (len(found["columns"]), found["columns_left_out"]) == (MOST_LISTED, 20)


def test_measuring_importance_can_be_stopped():
    calls = iter([False, True])
    with pytest.raises(TrainingStoppedError):
        permutation_importance(
            lambda x: 0.0,
            torch.zeros(4, 2),
            {"a": np.array([0]), "b": np.array([1])},
            np.random.Generator(np.random.PCG64(0)),
            lambda: next(calls),
        )
