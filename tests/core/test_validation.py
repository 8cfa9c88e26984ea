"""The ordered chains of train and distil (seed 000; contract, sections 3 to 5)."""

import math
import uuid
from dataclasses import dataclass, fields
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.contract import DataSource, DistillRequest, Saving, TeacherSource, TrainRequest
from core.contract.fields import DISTILL_NUMBERS, HIDDEN_NUMBERS, TRAIN_NUMBERS
from core.contract.modes import ALLOWED_TRAINING_MODES, UNSUPPORTED_DISTILL_MODES
from core.contract.validation import (
    DISTILL_CHAIN,
    DISTILL_FIELDS,
    TEACHER_FIELDS,
    TRAIN_CHAIN,
    TRAIN_FIELDS,
    validate_distill,
    validate_train,
)
from core.errors import (
    DatasetNotFoundError,
    DataTargetError,
    HiddenConfigError,
    ModelExistsError,
    ParameterError,
    RequestError,
    RunNotFoundError,
    RuntimeUnavailableError,
    StillhouseError,
    TeacherSourceError,
    TrainingModeError,
)

TRAIN = {"dataset_id": "wine", "target_column": "quality", "save_model": True, "model_id": "fresh"}
DISTILL = {**TRAIN, "teacher_run_id": "live"}
BASES = {"train": TRAIN, "distill": DISTILL}
CHAINS = {"train": TRAIN_CHAIN, "distill": DISTILL_CHAIN}
KINDS = ("train", "distill")
MESSAGE_LIMIT = 300


class RecordingLookups:
    """A world with one dataset, one path, one taken model id and live runs; remembers what it was asked."""

    def __init__(self, runtime: str | None = None) -> None:
        self.runtime = runtime
        self.calls: list[tuple[str, object]] = []

    def runtime_error(self) -> str | None:
        self.calls.append(("runtime_error", None))
        return self.runtime

    def find_dataset(self, dataset_id: str) -> DataSource:
        self.calls.append(("find_dataset", dataset_id))
        if dataset_id != "wine":
            raise DatasetNotFoundError("There is no such dataset.")
        return DataSource("dataset", "datasets/wine/data.csv", "csv", "wine")

    def find_path(self, data_path: str) -> DataSource:
        self.calls.append(("find_path", data_path))
        if data_path != "wine.csv":
            raise DataTargetError("data_path must name a file", field="data_path")
        return DataSource("path", "wine.csv", "csv", "wine.csv")

    def model_exists(self, model_id: str) -> bool:
        self.calls.append(("model_exists", model_id))
        return model_id == "taken"

    def check_teacher(self, teacher: TeacherSource) -> None:
        self.calls.append(("check_teacher", teacher))
        if teacher.name == "expired":
            raise RunNotFoundError("There is no such run.")
        if teacher.name == "damaged":
            raise TeacherSourceError("The teacher model cannot be used.")


class AgreeableLookups(RecordingLookups):
    """A world in which everything exists, so that validation goes on."""

    def find_dataset(self, dataset_id: str) -> DataSource:
        return DataSource("dataset", "datasets/x/data.csv", "csv", "x")

    def find_path(self, data_path: str) -> DataSource:
        return DataSource("path", "x.csv", "csv", "x.csv")

    def check_teacher(self, teacher: TeacherSource) -> None:
        pass


def validate(kind, payload, lookups=None):
    lookups = RecordingLookups() if lookups is None else lookups
    return validate_train(payload, lookups) if kind == "train" else validate_distill(payload, lookups)


def train(**changes) -> TrainRequest:
    return validate_train(TRAIN | changes, RecordingLookups())


def distill(**changes) -> DistillRequest:
    return validate_distill(DISTILL | changes, RecordingLookups())


def request_of(kind, **changes):
    return train(**changes) if kind == "train" else distill(**changes)


# ── The order ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Violation:
    """What breaks one step and nothing before or after it."""

    step: str
    changes: dict[str, object]
    error: type[StillhouseError]
    field: str | None = None
    runtime: str | None = None

    def __str__(self) -> str:
        return f"{self.step}:{','.join(self.changes) or 'runtime'}"


