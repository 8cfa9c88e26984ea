import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from core.architecture import Architecture
from core.augmentation import TIMES
from core.bundles import Bundle
from core.contract import DistillRequest, TeacherSource
from core.contract.modes import ALLOWED_TRAINING_MODES, UNSUPPORTED_DISTILL_MODES
from core.distillation import Teacher, student_architecture
from core.errors import DatasetError, ParameterError, StillhouseError, TrainingStoppedError
from core.losses import blend, cross_entropy, distillation_divergence, squared_error
from core.models import count_parameters, load_network
from core.pipeline import run
from core.prediction import Predictor
from core.preparation import VALIDATION_SHARE
from core.splits import split_rows
from core.target import encode_target
from core.training import outputs_of

STUDENT_MODES = sorted({*ALLOWED_TRAINING_MODES} - UNSUPPORTED_DISTILL_MODES)


def features_of(bundle, table):
    return bundle.encoder.transform({name: table[name] for name in table.column_names}).features


def logits_of(bundle, table):
    return Predictor(bundle).outputs(features_of(bundle, table)) / bundle.temperature


@pytest.fixture(scope="module")
def linear_teacher(engine):
    """A teacher that is perfect: its own predictions are the labels of the table."""
    bundle = engine.trained("binary", "linear_glm_baseline", epochs=20).bundle
    table = engine.table("binary", rows=400, seed=9)
    prediction = Predictor(bundle).predict(features_of(bundle, table))
    table = table.set_column(5, "y", pa.array(prediction.labels()))
    return Teacher(bundle, len(bundle.to_bytes()), {"run_id": "r1"}), table


LONG = {"epochs": 60, "early_stopping_patience": 0, "learning_rate": 0.02}


@pytest.mark.parametrize(("alpha", "least"), [(0.0, 0.95), (0.5, 0.95), (1.0, 0.85)])
def test_student_of_a_perfect_teacher_matches_it(engine, linear_teacher, alpha, least):
    teacher, table = linear_teacher
    comparison = engine.distill(table, teacher, alpha=alpha, **LONG).outcome.comparison
    # of 80 test rows some lie on the border, and labels alone tell less of where that is
    assert comparison["fidelity"] >= least
    assert comparison["teacher_metrics"]["test_metric_value"] == 1.0


def test_a_student_with_alpha_zero_learns_nothing_from_the_labels(engine, linear_teacher):
    """Labels turned upside down: it agrees with the teacher, not with them."""
    teacher, table = linear_teacher
    swapped = ["yes" if label == "no" else "no" for label in table["y"].to_pylist()]
    table = table.set_column(5, "y", pa.array(swapped))
    outcome = engine.distill(table, teacher, alpha=0.0, **LONG).outcome
    assert outcome.comparison["fidelity"] >= 0.95
    assert outcome.bundle.metrics["test_metric_value"] <= 0.05


def test_a_student_with_alpha_one_learns_nothing_from_the_teacher(engine, linear_teacher):
    teacher, table = linear_teacher
    other = engine.trained("binary", "linear_glm_baseline", random_seed=7).bundle
    assert not np.array_equal(other.weights["0.weight"], teacher.bundle.weights["0.weight"])
    replaced = dataclasses.replace(teacher.bundle, weights=other.weights)
    fields = {"alpha": 1.0, "epochs": 2, "early_stopping_patience": 2}
    first = engine.distill(table, teacher, **fields).bundle
    second = engine.distill(table, Teacher(replaced, 1, {}), **fields).bundle
    for name, array in first.weights.items():
        assert np.array_equal(array, second.weights[name])


def test_student_of_a_regression_follows_its_teacher_in_the_target_s_units(engine):
    finished = engine.trained("value", "linear_glm_baseline", epochs=60, learning_rate=0.05)
    table = engine.table("value", rows=400, seed=9)
    comparison = engine.distill(table, finished.teacher, **LONG).outcome.comparison
    spread = finished.bundle.target_std
    assert spread > 10
    assert comparison["fidelity"] < 0.3 * spread
    assert comparison["teacher_metrics"]["test_metric_name"] == "rmse"


