import csv
import os

import pytest

from core.bundles import Bundle
from core.contract.modes import ALLOWED_TRAINING_MODES
from core.errors import (
    BundleError,
    DatasetError,
    DataTargetError,
    HiddenConfigError,
    ModelNotFoundError,
    ParameterError,
    TeacherSourceError,
    TrainingModeError,
)
from core.local import distill_model_from_file, load_bundle, save_bundle, train_model_from_file
from core.prediction import Predictor


@pytest.fixture
def path(engine, tmp_path):
    """A CSV file of 120 rows in which ``y`` follows from the other columns."""
    table, path = engine.table("five"), tmp_path / "flowers.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table.column_names)
        writer.writerows(zip(*(column.to_pylist() for column in table.columns), strict=True))
    return path


FAST = {"epochs": 3, "hidden_dim": 16}


def test_train_distil_save_load_and_predict(path, tmp_path):
    teacher, metrics = train_model_from_file(path, "y", epochs=20, hidden_dim=32)
    assert metrics["test_metric_name"] == "accuracy"
    student, comparison = distill_model_from_file(path, "y", teacher, epochs=10)
    assert comparison["student_param_count"] < comparison["teacher_param_count"]
    assert 0 <= comparison["fidelity"] <= 1
    assert comparison["task"] == "classification"
    save_bundle(student, tmp_path / "student.safetensors")
    loaded = load_bundle(tmp_path / "student.safetensors")
    assert loaded.to_bytes() == student.to_bytes()
    predictor = Predictor(loaded)
    row = {"x": [0.1], "z": [None], "colour": ["red"], "flag": [True], "day": ["2024-05-01"]}
    (label,) = predictor.predict(predictor.encode(row).features).labels()
    assert label in "abcde"


def test_a_teacher_may_be_a_bundle_or_its_file(path, tmp_path):
    teacher, _ = train_model_from_file(path, "y", **FAST)
    file = tmp_path / "teacher.safetensors"
    save_bundle(teacher, file)
    students = [
        distill_model_from_file(path, "y", source, epochs=2)[0] for source in (teacher, file, str(file))
    ]
    first, second, third = (student.weights["0.weight"].tobytes() for student in students)
    assert first == second == third
    assert [s.lineage["teacher"]["path"] for s in students] == ["in memory", *["teacher.safetensors"] * 2]


@pytest.mark.parametrize("mode", ALLOWED_TRAINING_MODES)
def test_every_mode_trains_from_a_file(path, mode):
    bundle, metrics = train_model_from_file(str(path), "y", training_mode=mode, **FAST)
    assert bundle.training_mode == mode
    assert metrics == bundle.metrics


def test_progress_hears_of_every_epoch(path):
    reports = []
    train_model_from_file(path, "y", progress=reports.append, **FAST)
    assert [report.epoch for report in reports] == [1, 2, 3]
    distill_model_from_file(path, "y", load_again(path), progress=reports.append, epochs=2)
    assert [report.epoch for report in reports[3:]] == [1, 2]


def load_again(path):
    return Bundle.from_bytes(train_model_from_file(path, "y", **FAST)[0].to_bytes())


def test_a_wrong_field_name_is_a_python_warning(path):
    with pytest.warns(UserWarning, match="did you mean epochs") as caught:
        train_model_from_file(path, "y", epoch=2, **FAST)
    assert caught[0].filename == __file__


def test_numbers_may_be_texts_as_in_a_request(path):
    assert train_model_from_file(path, "y", epochs="3", hidden_dim="16.0")[0].settings["epochs"] == 3


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"epochs": 0}, ParameterError),
        ({"device": "cuda:999"}, ParameterError),
        ({"training_mode": "forest"}, TrainingModeError),
        ({"hidden_dim": 1}, HiddenConfigError),
        ({"exclude_columns": ["absent"]}, DatasetError),
        ({"save_model": True}, ParameterError),
        ({"save_model": True, "model_id": "m"}, DataTargetError),
    ],
)
def test_fields_fail_as_they_do_over_http_and_nothing_is_written(path, fields, error):
    before = sorted(path.parent.iterdir())
    with pytest.raises(error):
        train_model_from_file(path, "y", **fields)
    assert sorted(path.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "error"), [("absent.csv", DataTargetError), (".", DataTargetError), ("notes.txt", DatasetError)]
)
def test_what_is_no_table_is_refused(tmp_path, name, error):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(error) as caught:
        train_model_from_file(tmp_path / name, "y")
    assert str(tmp_path) not in caught.value.message


def test_a_student_is_not_saved_by_a_field_either(path):
    with pytest.raises(ParameterError, match="use save_bundle"):
        distill_model_from_file(path, "y", load_again(path), save_model=True)


def test_a_student_s_mode_must_be_distillable(path):
    with pytest.raises(TrainingModeError):
        distill_model_from_file(path, "y", load_again(path), training_mode="imbalance_aware")


def test_a_teacher_that_is_absent_or_damaged_is_refused(path, tmp_path):
    with pytest.raises(TeacherSourceError, match=r"'absent\.safetensors'"):
        distill_model_from_file(path, "y", tmp_path / "absent.safetensors")
    with pytest.raises(BundleError):
        distill_model_from_file(path, "y", path)


def test_loading_says_what_is_wrong(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no model file 'absent'"):
        load_bundle(tmp_path / "absent")
    (tmp_path / "empty").touch()
    with pytest.raises(BundleError):
        load_bundle(tmp_path / "empty")


@pytest.mark.parametrize("name", ["x" * 5000 + ".csv", "dir.csv", "loop.csv", "pipe.csv", "nul\0.csv"])
def test_what_is_no_file_is_refused_and_never_opened(path, tmp_path, name):
    (tmp_path / "dir.csv").mkdir()
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    odd = tmp_path / name
    with pytest.raises(DataTargetError) as caught:
        train_model_from_file(odd, "y")
    assert len(caught.value.message) <= 100
    with pytest.raises(TeacherSourceError):
        distill_model_from_file(path, "y", odd)
    with pytest.raises(ModelNotFoundError):
        load_bundle(odd)


def test_saving_replaces_the_file_and_leaves_nothing_else(engine, tmp_path):
    target = tmp_path / "m.safetensors"
    target.write_text("old")
    save_bundle(engine.trained("five").bundle, target)
    assert load_bundle(target).classes == ("a", "b", "c", "d", "e")
    assert os.listdir(tmp_path) == ["m.safetensors"]  # noqa: PTH208


def test_a_save_that_fails_keeps_the_old_file(engine, tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(OSError, match="m"):
        save_bundle(engine.trained("five").bundle, tmp_path / "m")
    assert os.listdir(tmp_path) == ["m"]  # noqa: PTH208