SHARED_VIOLATIONS = (
    Violation("runtime", {}, RuntimeUnavailableError, runtime="ModuleNotFoundError: No module named 'torch'"),
    Violation("data target", {"target_column": None}, DataTargetError, "target_column"),
    Violation("data target", {"dataset_id": None}, DataTargetError, "dataset_id"),
    Violation("data target", {"dataset_id": "unknown"}, DatasetNotFoundError),
    Violation("data target", {"data_path": "../secrets.csv"}, DataTargetError, "data_path"),
    Violation("data target", {"sheet_name": 3}, DataTargetError, "sheet_name"),
    Violation("saving", {"save_model": "maybe"}, ParameterError, "save_model"),
    Violation("saving", {"overwrite": 1}, ParameterError, "overwrite"),
    Violation("saving", {"model_id": "../x"}, ParameterError, "model_id"),
    Violation("saving", {"model_id": "taken"}, ModelExistsError),
    Violation("feature columns", {"exclude_columns": 7}, ParameterError, "exclude_columns"),
    Violation("feature columns", {"exclude_columns": ["quality"]}, ParameterError, "exclude_columns"),
    Violation("feature columns", {"date_columns": [""]}, ParameterError, "date_columns"),
    Violation("numbers", {"epochs": "many"}, ParameterError, "epochs"),
    Violation("numbers", {"random_seed": 0.5}, ParameterError, "random_seed"),
    Violation("bounds", {"learning_rate": 0}, ParameterError, "learning_rate"),
    Violation(
        "bounds",
        {"batch_size": 4, "early_stopping_patience": 9999},
        ParameterError,
        "early_stopping_patience",
    ),
    Violation("bounds", {"task": "clustering"}, ParameterError, "task"),
    Violation("bounds", {"device": "tpu"}, ParameterError, "device"),
)
VIOLATIONS = {
    "train": (
        *SHARED_VIOLATIONS,
        Violation("mode allowed", {"training_mode": "forest"}, TrainingModeError, "training_mode"),
        Violation("mode allowed", {"training_mode": ["mlp"]}, TrainingModeError, "training_mode"),
        Violation("hidden configuration", {"hidden_dim": 7}, HiddenConfigError, "hidden_dim"),
        Violation(
            "hidden configuration", {"num_hidden_layers": "two"}, HiddenConfigError, "num_hidden_layers"
        ),
        Violation("hidden configuration", {"dropout": 0.95}, HiddenConfigError, "dropout"),
    ),
    "distill": (
        *SHARED_VIOLATIONS,
        Violation("teacher source", {"teacher_run_id": None}, TeacherSourceError),
        Violation("teacher source", {"teacher_run_id": 7}, TeacherSourceError, "teacher_run_id"),
        Violation("numbers", {"temperature": True}, ParameterError, "temperature"),
        Violation("bounds", {"alpha": 1.5}, ParameterError, "alpha"),
        Violation("bounds", {"student_hidden_dim": 7}, ParameterError, "student_hidden_dim"),
        Violation(
            "mode distillable", {"training_mode": "imbalance_aware"}, TrainingModeError, "training_mode"
        ),
        Violation("teacher", {"teacher_run_id": "expired"}, RunNotFoundError),
        Violation("teacher", {"teacher_run_id": "damaged"}, TeacherSourceError),
    ),
}
NEVER_FAIL = {"mode normalised"}
STEP_OF_CALL = {
    "runtime_error": "runtime",
    "find_dataset": "data target",
    "find_path": "data target",
    "model_exists": "saving",
    "check_teacher": "teacher",
}


def number_of(kind, step):
    return next(number for number, name, _ in CHAINS[kind] if name == step)


def failure(kind, *violations):
    """The error of a payload that violates all of them, and what was looked up before it."""
    payload = BASES[kind].copy()
    for violation in sorted(violations, key=lambda violation: -number_of(kind, violation.step)):
        payload |= violation.changes  # of one field the earlier step decides
    lookups = RecordingLookups(next((v.runtime for v in violations if v.runtime), None))
    with pytest.raises(StillhouseError) as raised:
        validate(kind, payload, lookups)
    return raised.value, lookups.calls


def ordered_pairs():
    for kind in KINDS:
        for earlier, later in product(VIOLATIONS[kind], repeat=2):
            if number_of(kind, earlier.step) < number_of(kind, later.step):
                yield pytest.param(kind, earlier, later, id=f"{kind}-{earlier}-{later}")


def violations():
    return [pytest.param(kind, v, id=f"{kind}-{v}") for kind in KINDS for v in VIOLATIONS[kind]]