@pytest.mark.parametrize("target", ["five", "value"])
@pytest.mark.parametrize("mode", STUDENT_MODES)
@pytest.mark.parametrize("teacher_mode", ALLOWED_TRAINING_MODES)
def test_every_bundle_can_be_a_teacher_of_every_student(engine, teacher_mode, mode, target):
    if target == "value" and teacher_mode in ("imbalance_aware", "calibrated_classifier"):
        target = "flag"
    finished = engine.trained(target, teacher_mode)
    student = engine.distill(finished.table, finished.teacher, training_mode=mode)
    assert student.bundle.training_mode == mode
    assert len(student.reports) == student.outcome.epochs_run == 3
    assert Bundle.from_bytes(student.outcome.file).metrics == student.bundle.metrics
    assert student.bundle.lineage == {"teacher": {"run_id": "r1"}}


def test_a_student_can_teach(engine):
    first = engine.trained("binary")
    second = engine.distill(first.table, first.teacher)
    third = engine.distill(first.table, second.teacher, training_mode="linear_glm_baseline")
    assert third.bundle.architecture.kind == "linear"


@pytest.mark.parametrize("target", ["five", "value"])
def test_the_student_inherits_encoder_classes_and_scaling_and_the_teacher_stays_as_it_was(engine, target):
    finished = engine.trained(target)
    before = finished.bundle.to_bytes()
    student = engine.distill(engine.table(target, seed=5), finished.teacher).bundle
    assert finished.bundle.to_bytes() == before == finished.outcome.file
    assert student.encoder is finished.bundle.encoder
    assert student.classes == finished.bundle.classes
    assert (student.target_mean, student.target_std) == (
        finished.bundle.target_mean,
        finished.bundle.target_std,
    )
    assert student.temperature == 1.0


def test_the_teacher_s_outputs_are_computed_once(engine):
    teacher = engine.trained("binary", hidden_dim=48).teacher
    batches = []

    def watch(module, inputs, output):
        if isinstance(module, torch.nn.Linear) and module.out_features == 48:
            batches.append(len(inputs[0]))

    handle = torch.nn.modules.module.register_module_forward_hook(watch)
    try:
        engine.distill(engine.table("binary"), teacher, student_hidden_dim=16)
    finally:
        handle.remove()
    further = TIMES * 86  # of the rows that train
    # twice 48 wide, over all 120 rows and those that are made up
    assert batches == [120, 120, further, further]


def test_the_loss_is_the_contract_s_blend_of_labels_and_softened_outputs(engine):
    finished = engine.trained("five")
    master = dataclasses.replace(finished.bundle, temperature=3.0)
    fields = {"alpha": 0.3, "temperature": 4.0}
    student = engine.distill(finished.table, Teacher(master, 1, {}), **fields)
    target = encode_target(finished.table["y"], "y", "classification", master.classes)
    soft = torch.tensor(logits_of(master, finished.table))
    outputs = torch.tensor(logits_of(student.bundle, finished.table))
    hard = cross_entropy(torch.tensor(target.values), 5)
    objective = blend(0.3, hard, distillation_divergence(soft, 4.0))
    assert_losses(engine, student, objective, outputs)


