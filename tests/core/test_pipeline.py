import datetime
import math

import numpy as np
import pyarrow as pa
import pytest
import sklearn.metrics
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier

from core.bundles import Bundle
from core.contract.modes import ALLOWED_TRAINING_MODES, CLASSIFICATION_ONLY
from core.errors import (
    DatasetError,
    ParameterError,
    StillhouseError,
    TrainingError,
    TrainingModeError,
    TrainingStoppedError,
)
from core.forest import forest_outputs
from core.pipeline import train
from core.prediction import Predictor
from core.preparation import VALIDATION_SHARE
from core.splits import split_rows
from core.target import infer_target

CLASSIFICATION = ["binary", "flag", "number", "five"]


def split_again(finished, test_size=0.2, seed=42, watched=True):
    """The split and the truth as the contract has them, drawn anew from table and settings."""
    target = infer_target(finished.table["y"], "y", "auto")
    split = split_rows(
        len(target.values),
        test_size=test_size,
        validation_size=VALIDATION_SHARE if watched else 0.0,
        seed=seed,
        strata=target.values if target.classes else None,
    )
    return split, target


def predicted(bundle, table, rows):
    predictor = Predictor(bundle)
    columns = {name: table[name].take(pa.array(rows)) for name in table.column_names if name != "y"}
    return predictor.predict(predictor.encode(columns).features)


def without(metrics):
    return {name: value for name, value in metrics.items() if name not in ("train_loss", "test_loss")}


@pytest.mark.parametrize("mode", ALLOWED_TRAINING_MODES)
@pytest.mark.parametrize("target", CLASSIFICATION)
def test_classification_metrics_are_those_of_scikit_learn_on_the_test_rows(engine, target, mode):
    finished = engine.trained(target, mode)
    bundle, metrics = finished.bundle, finished.bundle.metrics
    split, truth = split_again(finished)
    prediction = predicted(bundle, finished.table, split.test)
    y, probabilities = truth.values[split.test], prediction.probabilities.astype(np.float64)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    found = prediction.values
    assert metrics["task"] == "classification"
    assert metrics["test_metric_name"] == "accuracy"
    assert metrics["test_metric_value"] == pytest.approx(sklearn.metrics.accuracy_score(y, found))
    extra = metrics["extra"]
    assert extra["f1_macro"] == pytest.approx(sklearn.metrics.f1_score(y, found, average="macro"))
    labels = range(len(bundle.classes))
    # probabilities are float32; those of scikit-learn were made to sum to 1 in float64
    log_loss = sklearn.metrics.log_loss(y, probabilities, labels=labels)
    assert extra["log_loss"] == pytest.approx(log_loss, rel=1e-5)
    scores = probabilities[:, 1] if len(labels) == 2 else probabilities
    area = sklearn.metrics.roc_auc_score(y, scores, multi_class="ovr", labels=labels)
    assert extra["roc_auc"] == pytest.approx(area)
    assert 0 <= extra["ece"] <= 1