def is_error_of(violation, error):
    named = violation.field is None or error.details.get("field") == violation.field
    return type(error) is violation.error and named


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_that_can_fail_has_a_violation(kind):
    assert {name for _, name, _ in CHAINS[kind]} - NEVER_FAIL == {v.step for v in VIOLATIONS[kind]}


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_numbered_as_they_run(kind):
    assert [number for number, _, _ in CHAINS[kind]] == list(range(1, len(CHAINS[kind]) + 1))


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        (
            "train",
            "runtime|data target|saving|feature columns|numbers|bounds|mode normalised|mode allowed|"
            "hidden configuration",
        ),
        (
            "distill",
            "runtime|data target|teacher source|saving|feature columns|numbers|bounds|mode normalised|"
            "mode distillable|teacher",
        ),
    ],
)
def test_chain_is_the_contracts(kind, steps):
    assert [name for _, name, _ in CHAINS[kind]] == steps.split("|")


@pytest.mark.parametrize(("kind", "violation"), violations())
def test_violation_fails_its_step_with_its_error(kind, violation):
    error, _ = failure(kind, violation)
    assert is_error_of(violation, error), error


@pytest.mark.parametrize(("kind", "earlier", "later"), list(ordered_pairs()))
def test_of_two_violations_the_earlier_step_answers(kind, earlier, later):
    error, _ = failure(kind, earlier, later)
    assert is_error_of(earlier, error), error


@pytest.mark.parametrize(("kind", "violation"), violations())
def test_nothing_is_looked_up_after_the_failing_step(kind, violation):
    _, calls = failure(kind, violation)
    asked = [number_of(kind, STEP_OF_CALL[name]) for name, _ in calls]
    assert asked == sorted(asked)
    assert all(number <= number_of(kind, violation.step) for number in asked)


def test_valid_train_request_looks_each_thing_up_once_in_order():
    lookups = RecordingLookups()
    validate_train(TRAIN, lookups)
    assert lookups.calls == [("runtime_error", None), ("find_dataset", "wine"), ("model_exists", "fresh")]


def test_valid_distil_request_checks_its_teacher_last():
    lookups = RecordingLookups()
    validate_distill(DISTILL, lookups)
    assert [name for name, _ in lookups.calls] == [
        "runtime_error",
        "find_dataset",
        "model_exists",
        "check_teacher",
    ]
    assert lookups.calls[-1] == ("check_teacher", TeacherSource("run_id", "live"))


def test_missing_runtime_is_reported_with_its_reason():
    with pytest.raises(RuntimeUnavailableError, match="No module named 'torch'"):
        validate_train({}, RecordingLookups("ModuleNotFoundError: No module named 'torch'"))


# ── Defaults and absence ────────────────────────────────────────────────────────────────────────────────────

WINE = DataSource("dataset", "datasets/wine/data.csv", "csv", "wine")


def test_train_defaults_are_the_contracts():
    assert validate_train(
        {"dataset_id": "wine", "target_column": "quality"}, RecordingLookups()
    ) == TrainRequest(
        data=WINE,
        target_column="quality",
        task="auto",
        training_mode="mlp_dense",
        exclude_columns=(),
        date_columns=(),
        test_size=0.2,
        epochs=100,
        batch_size=None,
        learning_rate=0.001,
        hidden_dim=128,
        num_hidden_layers=2,
        dropout=0.1,
        early_stopping_patience=10,
        random_seed=42,
        ensemble_size=1,
        sweep=None,
        max_seconds=None,
        interval=None,
        importance=False,
        device=None,
        saving=None,
        warnings=(),
    )


def test_distil_defaults_are_the_contracts():
    payload = {"dataset_id": "wine", "target_column": "quality", "teacher_model_id": "m"}
    assert validate_distill(payload, RecordingLookups()) == DistillRequest(
        data=WINE,
        target_column="quality",
        teacher=TeacherSource("model_id", "m"),
        task="auto",
        training_mode="mlp_dense",
        exclude_columns=(),
        date_columns=(),
        test_size=0.2,
        epochs=60,
        batch_size=None,
        learning_rate=0.001,
        temperature=2.5,
        alpha=0.5,
        student_hidden_dim=None,
        student_num_hidden_layers=None,
        student_dropout=None,
        early_stopping_patience=10,
        random_seed=42,
        max_seconds=None,
        interval=None,
        importance=False,
        device=None,
        saving=None,
        warnings=(),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_null_means_absent_for_every_optional_field(kind):
    required = {"dataset_id": "wine", "target_column": "quality"}
    if kind == "distill":
        required["teacher_run_id"] = "live"
    known = TRAIN_FIELDS if kind == "train" else DISTILL_FIELDS
    with_nulls = dict.fromkeys(known) | required
    assert validate(kind, with_nulls) == validate(kind, required)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["target_column", "dataset_id", "data_path", "sheet_name"])