def test_a_teacher_is_judged_by_its_calibrated_probabilities(engine):
    finished = engine.trained("five")
    teacher = Teacher(dataclasses.replace(finished.bundle, temperature=3.0), 1, {})
    found, plain = (
        engine.distill(finished.table, t).outcome.comparison["teacher_metrics"]
        for t in (teacher, finished.teacher)
    )
    assert found["test_metric_value"] == plain["test_metric_value"]
    split = split_of(finished.table, finished.bundle.classes)
    truth = encode_target(finished.table["y"], "y", "classification", finished.bundle.classes).values
    softened = torch.tensor(logits_of(teacher.bundle, finished.table))[split.test]
    expected = torch.nn.functional.cross_entropy(softened, torch.tensor(truth[split.test])).item()
    assert found["extra"]["log_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_a_regression_is_the_contract_s_blend_of_squared_errors(engine):
    finished = engine.trained("value")
    student = engine.distill(finished.table, finished.teacher, alpha=0.3)
    mean, std = finished.bundle.target_mean, finished.bundle.target_std
    values = torch.tensor((finished.table["y"].to_numpy() - mean) / std, dtype=torch.float32)
    soft = torch.tensor(logits_of(finished.bundle, finished.table)[:, 0])
    outputs = torch.tensor(logits_of(student.bundle, finished.table))
    objective = blend(0.3, squared_error(values), squared_error(soft))
    assert_losses(engine, student, objective, outputs)


def split_of(table, classes):
    strata = encode_target(table["y"], "y", "classification", classes).values if classes else None
    return split_rows(len(table), test_size=0.2, validation_size=VALIDATION_SHARE, seed=42, strata=strata)


def assert_losses(engine, student, objective, outputs):
    """The reported losses are the objective's over rows of that number, which no other choice of rows has."""
    split = split_of(student.table, student.bundle.classes)
    for part, name in ((split.train, "train_loss"), (split.test, "test_loss")):
        rows = torch.tensor(part)
        # float32, batches of another size
        assert student.bundle.metrics[name] == pytest.approx(float(objective(outputs[rows], rows)), rel=1e-4)


def test_the_comparison_is_counted_and_measured(engine):
    finished = engine.trained("five", hidden_dim=64)
    outcome = engine.distill(finished.table, finished.teacher).outcome
    found = outcome.comparison
    width = finished.bundle.encoder.width
    teacher_bytes, student_bytes = len(finished.outcome.file), len(outcome.file)
    teacher_parameters = 64 * (width + 1) + 64 * 65 + 2 * 2 * 64 + 5 * 65
    student_parameters = 32 * (width + 1) + 2 * 32 + 5 * 33
    assert found["teacher_input_dim"] == found["student_input_dim"] == width
    assert found["teacher_output_dim"] == found["student_output_dim"] == 5
    assert found["teacher_model_size_bytes"] == teacher_bytes
    assert found["student_model_size_bytes"] == student_bytes
    assert found["size_saved_bytes"] == teacher_bytes - student_bytes
    assert found["size_saved_percent"] == pytest.approx(100 * (1 - student_bytes / teacher_bytes), abs=0.005)
    assert found["teacher_param_count"] == teacher_parameters
    assert found["student_param_count"] == student_parameters
    assert found["param_saved_count"] == teacher_parameters - student_parameters
    saved = 100 * (1 - student_parameters / teacher_parameters)
    assert found["param_saved_percent"] == pytest.approx(saved, abs=0.005)
    student_network = load_network(outcome.bundle.architecture, outcome.bundle.weights)
    assert count_parameters(student_network) == student_parameters


def test_a_student_larger_than_its_teacher_saves_less_than_nothing(engine):
    finished = engine.trained("binary", "linear_glm_baseline")
    found = engine.distill(finished.table, finished.teacher).outcome.comparison
    assert found["param_saved_count"] < 0
    assert found["param_saved_percent"] < 0


@pytest.mark.parametrize("target", ["five", "value"])
def test_fidelity_and_the_teacher_s_metrics_are_those_of_the_test_rows(engine, target):
    finished = engine.trained(target)
    outcome = engine.distill(finished.table, finished.teacher).outcome
    # the same table, seed and shares as the teacher's: the same test rows
    expected = finished.bundle.metrics
    found = outcome.comparison["teacher_metrics"]
    assert found.keys() == expected.keys()
    assert found["test_metric_value"] == pytest.approx(expected["test_metric_value"], rel=1e-6)
    for name, value in expected["extra"].items():
        # float32 outputs from batches of another size
        assert found["extra"][name] == pytest.approx(value, rel=1e-4, abs=1e-6)
    # the objective of an mlp_dense teacher is the loss on the labels alone
    assert found["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-5)
    assert found["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-5)


@pytest.mark.parametrize("target", ["five", "value"])
def test_fidelity_is_the_share_of_agreement_or_the_rmse_between_student_and_teacher(engine, target):
    finished = engine.trained(target)
    student = engine.distill(finished.table, finished.teacher)
    rows = split_of(finished.table, finished.bundle.classes).test
    pair = [
        Predictor(bundle).predict(features_of(bundle, finished.table)).values[rows]
        for bundle in (student.bundle, finished.bundle)
    ]
    expected = np.mean(pair[0] == pair[1]) if target == "five" else np.sqrt(np.mean((pair[0] - pair[1]) ** 2))
    # float32 outputs from batches of another size
    assert student.outcome.comparison["fidelity"] == pytest.approx(expected, rel=1e-5)


TEACHERS = {
    "mlp": Architecture("mlp", 7, 3, 128, 3, 0.2, batch_norm=True),
    "one layer": Architecture("mlp", 7, 3, 24, 1, 0.48, batch_norm=True),
    "resnet": Architecture("resnet", 7, 3, 33, 2, 0.9, batch_norm=True),
    "linear": Architecture("linear", 7, 3, 0, 0, 0.0, batch_norm=False),
}


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        ("mlp", (64, 2, 0.25)),
        ("one layer", (16, 1, 0.5)),
        ("resnet", (16, 1, 0.5)),
        ("linear", (16, 1, 0.05)),
    ],
)
def test_a_student_is_by_default_half_as_wide_and_a_layer_shallower(engine, teacher, expected):
    request = distill_request(engine)
    found = student_architecture(request, TEACHERS[teacher], classification=True)
    assert (found.hidden_dim, found.num_hidden_layers, found.dropout) == expected
    assert (found.inputs, found.outputs, found.batch_norm) == (7, 3, True)


def test_what_the_request_says_of_the_student_decides(engine):
    wanted = {"student_hidden_dim": 200, "student_num_hidden_layers": 5, "student_dropout": 0.0}
    request = distill_request(engine, training_mode="tabresnet", **wanted)
    found = student_architecture(request, TEACHERS["mlp"], classification=False)
    assert found == Architecture("resnet", 7, 3, 200, 5, 0.0, batch_norm=False)


def distill_request(engine, **fields):
    return DistillRequest(engine.source(), "y", TeacherSource("run_id", "r1"), **fields)


def test_columns_that_the_teacher_needs_are_named_when_they_are_missing(engine):
    finished = engine.trained("binary")
    with pytest.raises(DatasetError, match="lacks: 'x', 'day'") as caught:
        engine.distill(finished.table.drop_columns(["day", "x"]), finished.teacher)
    assert caught.value.details == {"missing": ["x", "day"]}
    with pytest.raises(DatasetError, match="lacks: 'x'"):
        engine.distill(finished.table, finished.teacher, exclude_columns=("x",))


def test_columns_unknown_to_the_teacher_are_ignored(engine):
    finished = engine.trained("binary")
    table = finished.table.append_column("new", pa.array(range(120)))
    bundle = engine.distill(table, finished.teacher).bundle
    assert "new" not in bundle.encoder.feature_names
    roles = {column["name"]: column["role"] for column in bundle.schema["columns"]}
    assert roles["new"] == "ignored"


def test_a_column_of_another_type_than_the_teacher_s_is_an_error(engine):
    finished = engine.trained("binary")
    table = finished.table.set_column(0, "x", pa.array(["many"] * 120))
    with pytest.raises(StillhouseError, match="'x' needs a number"):
        engine.distill(table, finished.teacher)


@pytest.mark.parametrize(("target", "task"), [("binary", "regression"), ("value", "classification")])
def test_another_task_than_the_teacher_s_is_refused(engine, target, task):
    finished = engine.trained(target)
    with pytest.raises(ParameterError, match="task must be auto or the teacher's"):
        engine.distill(finished.table, finished.teacher, task=task)
    assert engine.distill(finished.table, finished.teacher, task=finished.bundle.task)


def test_the_task_is_the_teacher_s_even_where_the_table_suggests_another(engine):
    finished = engine.train(engine.table("number"), task="regression")
    assert engine.distill(finished.table, finished.teacher).bundle.task == "regression"


def test_classes_that_the_teacher_does_not_know_are_refused(engine):
    finished = engine.trained("binary")
    labels = ["maybe" if row % 7 == 0 else value for row, value in enumerate(finished.table["y"].to_pylist())]
    with pytest.raises(DatasetError, match="teacher's classes 'no', 'yes'"):
        engine.distill(finished.table.set_column(5, "y", pa.array(labels)), finished.teacher)


def test_classes_that_the_data_lacks_stay_classes_of_the_student(engine):
    finished = engine.trained("five")
    table = finished.table.filter(pa.array([label != "e" for label in finished.table["y"].to_pylist()]))
    bundle = engine.distill(table, finished.teacher).bundle
    assert bundle.classes == ("a", "b", "c", "d", "e")
    assert bundle.architecture.outputs == 5


def test_the_target_may_have_another_name_but_not_that_of_a_feature(engine):
    finished = engine.trained("flag")
    renamed = finished.table.rename_columns(["x", "z", "colour", "flag", "day", "answer"])
    assert engine.distill(renamed, finished.teacher, target_column="answer").bundle.target_column == "answer"
    with pytest.raises(ParameterError, match="must not be a column that the teacher reads, got 'flag'"):
        engine.distill(finished.table, finished.teacher, target_column="flag")


def test_date_columns_are_ignored_with_a_warning_and_rows_without_a_target_too(engine):
    finished = engine.trained("binary")
    labels = [None if row < 5 else value for row, value in enumerate(finished.table["y"].to_pylist())]
    table = finished.table.set_column(5, "y", pa.array(labels))
    outcome = engine.distill(table, finished.teacher, date_columns=("day",)).outcome
    assert outcome.warnings == (
        "date_columns is ignored: the student reads dates as its teacher does",
        "5 rows without a target were left out",
    )
    assert sum(outcome.rows.values()) == 115


def test_a_distillation_is_stopped_between_batches(engine):
    finished = engine.trained("binary")
    calls = iter([False] * 3)
    with pytest.raises(TrainingStoppedError):
        list(engine.distill_work(finished.table, finished.teacher, lambda: next(calls, True)))


def test_the_same_request_gives_the_same_student_to_the_bit(engine):
    finished = engine.trained("five", "tabresnet")
    files = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        files.add(engine.distill(finished.table, finished.teacher).outcome.file)
    assert len(files) == 1


def test_targets_far_outside_the_teacher_s_scale_are_a_dataset_error(engine):
    finished = engine.trained("value")
    values = finished.table["y"].to_numpy() * 1e60
    with pytest.raises(DatasetError, match="too extreme"):
        engine.distill(finished.table.set_column(5, "y", pa.array(values)), finished.teacher)


def test_outputs_of_the_teacher_are_those_of_its_own_predictor(engine):
    finished = engine.trained("five")
    features = torch.tensor(features_of(finished.bundle, finished.table))
    network = load_network(finished.bundle.architecture, finished.bundle.weights)
    found = outputs_of(network, features).numpy()
    np.testing.assert_allclose(found, logits_of(finished.bundle, finished.table), rtol=0, atol=1e-6)


def test_a_student_of_labels_alone_sees_the_rows_of_the_table_alone(engine, monkeypatch):
    teacher = engine.trained("five").teacher
    seen = []

    def watching(*arguments, **options):
        seen.append(len(arguments[2].split.train))
        return run(*arguments, **options)

    monkeypatch.setattr("core.distillation.run", watching)
    for alpha in (1.0, 0.5):
        finished = engine.distill(engine.table("five"), teacher, alpha=alpha)
        assert finished.outcome.rows["train"] == 86
    assert seen == [86, 86 * (1 + TIMES)]