@pytest.mark.parametrize("mode", sorted({*ALLOWED_TRAINING_MODES} - CLASSIFICATION_ONLY))
def test_regression_metrics_are_those_of_scikit_learn_in_the_target_s_units(engine, mode):
    finished = engine.trained("value", mode)
    metrics = finished.bundle.metrics
    split, target = split_again(finished)
    y, found = target.values[split.test], predicted(finished.bundle, finished.table, split.test).values
    assert (metrics["task"], metrics["test_metric_name"]) == ("regression", "rmse")
    # batches of another size may sum products in another order
    assert metrics["test_metric_value"] == pytest.approx(
        sklearn.metrics.root_mean_squared_error(y, found), rel=1e-6
    )
    assert metrics["extra"]["mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(y, found), rel=1e-6)
    assert metrics["extra"]["r2"] == pytest.approx(sklearn.metrics.r2_score(y, found), rel=1e-6, abs=1e-6)


def test_the_test_loss_is_the_objective_in_evaluation_mode_on_the_test_rows(engine):
    plain, value = engine.trained("binary").bundle.metrics, engine.trained("value")
    # float32 against float64
    assert plain["test_loss"] == pytest.approx(plain["extra"]["log_loss"], rel=1e-5)
    scaled = (value.bundle.metrics["test_metric_value"] / value.bundle.target_std) ** 2
    assert value.bundle.metrics["test_loss"] == pytest.approx(scaled, rel=1e-5)


def outputs_of(finished):
    predictor = Predictor(finished.bundle)
    columns = {name: finished.table[name] for name in finished.table.column_names if name != "y"}
    features = predictor.encode(columns).features
    return features, torch.tensor(predictor.outputs(features)).double()


def test_labels_are_smoothed_where_a_temperature_follows(engine):
    finished = engine.trained("five", "calibrated_classifier")
    split, target = split_again(finished)
    outputs = outputs_of(finished)[1][split.test]
    smooth = 0.95 * np.eye(5)[target.values[split.test]] + 0.05 / 5
    expected = -(torch.tensor(smooth) * outputs.log_softmax(1)).sum(1).mean().item()
    assert finished.bundle.metrics["test_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("target", ["five", "value"])
def test_half_of_the_loss_is_to_the_forest_where_one_teaches(engine, target):
    finished = engine.trained(target, "tree_teacher_distillation")
    split, truth = split_again(finished)
    features, outputs = outputs_of(finished)
    bundle = finished.bundle
    hard = truth.values
    if target == "value":
        hard = ((hard - bundle.target_mean) / bundle.target_std).astype(np.float32)
    classes = 5 if target == "five" else None
    soft = torch.tensor(forest_outputs(features, hard, split.train, classes, 42, lambda: False)).double()
    for rows, name in ((split.train, "train_loss"), (split.test, "test_loss")):
        if target == "five":
            logs = outputs[rows].log_softmax(1)
            to_labels = -logs[torch.arange(len(rows)), hard[rows]].mean()
            to_forest = -(soft[rows] * logs).sum(1).mean()
        else:
            to_labels = (outputs[rows, 0] - torch.tensor(hard[rows])).square().mean()
            to_forest = (outputs[rows] - soft[rows]).square().mean()
        expected = (0.5 * to_labels + 0.5 * to_forest).item()
        # float32 against float64
        assert bundle.metrics[name] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("target", "classes"),
    [
        ("binary", ("no", "yes")),
        ("flag", (False, True)),
        ("number", (3, 7)),
        ("five", ("a", "b", "c", "d", "e")),
        ("value", None),
    ],
)
def test_the_task_and_the_classes_follow_from_the_target(engine, target, classes):
    bundle = engine.trained(target).bundle
    assert bundle.classes == classes
    assert list(map(type, bundle.classes or ())) == list(map(type, classes or ()))
    assert bundle.task == ("classification" if classes else "regression")
    assert bundle.architecture.outputs == len(classes or [1])
    assert bundle.schema["target"] == "y"
    assert bundle.schema["classes"] == (classes and list(classes))


def test_an_explicit_task_decides(engine):
    table = engine.table("number")
    assert engine.train(table, task="regression").bundle.classes is None
    assert engine.train(table, task="classification").bundle.classes == (3, 7)
    with pytest.raises(DatasetError, match="text"):
        engine.train(engine.table("binary"), task="regression")


def test_the_models_learn_what_can_be_learned(engine):
    """Bounds far from chance: labels follow from the features but for a little noise."""
    fields = {"epochs": 60, "early_stopping_patience": 10, "learning_rate": 0.01}
    table = engine.table("binary", rows=600)
    for mode in ALLOWED_TRAINING_MODES:
        assert engine.train(table, training_mode=mode, **fields).bundle.metrics["test_metric_value"] > 0.85
    assert engine.train(engine.table("value", rows=600), **fields).bundle.metrics["extra"]["r2"] > 0.8


def test_counts_reports_and_timings_tell_what_happened(engine):
    outcome, reports = engine.trained("binary").outcome, engine.trained("binary").reports
    split, _ = split_again(engine.trained("binary"))
    assert outcome.rows == {part: len(getattr(split, part)) for part in ("train", "validation", "test")}
    assert outcome.rows["test"] == 24
    assert outcome.epochs_run == len(reports) == 3
    assert outcome.device == "cpu"
    timings = outcome.timings_s
    assert 0 < timings["load"] + timings["train"] <= timings["total"]
    assert outcome.warnings == ()
    assert Bundle.from_bytes(outcome.file).metrics == outcome.bundle.metrics


def test_the_schema_names_the_role_of_every_column(engine):
    table = engine.table("binary").append_column("same", pa.array([1] * 120))
    finished = engine.train(table, exclude_columns=("z",))
    roles = {column["name"]: column["role"] for column in finished.bundle.schema["columns"]}
    assert roles == {
        "x": "feature",
        "z": "excluded",
        "colour": "feature",
        "flag": "feature",
        "day": "feature",
        "y": "target",
        "same": "ignored",
    }
    colour = next(c for c in finished.bundle.schema["columns"] if c["name"] == "colour")
    assert colour["categories"] == ["blue", "green", "red"]
    assert any("'same'" in warning for warning in finished.outcome.warnings)


def test_settings_record_the_request_but_not_where_the_data_lies(engine):
    settings = engine.trained("binary").bundle.settings
    assert settings["data"] == "table.arrow"
    assert settings["batch_size"] >= 2
    assert (settings["hidden_dim"], settings["random_seed"], settings["epochs"]) == (16, 42, 3)
    assert settings.keys().isdisjoint({"saving", "device", "warnings", "teacher"})


def test_rows_without_a_target_are_left_out_with_a_warning(engine):
    table = engine.table("five")
    labels = table["y"].to_pylist()
    holes = [label if row % 10 else None for row, label in enumerate(labels)]
    outcome = engine.train(table.set_column(5, "y", pa.array(holes))).outcome
    assert sum(outcome.rows.values()) == 108
    assert outcome.warnings == ("12 rows without a target were left out",)
    kept = table.filter(pa.array([row % 10 > 0 for row in range(120)]))
    assert without(engine.train(kept).bundle.metrics) == without(outcome.bundle.metrics)


def test_nothing_is_fitted_on_test_or_validation_rows(engine):
    """Absurd values there leave encoder, target scaling and weights as they are."""
    finished = engine.train(engine.table("value"))
    split, _ = split_again(finished)
    absurd = np.zeros(120, bool)
    absurd[np.concatenate([split.test, split.validation])] = True
    table = finished.table
    for index, name, value in ((0, "x", 1e9), (5, "y", 1e5)):
        table = table.set_column(index, name, pa.array(np.where(absurd, value, table[name])))
    colours = np.where(absurd, "ultraviolet", table["colour"].to_numpy())
    table = table.set_column(2, "colour", pa.array(colours))
    # one epoch, whose weights are the best ones whatever the validation rows say
    first, second = (
        engine.train(t, epochs=1, early_stopping_patience=1).bundle for t in (finished.table, table)
    )
    assert first.encoder.to_state()[0] == second.encoder.to_state()[0]
    for name, array in first.encoder.to_state()[1].items():
        assert np.array_equal(array, second.encoder.to_state()[1][name])
    assert (first.target_mean, first.target_std) == (second.target_mean, second.target_std)
    for name, array in first.weights.items():
        assert np.array_equal(array, second.weights[name])


def test_regression_targets_are_standardised_by_the_training_rows(engine):
    finished = engine.trained("value")
    split, target = split_again(finished)
    values = target.values[split.train]
    assert finished.bundle.target_mean == pytest.approx(values.mean())
    assert finished.bundle.target_std == pytest.approx(values.std())


def test_features_silent_in_training_have_no_weight(engine):
    bundle = engine.trained("binary").bundle
    silent = bundle.encoder.never_active()
    assert [bundle.encoder.feature_names[i] for i in silent] == ["colour=<other>"]
    assert not bundle.weights["0.weight"][:, silent].any()


def test_date_columns_become_calendar_features(engine):
    table = engine.table("binary")
    texts = [day.strftime("%d/%m/%Y") for day in table["day"].to_pylist()]
    table = table.set_column(4, "day", pa.array(texts))
    bundle = engine.train(table, date_columns=("day",)).bundle
    assert {"day.year", "day.month", "day.weekday"} < set(bundle.encoder.feature_names)
    assert not any(name.startswith("day.") for name in engine.train(table).bundle.encoder.feature_names)


def test_excluded_columns_are_not_needed_to_predict(engine):
    finished = engine.train(engine.table("binary"), exclude_columns=("z", "day"))
    assert [column.name for column in finished.bundle.encoder.columns] == ["x", "colour", "flag"]
    Predictor(finished.bundle).encode({"x": [1.0], "colour": ["red"], "flag": [True]})


@pytest.mark.parametrize(
    ("column", "fields", "message"),
    [
        (None, {"target_column": "absent"}, "no column 'absent'; it has 'x', 'z'"),
        (None, {"exclude_columns": ("absent",)}, "no column 'absent'"),
        (None, {"date_columns": ("absent",)}, "no column 'absent'"),
        (None, {"date_columns": ("flag",)}, "must hold dates"),
        (None, {"date_columns": ("day",), "exclude_columns": ("day",)}, "date_columns"),
        (None, {"exclude_columns": ("x", "z", "colour", "flag", "day")}, "None of the 0 feature columns"),
        (["one"] * 120, {}, "must vary"),
        ([1.5] * 120, {}, "must vary"),
        ([None] * 120, {}, "no values"),
        ([None] * 119 + ["x"], {}, "at least 2 rows"),
        ([f"name{i}" for i in range(120)], {}, "too few"),
        ([float("inf"), *range(119)], {}, "finite"),
        ([datetime.date(2024, 1, 1 + i % 9) for i in range(120)], {}, "dates"),
        ([1e300 * (-1) ** i for i in range(120)], {"task": "regression"}, "too extreme"),
        ([1e308 + i for i in range(120)], {"task": "regression"}, "too extreme|must vary"),
    ],
)
def test_what_only_the_data_can_tell_is_a_dataset_error(engine, column, fields, message):
    table = engine.table("binary")
    if column is not None:
        table = table.set_column(5, "y", pa.array(column))
    with pytest.raises(DatasetError, match=message):
        engine.train(table, **fields)


def test_a_test_target_far_beyond_the_others_is_an_error_and_no_broken_file(engine):
    table = engine.table("value")
    split, target = split_again(engine.trained("value"))
    for extreme in (1e25, 1e60):
        values = target.values.copy()
        values[split.test[0]] = extreme
        with pytest.raises((TrainingError, DatasetError), match=r"finite|extreme"):
            engine.train(table.set_column(5, "y", pa.array(values)))


@pytest.mark.parametrize("mode", sorted(CLASSIFICATION_ONLY))
def test_modes_for_classification_refuse_a_continuous_target(engine, mode):
    with pytest.raises(TrainingModeError, match=mode):
        engine.train(engine.table("value"), training_mode=mode)
    assert engine.train(engine.table("number"), training_mode=mode, task="classification").bundle.classes


def test_an_absent_device_is_found_before_the_data_is_read(engine):
    def unread():
        raise AssertionError("the data was read")

    with pytest.raises(ParameterError, match="cuda:99"):
        next(train(engine.request(device="cuda:99"), unread, lambda: False))


def test_a_training_that_runs_out_of_memory_says_what_it_asked_for(engine):
    def stop():
        torch.empty(2**56)

    with pytest.raises(TrainingError, match="ran out of memory") as caught:
        list(engine.work(engine.table("binary"), stop, batch_size=16))
    assert caught.value.details["batch_size"] == 16


@pytest.mark.parametrize("mode", ["mlp_dense", "tree_teacher_distillation"])
def test_stop_ends_the_work(engine, mode):
    calls = iter([False] * 4)
    with pytest.raises(TrainingStoppedError):
        list(engine.work(engine.table("binary"), lambda: next(calls, True), training_mode=mode, epochs=50))


def file_of(engine, target="five", mode="mlp_dense", **fields):
    return engine.train(engine.table(target), training_mode=mode, **fields).outcome.file


@pytest.mark.parametrize("mode", ALLOWED_TRAINING_MODES)
def test_the_same_request_gives_the_same_file_to_the_bit(engine, mode):
    files, before = set(), torch.get_num_threads()
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            torch.manual_seed(count)
            np.random.seed(count)
            files.add(file_of(engine, mode=mode))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    assert len(files) == 1


def test_global_generators_are_neither_read_nor_moved(engine):
    work = engine.work(engine.table("binary"), training_mode="tree_teacher_distillation")
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(work)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_work_of_two_requests_interleaved_gives_what_each_gives_alone(engine):
    alone = [engine.trained("binary").outcome.file, engine.trained("value").outcome.file]
    works = [engine.work(engine.table("binary")), engine.work(engine.table("value"))]
    files = [None, None]
    while works != [None, None]:
        for index, work in enumerate(works):
            try:
                if work is not None:
                    next(work)
            except StopIteration as end:
                files[index], works[index] = end.value.file, None
    assert files == alone


def test_another_seed_gives_another_model_and_another_split(engine):
    first, second = engine.trained("five").bundle, engine.train(engine.table("five"), random_seed=43).bundle
    assert not np.array_equal(first.weights["0.weight"], second.weights["0.weight"])
    assert first.metrics != second.metrics


def test_a_temperature_is_fitted_to_the_validation_rows(engine):
    """A temperature of 1 would be worse there, but for what the prior of log T costs."""
    finished = engine.train(
        engine.table("binary", rows=300), training_mode="calibrated_classifier", epochs=40, learning_rate=0.01
    )
    bundle = finished.bundle
    assert bundle.temperature != 1
    split, target = split_again(finished)
    predictor = Predictor(bundle)
    columns = {name: finished.table[name] for name in finished.table.column_names if name != "y"}
    logits = predictor.outputs(predictor.encode(columns).features)[split.validation].astype(np.float64)
    truth = target.values[split.validation]

    def penalised(log_t):
        scaled = logits / np.exp(log_t)
        likelihood = scaled[np.arange(len(truth)), truth] - np.log(np.exp(scaled).sum(axis=1))
        return -likelihood.mean() + log_t**2 / (2 * 0.25**2 * len(truth))

    grid = np.linspace(-1.5, 1.5, 3001)
    best = grid[np.argmin([penalised(log_t) for log_t in grid])]
    # the grid's step; the search ends at a flat minimum
    assert math.log(bundle.temperature) == pytest.approx(best, abs=2e-3)


@pytest.mark.parametrize("mode", sorted({*ALLOWED_TRAINING_MODES} - {"calibrated_classifier"}))
def test_other_modes_have_no_temperature(engine, mode):
    assert engine.trained("binary", mode).bundle.temperature == 1.0


def test_calibration_has_validation_rows_even_without_patience(engine):
    fields = {"training_mode": "calibrated_classifier", "early_stopping_patience": 0}
    outcome = engine.train(engine.table("binary"), **fields).outcome
    assert outcome.rows["validation"] == round(VALIDATION_SHARE * 96)
    assert engine.train(engine.table("binary"), early_stopping_patience=0).outcome.rows["validation"] == 0


def test_imbalance_awareness_finds_more_of_a_rare_class(engine):
    """A class of 6 % among overlapping ones: a plain classifier nearly always says the other."""
    rng = np.random.default_rng(0)
    y = rng.random(1000) < 0.06
    table = pa.table({"x": rng.normal(y * 1.0, 1), "w": rng.normal(size=1000), "y": y})
    fields = {"epochs": 30, "early_stopping_patience": 5, "learning_rate": 0.01}

    def recall(mode):
        finished = engine.train(table, training_mode=mode, **fields)
        split, target = split_again(finished)
        rare = split.test[target.values[split.test] == 1]
        return predicted(finished.bundle, table, rare).values.mean()

    assert recall("imbalance_aware") > recall("mlp_dense") + 0.3


def forest_problem(rows=300, classes=3):
    rng = np.random.default_rng(3)
    return rng.normal(size=(rows, 5)).astype(np.float32), rng.integers(0, classes, rows)


def test_the_forest_does_not_repeat_the_labels_of_rows_it_was_fitted_on():
    """Labels without any relation to the features: in sample a forest knows them, out of bag it cannot."""
    features, labels = forest_problem()
    fitted = np.arange(200)
    outputs = forest_outputs(features, labels, fitted, 3, 0, lambda: False)
    out_of_bag = np.mean(outputs[fitted].argmax(axis=1) == labels[fitted])
    forest = RandomForestClassifier(100, min_samples_leaf=2, random_state=0)
    in_sample = forest.fit(features[fitted], labels[fitted]).score(features[fitted], labels[fitted])
    assert in_sample > 0.9
    # five standard errors of a guess among three, whatever the labels' frequencies
    assert out_of_bag < 1 / 3 + 5 * np.sqrt(2 / 9 / 200)
    np.testing.assert_allclose(outputs.sum(axis=1), 1, atol=1e-6)
    assert outputs.shape == (300, 3)
    assert outputs.dtype == np.float32


def test_classes_unknown_to_the_forest_have_no_probability():
    features, labels = forest_problem(classes=2)
    outputs = forest_outputs(features, 2 * labels, np.arange(200), 4, 0, lambda: False)
    assert not outputs[:, [1, 3]].any()


def test_a_forest_of_regression_predicts_unseen_rows_out_of_bag():
    features, _ = forest_problem()
    values = features[:, 0].astype(np.float64)
    outputs = forest_outputs(features, values, np.arange(200), None, 0, lambda: False)
    assert outputs.shape == (300, 1)
    errors = np.abs(outputs[:, 0] - values)
    # rows of the training are as hard as the others when they are judged out of bag
    assert errors[:200].mean() == pytest.approx(errors[200:].mean(), rel=0.5)
    assert sklearn.metrics.r2_score(values[200:], outputs[200:, 0]) > 0.9


def test_the_forest_depends_on_its_seed_alone():
    features, labels = forest_problem(rows=60)
    first, again, other = (
        forest_outputs(features, labels, np.arange(40), 3, seed, lambda: False) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_forest_is_stopped_between_chunks_of_trees():
    features, labels = forest_problem(rows=60)
    calls = iter([False, False, True])
    with pytest.raises(TrainingStoppedError):
        forest_outputs(features, labels, np.arange(40), 3, 0, lambda: next(calls))
    assert next(calls, None) is None


NAMES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8).filter(str.strip),
    min_size=2,
    max_size=5,
    unique=True,
)