@pytest.mark.parametrize("value", ["", "  ", 7, True, ["a"], {}, "a\0b"])
def test_texts_of_the_data_target_must_be_texts_that_are_not_blank(kind, name, value):
    with pytest.raises(DataTargetError) as raised:
        request_of(kind, **{name: value})
    assert raised.value.details["field"] == name


# ── Numbers ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Range:
    """A row of the contract's tables; ``None`` of open bounds is where the fields say otherwise."""

    low: float
    high: float
    integer: bool = True
    open_low: bool = False
    open_high: bool = False


SHARED_RANGES = {
    "test_size": Range(0, 1, integer=False, open_low=True, open_high=True),
    "epochs": Range(1, 10_000),
    "batch_size": Range(2, 65_536),
    "learning_rate": Range(0, 1, integer=False, open_low=True),
    "early_stopping_patience": Range(0, 10_000),
    "random_seed": Range(0, 2**32 - 1),
    "max_seconds": Range(0, 86_400, integer=False, open_low=True),
    "interval": Range(0, 1, integer=False, open_low=True, open_high=True),
}
RANGES = {
    "train": {
        **SHARED_RANGES,
        "ensemble_size": Range(1, 64),
        "hidden_dim": Range(8, 4096),
        "num_hidden_layers": Range(1, 32),
        "dropout": Range(0, 0.9, integer=False),
    },
    "distill": {
        **SHARED_RANGES,
        "temperature": Range(0, 20, integer=False, open_low=True),
        "alpha": Range(0, 1, integer=False),
        "student_hidden_dim": Range(8, 4096),
        "student_num_hidden_layers": Range(1, 32),
        "student_dropout": Range(0, 0.9, integer=False),
    },
}
NUMBERS = [
    pytest.param(kind, name, RANGES[kind][name], id=f"{kind}-{name}")
    for kind in KINDS
    for name in RANGES[kind]
]
INTEGERS = [number for number in NUMBERS if number.values[2].integer]
FRACTIONS = [number for number in NUMBERS if not number.values[2].integer]


def number_given(kind, name, value):
    """What the request holds; epochs leave room for any patience."""
    room = {"epochs": 10_000} if name == "early_stopping_patience" else {"early_stopping_patience": 0}
    return getattr(request_of(kind, **room | {name: value}), name)


def test_every_number_of_the_fields_is_in_the_table_of_ranges():
    assert RANGES["train"].keys() == {*TRAIN_NUMBERS, *HIDDEN_NUMBERS}
    assert RANGES["distill"].keys() == {*DISTILL_NUMBERS}


def edges(row):
    """The last values inside and the first ones outside."""
    if row.integer:
        return [row.low, row.high], [row.low - 1, row.high + 1]
    below, above = math.nextafter(row.low, -math.inf), math.nextafter(row.high, math.inf)
    inside_low = math.nextafter(row.low, 1) if row.open_low else row.low
    inside_high = math.nextafter(row.high, 0) if row.open_high else row.high
    return [inside_low, inside_high], [
        row.low if row.open_low else below,
        row.high if row.open_high else above,
    ]


@pytest.mark.parametrize(("kind", "name", "row"), NUMBERS)
def test_values_at_the_edge_are_accepted_unchanged(kind, name, row):
    for value in edges(row)[0]:
        assert number_given(kind, name, value) == value


@pytest.mark.parametrize(("kind", "name", "row"), NUMBERS)
def test_values_past_the_edge_are_refused_by_name(kind, name, row):
    for value in edges(row)[1]:
        with pytest.raises((RequestError, HiddenConfigError), match=f"^{name} must be .*, got ") as raised:
            number_given(kind, name, value)
        assert raised.value.details["field"] == name


@pytest.mark.parametrize(("kind", "name", "row"), INTEGERS)
@pytest.mark.parametrize("given", [12, 12.0, "12", " 12 ", "+12", "12.0", "1.2e1"])
def test_integers_come_as_integers_whole_floats_or_text(kind, name, row, given):
    value = number_given(kind, name, given)
    assert (value, type(value)) == (12, int)


@pytest.mark.parametrize(("kind", "name", "row"), FRACTIONS)
@pytest.mark.parametrize("given", [0.5, "0.5", ".5", "5e-1", " 0.5 "])
def test_fractions_come_as_numbers_or_text(kind, name, row, given):
    assert number_given(kind, name, given) == 0.5


NOT_NUMBERS = [
    *(True, False, "true", "", " ", "twelve", "12 apples", "0x10", "1_000", "1,5", "--1", "1e", "."),
    *(math.nan, math.inf, -math.inf, "nan", "NaN", "inf", "-Infinity", "1e999", "9" * 80),
    *([], [12], {}, {"value": 12}),
]


@pytest.mark.parametrize(("kind", "name", "row"), NUMBERS)
@pytest.mark.parametrize("given", NOT_NUMBERS, ids=lambda given: f"{given!r:.12}")
def test_what_is_no_finite_number_does_not_parse(kind, name, row, given):
    message = f"^{name} must be an? (integer|number), got "
    with pytest.raises((RequestError, HiddenConfigError), match=message) as raised:
        number_given(kind, name, given)
    assert raised.value.details["field"] == name


@pytest.mark.parametrize(("kind", "name", "row"), INTEGERS)
@pytest.mark.parametrize("given", [12.5, "12.5", "1.25e1", 1e-9])
def test_fractions_do_not_parse_as_integers(kind, name, row, given):
    with pytest.raises((RequestError, HiddenConfigError), match=f"^{name} must be an integer, got "):
        number_given(kind, name, given)


@pytest.mark.parametrize(("kind", "name", "row"), NUMBERS)
@pytest.mark.parametrize(
    "given", [10**400, -(10**400), 1e300, "1e300"], ids=["10^400", "-10^400", "1e300", "text"]
)
def test_huge_numbers_are_refused_and_not_repeated(kind, name, row, given):
    with pytest.raises((RequestError, HiddenConfigError), match=f"^{name} must be ") as raised:
        number_given(kind, name, given)
    assert len(raised.value.message) < MESSAGE_LIMIT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("epochs", "patience"), [(1, 1), (3, 3), (9, 9), (10, 10), (11, 10), (10_000, 10)])
def test_patience_is_ten_or_the_epochs_where_they_are_fewer(kind, epochs, patience):
    assert request_of(kind, epochs=epochs).early_stopping_patience == patience


@pytest.mark.parametrize("kind", KINDS)
def test_patience_is_bounded_by_the_epochs(kind):
    assert request_of(kind, epochs=5, early_stopping_patience=5).early_stopping_patience == 5
    with pytest.raises(
        ParameterError, match="early_stopping_patience must be at least 0 and at most 5, got 6"
    ):
        request_of(kind, epochs=5, early_stopping_patience=6)


@pytest.mark.parametrize("kind", KINDS)
def test_patience_may_be_zero(kind):
    assert request_of(kind, early_stopping_patience=0).early_stopping_patience == 0


# ── Modes ───────────────────────────────────────────────────────────────────────────────────────────────────

STUDENT_MODES = ("mlp_dense", "linear_glm_baseline", "tabresnet")
MODES = (*STUDENT_MODES, "imbalance_aware", "calibrated_classifier", "tree_teacher_distillation")


def test_modes_are_the_contracts():
    assert set(ALLOWED_TRAINING_MODES) == set(MODES)
    assert set(MODES) - set(STUDENT_MODES) == UNSUPPORTED_DISTILL_MODES


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "spelling",
    [str, str.upper, lambda m: m.replace("_", "-"), lambda m: f"  {m.title().replace('_', ' ')}\n"],
)
def test_every_spelling_of_a_mode_trains_it(mode, spelling):
    assert train(training_mode=spelling(mode)).training_mode == mode


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alias", ["mlp", " MLP ", "Mlp"])
def test_mlp_is_short_for_mlp_dense(kind, alias):
    assert request_of(kind, training_mode=alias).training_mode == "mlp_dense"


@pytest.mark.parametrize("mode", STUDENT_MODES)
def test_student_modes_distil(mode):
    assert distill(training_mode=mode.upper()).training_mode == mode