POOLS = {
    pa.string(): ["a", "b", "", "ü", "1", "a" * 300],
    pa.int64(): [0, 1, 2, -(2**63), 2**63 - 1],
    pa.float64(): [0.0, 1.5, -2.5, -1e308, 1e308, 1e-320, float("inf"), float("nan")],
    pa.bool_(): [False, True],
    pa.date32(): [datetime.date(2024, 2, 29), datetime.date(1, 1, 1), datetime.date(9999, 12, 31)],
}


@st.composite
def awkward_tables(draw):
    """A few rows of all types with nulls, constants, extremes and odd names; the target comes last."""
    rows, names = draw(st.integers(1, 24)), draw(NAMES)
    columns = {}
    for name in names:
        kind = draw(st.sampled_from(list(POOLS)))
        pool = draw(st.lists(st.sampled_from(POOLS[kind]), min_size=1, max_size=4, unique=True))
        nulls = [None] * draw(st.integers(0, 2))
        seed = draw(st.integers(0, 999))
        chosen = np.random.default_rng(seed).integers(0, len(pool) + len(nulls), rows)
        columns[name] = pa.array([[*pool, *nulls][index] for index in chosen], kind)
    return pa.table(columns)


@settings(deadline=None, max_examples=150)
@given(
    awkward_tables(),
    st.sampled_from(ALLOWED_TRAINING_MODES),
    st.sampled_from(["auto", "classification", "regression"]),
    st.floats(0.01, 0.99),
    st.integers(0, 2),
)
def test_an_awkward_table_trains_or_says_why_not(engine, table, mode, task, test_size, patience):
    fields = {
        "target_column": table.column_names[-1],
        "training_mode": mode,
        "task": task,
        "test_size": test_size,
        "epochs": 2,
        "early_stopping_patience": patience,
        "hidden_dim": 8,
        "learning_rate": 0.1,
    }
    try:
        outcome = engine.train(table, **fields).outcome
    except StillhouseError as error:
        event(type(error).__name__)
        return
    event("trained")
    bundle = Bundle.from_bytes(outcome.file)
    predictor = Predictor(bundle)
    columns = {name: table[name] for name in table.column_names[:-1]}
    prediction = predictor.predict(predictor.encode(columns).features)
    shown = prediction.values if bundle.classes is None else prediction.probabilities
    assert np.isfinite(shown).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 10), st.integers(2, 3), st.sampled_from(ALLOWED_TRAINING_MODES), st.integers(0, 10**6))