@pytest.mark.parametrize("mode", sorted(UNSUPPORTED_DISTILL_MODES))
def test_other_modes_do_not_distil_however_they_are_spelt(mode):
    with pytest.raises(TrainingModeError, match="student's training_mode must be") as caught:
        distill(training_mode=f" {mode.upper().replace('_', '-')} ")
    assert caught.value.details["allowed"] == ["mlp_dense", "linear_glm_baseline", "tabresnet"]
    assert len(caught.value.message) < 100


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "mode", ["", "forest", "mlp dense 2", 7, True, ["mlp_dense"], {"mode": "mlp"}, 1.5, "x" * 999]
)
def test_unknown_modes_are_refused_with_the_known_ones(kind, mode):
    with pytest.raises(TrainingModeError, match="training_mode must be ") as caught:
        request_of(kind, training_mode=mode)
    assert caught.value.details["allowed"][:3] == ["mlp_dense", "linear_glm_baseline", "tabresnet"]
    assert len(caught.value.message) < 100


@pytest.mark.parametrize(("given", "nearest"), [("mlp_dens", "mlp_dense"), ("tabnet", "tabresnet")])
def test_unknown_mode_is_told_the_nearest_first(given, nearest):
    with pytest.raises(TrainingModeError, match=f"training_mode must be {nearest} or another of /docs"):
        train(training_mode=given)


# ── Hidden layers and students ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("hidden", [{"hidden_dim": 1}, {"num_hidden_layers": "x"}, {"dropout": [0.5]}])
def test_linear_model_ignores_hidden_fields_even_malformed_ones(hidden):
    request = train(training_mode="linear_glm_baseline", **hidden)
    assert (request.hidden_dim, request.num_hidden_layers, request.dropout) == (128, 2, 0.1)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "linear_glm_baseline"])
@pytest.mark.parametrize("hidden", [{"hidden_dim": 1}, {"num_hidden_layers": "x"}, {"dropout": [0.5]}])
def test_every_other_mode_checks_hidden_fields(mode, hidden):
    with pytest.raises(HiddenConfigError) as raised:
        train(training_mode=mode, **hidden)
    assert raised.value.details["field"] in hidden


def test_student_fields_are_kept_as_given():
    request = distill(student_hidden_dim="32", student_num_hidden_layers=3.0, student_dropout="0")
    assert request.student_hidden_dim == 32
    assert request.student_num_hidden_layers == 3
    assert request.student_dropout == 0


# ── Columns, task and device ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["exclude_columns", "date_columns"])
@pytest.mark.parametrize(
    ("given", "columns"),
    [
        (["a", "b"], ("a", "b")),
        ("a,b", ("a", "b")),
        (" a , b ,, ", ("a", "b")),
        ("a", ("a",)),
        (["b", "a", "b"], ("b", "a")),
        (["with, comma"], ("with, comma",)),
        ([], ()),
        ("", ()),
    ],
)
def test_columns_come_as_list_or_as_comma_separated_text(kind, name, given, columns):
    assert getattr(request_of(kind, **{name: given}), name) == columns


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["exclude_columns", "date_columns"])
@pytest.mark.parametrize("given", [7, True, {"a": 1}, ["a", 1], [None], ["a", " "], [["a"]]])
def test_other_lists_of_columns_are_refused(kind, name, given):
    with pytest.raises(ParameterError, match=f"^{name} must be") as raised:
        request_of(kind, **{name: given})
    assert raised.value.details["field"] == name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("excluded", [["quality"], ["a", "quality"], "a, quality"])
def test_target_must_not_be_excluded(kind, excluded):
    with pytest.raises(ParameterError, match="exclude_columns must not name the target_column"):
        request_of(kind, exclude_columns=excluded)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["auto", "classification", "regression"])
def test_tasks_are_accepted(kind, task):
    assert request_of(kind, task=task).task == task


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["", "ranking", 1, False, ["auto"], {}])
def test_other_tasks_are_refused(kind, task):
    with pytest.raises(ParameterError, match="task must be auto, classification or regression"):
        request_of(kind, task=task)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices_are_accepted(kind, device):
    assert request_of(kind, device=device).device == device


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "device", ["", "gpu", "cuda:", "cuda:-1", "cuda:1 ", "cpu:0", "cuda:9999", 0, True, ["cpu"]]
)
def test_other_devices_are_refused(kind, device):
    with pytest.raises(ParameterError, match="device must be cpu, cuda or cuda:N"):
        request_of(kind, device=device)