def test_a_table_of_two_to_ten_rows_trains_or_says_that_they_are_too_few(engine, rows, classes, mode, seed):
    rng = np.random.default_rng(seed)
    table = pa.table(
        {"x": rng.normal(size=rows), "w": rng.normal(size=rows), "y": rng.integers(0, classes, rows)}
    )
    try:
        outcome = engine.train(
            table, training_mode=mode, task="classification", epochs=2, hidden_dim=8
        ).outcome
    except DatasetError as error:
        assert "too few" in error.message or "must vary" in error.message  # noqa: PT017
        return
    assert outcome.rows["train"] >= 2
    assert sum(outcome.rows.values()) == rows


# ── The time limit ──────────────────────────────────────────────────────────────────────────────────────────


def test_max_seconds_ends_training_after_the_epoch_at_hand_with_a_warning(engine):
    outcome = engine.train(engine.table("five"), epochs=500, max_seconds=1e-6).outcome
    assert outcome.epochs_run == 1
    assert outcome.warnings[-1] == "training ended after 1 of 500 epochs, for max_seconds is 1e-06"
    assert outcome.bundle.settings["max_seconds"] == 1e-6
    assert outcome.bundle.metrics["test_metric_value"] > 0


def test_a_training_within_its_time_is_that_without_a_limit(engine):
    limited = engine.train(engine.table("five"), max_seconds=86_400).outcome
    free = engine.trained("five").outcome
    assert limited.warnings == free.warnings
    assert limited.bundle.metrics == free.bundle.metrics


def test_a_student_ends_in_time_too(engine):
    teacher = engine.trained("five").teacher
    outcome = engine.distill(engine.table("five"), teacher, epochs=500, max_seconds=1e-6).outcome
    assert outcome.epochs_run == 1
    assert outcome.warnings[-1].startswith("training ended after 1 of 500 epochs")