# ── Data and teachers ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_path_wins_over_dataset_with_a_warning_and_the_dataset_is_not_looked_up(kind):
    lookups = RecordingLookups()
    request = validate(kind, BASES[kind] | {"data_path": "wine.csv"}, lookups)
    assert request.data == DataSource("path", "wine.csv", "csv", "wine.csv")
    assert request.warnings == ("dataset_id is ignored because data_path is given",)
    assert "find_dataset" not in dict(lookups.calls)


@pytest.mark.parametrize("kind", KINDS)
def test_sheet_name_travels_with_the_data(kind):
    assert request_of(kind, sheet_name="Tabelle 1").data.sheet_name == "Tabelle 1"


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("first", range(3))
def test_first_teacher_field_in_the_contracts_order_decides(first, count):
    given = TEACHER_FIELDS[first : first + count]
    payload = TRAIN | {name: f"by-{name}" for name in reversed(given)}
    request = validate_distill(payload, RecordingLookups())
    assert request.teacher == TeacherSource(given[0].removeprefix("teacher_"), f"by-{given[0]}")
    assert request.warnings == tuple(f"{other} is ignored because {given[0]} is given" for other in given[1:])


def test_order_of_teachers_is_run_then_path_then_model():
    assert TEACHER_FIELDS == ("teacher_run_id", "teacher_model_path", "teacher_model_id")


@pytest.mark.parametrize("name", TEACHER_FIELDS)
@pytest.mark.parametrize("value", ["", " ", 7, ["live"], {}, False])
def test_malformed_teacher_is_a_teacher_error(name, value):
    with pytest.raises(TeacherSourceError):
        validate_distill(TRAIN | {name: value}, RecordingLookups())


# ── Saving ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("given", "saves"), [(True, True), ("true", True), (" TRUE ", True), (False, False), ("false", False)]
)
def test_flags_are_booleans_or_their_text(kind, given, saves):
    assert (request_of(kind, save_model=given).saving is not None) == saves
    assert request_of(kind, overwrite=given).saving == Saving("fresh", saves)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["save_model", "overwrite", "importance"])
@pytest.mark.parametrize("given", [0, 1, "yes", "", 1.0, [], {}])
def test_other_flags_are_refused(kind, name, given):
    with pytest.raises(ParameterError, match=f"^{name} must be true or false") as raised:
        request_of(kind, **{name: given})
    assert raised.value.details["field"] == name


@pytest.mark.parametrize("kind", KINDS)
def test_saved_model_without_a_name_gets_a_uuid(kind):
    saving = request_of(kind, model_id=None).saving
    assert saving is not None
    assert uuid.UUID(saving.model_id).version == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_id", ["a", "9", "A.b_c-d", "x" * 128])
def test_model_ids_are_accepted(kind, model_id):
    assert request_of(kind, model_id=model_id).saving == Saving(model_id, overwrite=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "model_id", ["", ".a", "_a", "-a", "a/b", "a b", "ä", "a\n", "x" * 129, 7, True, ["a"], {}]
)
@pytest.mark.parametrize("save", [True, False])
def test_malformed_model_ids_are_refused_whether_or_not_they_are_used(kind, model_id, save):
    with pytest.raises(ParameterError, match=r"^model_id must be") as raised:
        request_of(kind, model_id=model_id, save_model=save)
    assert raised.value.details["field"] == "model_id"


@pytest.mark.parametrize("kind", KINDS)
def test_existing_model_needs_overwrite(kind):
    with pytest.raises(
        ModelExistsError, match="'taken' already exists: choose another model_id or set overwrite"
    ):
        request_of(kind, model_id="taken")
    assert request_of(kind, model_id="taken", overwrite=True).saving == Saving("taken", overwrite=True)


@pytest.mark.parametrize("kind", KINDS)
def test_model_id_without_saving_is_ignored_with_a_warning_and_not_looked_up(kind):
    lookups = RecordingLookups()
    request = validate(kind, BASES[kind] | {"model_id": "taken", "save_model": False}, lookups)
    assert request.saving is None
    assert request.warnings == ("model_id is ignored because save_model is not true",)
    assert "model_exists" not in dict(lookups.calls)


# ── Unknown fields and messages ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "unknown", "nearest"),
    [
        ("train", "epoch", "epochs"),
        ("train", "target", "target_column"),
        ("train", "LearningRate", "learning_rate"),
        ("distill", "hidden_dim", "student_hidden_dim"),
        ("distill", "temprature", "temperature"),
    ],
)
def test_unknown_field_is_reported_with_the_nearest_name(kind, unknown, nearest):
    assert request_of(kind, **{unknown: 1}).warnings == (
        f"unknown field '{unknown}' is ignored; did you mean {nearest}?",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_field_like_no_other_is_reported_alone(kind):
    assert request_of(kind, zzz=[1]).warnings == ("unknown field 'zzz' is ignored",)


@pytest.mark.parametrize("kind", KINDS)
def test_many_unknown_fields_do_not_make_many_warnings(kind):
    warnings = request_of(kind, **{f"zz{number}": 1 for number in range(5000)}).warnings
    assert len(warnings) <= 30
    assert "4980 more" in warnings[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_known_fields_are_the_contracts(kind):
    shared = (
        "dataset_id data_path target_column sheet_name task training_mode exclude_columns date_columns "
        "test_size epochs batch_size learning_rate early_stopping_patience random_seed "
        "max_seconds interval importance device save_model model_id overwrite"
    )
    of_train = "hidden_dim num_hidden_layers dropout ensemble_size sweep"
    of_distill = (
        "teacher_run_id teacher_model_path teacher_model_id temperature alpha "
        "student_hidden_dim student_num_hidden_layers student_dropout"
    )
    known = TRAIN_FIELDS if kind == "train" else DISTILL_FIELDS
    assert known == {*shared.split(), *(of_train if kind == "train" else of_distill).split()}


def outcome(kind, payload):
    """The request, or the error of ours; every other exception is a failure."""
    try:
        return validate(kind, payload, AgreeableLookups())
    except StillhouseError as error:
        return error


LONG_VALUES = {
    "text": "x" * 10_000,
    "list": ["x" * 10_000],
    "object": {"x" * 10_000: "x"},
    "number": int("7" * 4000),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", LONG_VALUES)
def test_messages_repeat_no_more_than_a_short_piece_of_a_value(kind, shape):
    known = TRAIN_FIELDS if kind == "train" else DISTILL_FIELDS
    for name in known:
        result = outcome(kind, BASES[kind] | {name: LONG_VALUES[shape]})
        texts = [result.message] if isinstance(result, StillhouseError) else result.warnings
        for text in texts:
            assert len(text) <= MESSAGE_LIMIT
            assert max(text.count("x" * 50), text.count("7" * 50)) == 0, text


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=80), inner, max_size=3),
    max_leaves=6,
)
PLAUSIBLE = st.sampled_from(
    [
        1,
        12,
        "12",
        0.5,
        "0.5",
        True,
        "true",
        "a",
        "a,b",
        ["a"],
        "mlp",
        "linear-glm baseline",
        "cpu",
        "auto",
        10**400,
    ]
)


def payloads():
    names = st.sampled_from(sorted(TRAIN_FIELDS | DISTILL_FIELDS)) | st.text(max_size=400)
    changes = st.dictionaries(names, PLAUSIBLE | JSON_VALUES, max_size=12)
    return st.sampled_from([{}, TRAIN, DISTILL]).flatmap(
        lambda base: changes.map(lambda changed: base | changed)
    )


@pytest.mark.parametrize("kind", KINDS)
@given(payload=payloads())
def test_any_payload_is_a_request_or_an_error_with_a_short_message(kind, payload):
    result = outcome(kind, payload)
    texts = [result.message] if isinstance(result, StillhouseError) else result.warnings
    assert all(0 < len(text) <= MESSAGE_LIMIT and "\n" not in text for text in texts)


@pytest.mark.parametrize("kind", KINDS)
@given(payload=payloads())
def test_a_request_that_passed_lies_in_every_range(kind, payload):
    request = outcome(kind, payload)
    if isinstance(request, StillhouseError):
        return
    assert {f.name for f in fields(request)} >= RANGES[kind].keys()
    for name, row in RANGES[kind].items():
        value = getattr(request, name)
        if value is not None:
            assert type(value) is (int if row.integer else float)
            assert row.low <= value <= row.high
    assert request.early_stopping_patience <= request.epochs
