"""The ordered chains of train and distil (seed 000; contract, section 3).

Each chain is a table of steps. A step reads the payload, asks ``Lookups`` where it must, and adds what it
found to the draft; it raises to end the chain. A later step never runs when an earlier one failed.
"""

import difflib
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from dataclasses import replace as replaced
from typing import Final, TypeVar

from core.contract.fields import (
    DEVICE,
    DISTILL_NUMBERS,
    HIDDEN_NUMBERS,
    TRAIN_NUMBERS,
    NumberField,
    parse_columns,
    parse_flag,
    parse_model_id,
    parse_text,
    shown,
)
from core.contract.modes import ALLOWED_TRAINING_MODES, UNSUPPORTED_DISTILL_MODES, normalise_mode
from core.contract.requests import DistillRequest, Lookups, Saving, TeacherSource, TrainRequest
from core.contract.sweeps import Sweep, check_sweep, check_sweep_beside, parse_sweep
from core.errors import (
    DataTargetError,
    HiddenConfigError,
    ModelExistsError,
    ParameterError,
    RuntimeUnavailableError,
    TeacherSourceError,
    TrainingModeError,
)

Payload = Mapping[str, object]
Request = TypeVar("Request", TrainRequest, DistillRequest)

TEACHER_MISSING: Final = "Give a teacher: one of teacher_run_id, teacher_model_path or teacher_model_id."
UNKNOWN_FIELDS_SHOWN: Final = 20  # a body has room for a million, and each is compared with every name
TEACHER_FIELDS: Final = ("teacher_run_id", "teacher_model_path", "teacher_model_id")


@dataclass(slots=True)
class Draft:
    """A request in the making: values by the field names of the request, and what to tell the client."""

    payload: Payload
    lookups: Lookups
    values: dict[str, object] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


Step = Callable[[Draft], None]


def check_runtime(draft: Draft) -> None:
    reason = draft.lookups.runtime_error()
    if reason is not None:
        raise RuntimeUnavailableError(
            f"PyTorch cannot be imported ({reason}): ask the operator to install it."
        )


def resolve_data_target(draft: Draft) -> None:
    target = parse_text(draft.payload, "target_column", DataTargetError)
    if target is None:
        raise DataTargetError("target_column is required: name the column to predict", field="target_column")
    path = parse_text(draft.payload, "data_path", DataTargetError)
    dataset_id = parse_text(draft.payload, "dataset_id", DataTargetError)
    sheet_name = parse_text(draft.payload, "sheet_name", DataTargetError)
    if path is not None:
        source = draft.lookups.find_path(path)
        if dataset_id is not None:
            draft.warnings.append("dataset_id is ignored because data_path is given")
    elif dataset_id is not None:
        source = draft.lookups.find_dataset(dataset_id)
    else:
        raise DataTargetError("dataset_id or data_path is required: name the data", field="dataset_id")
    draft.values |= {"target_column": target, "data": replaced(source, sheet_name=sheet_name)}


def find_teacher_source(draft: Draft) -> None:
    """The first teacher field that is given decides (contract, section 5)."""
    given = [name for name in TEACHER_FIELDS if draft.payload.get(name) is not None]
    if not given:
        raise TeacherSourceError(TEACHER_MISSING)
    name = parse_text(draft.payload, given[0], TeacherSourceError)
    assert name is not None  # noqa: S101  # it is among the given
    draft.values["teacher"] = TeacherSource(given[0].removeprefix("teacher_"), name)  # type: ignore[arg-type]
    draft.warnings += [f"{other} is ignored because {given[0]} is given" for other in given[1:]]


def plan_saving(draft: Draft) -> None:
    save, overwrite = parse_flag(draft.payload, "save_model"), parse_flag(draft.payload, "overwrite")
    given = draft.payload.get("model_id")
    model_id = str(uuid.uuid4()) if given is None else parse_model_id(given)
    if not save:
        if given is not None:
            draft.warnings.append("model_id is ignored because save_model is not true")
        return
    if given is not None and not overwrite and draft.lookups.model_exists(model_id):
        raise ModelExistsError(
            f"Model {model_id!r:.36} already exists: choose another model_id or set overwrite",
            model_id=model_id,
        )
    draft.values["saving"] = Saving(model_id, overwrite)


def parse_feature_columns(draft: Draft) -> None:
    excluded = parse_columns(draft.payload, "exclude_columns")
    dates = parse_columns(draft.payload, "date_columns")
    if draft.values["target_column"] in excluded:
        raise ParameterError("exclude_columns must not name the target_column", field="exclude_columns")
    draft.values |= {"exclude_columns": excluded, "date_columns": dates}


def parse_numbers(table: Mapping[str, NumberField]) -> Step:
    def parse(draft: Draft) -> None:
        draft.values |= {name: number.parse(draft.payload) for name, number in table.items()}
        draft.values["importance"] = parse_flag(draft.payload, "importance")

    return parse


def check_bounds(table: Mapping[str, NumberField]) -> Step:
    """Ranges, ``task`` and ``device``; then the patience, whose upper bound is ``epochs``."""

    def check(draft: Draft) -> None:
        for name, number in table.items():
            number.check(draft.values[name])  # type: ignore[arg-type]
        epochs, patience = draft.values["epochs"], draft.values["early_stopping_patience"]
        assert isinstance(epochs, int)  # noqa: S101  # it has a default
        replaced(table["early_stopping_patience"], high=epochs).check(patience)  # type: ignore[arg-type]
        draft.values["early_stopping_patience"] = min(10, epochs) if patience is None else patience
        draft.values |= {"task": parse_task(draft.payload), "device": parse_device(draft.payload)}

    return check


def parse_train_numbers(draft: Draft) -> None:
    parse_numbers(TRAIN_NUMBERS)(draft)
    draft.values["sweep"] = parse_sweep(draft.payload)


def check_train_bounds(draft: Draft) -> None:
    check_bounds(TRAIN_NUMBERS)(draft)
    sweep, ensemble_size = draft.values["sweep"], draft.values["ensemble_size"]
    if isinstance(sweep, Sweep):
        check_sweep(sweep)
        check_sweep_beside(sweep, draft.payload, ensemble_size)  # type: ignore[arg-type]


def normalise_training_mode(draft: Draft) -> None:
    """Never fails: what is not text is left for the next step to refuse."""
    given = draft.payload.get("training_mode")
    mode = "mlp_dense" if given is None else given
    draft.values["training_mode"] = normalise_mode(mode) if isinstance(mode, str) else mode


def check_train_mode(draft: Draft) -> None:
    _check_mode(draft, ALLOWED_TRAINING_MODES, "training_mode")


def check_distill_mode(draft: Draft) -> None:
    distillable = [mode for mode in ALLOWED_TRAINING_MODES if mode not in UNSUPPORTED_DISTILL_MODES]
    _check_mode(draft, distillable, "student's training_mode")


def check_hidden_config(draft: Draft) -> None:
    """Parses and bounds the three hidden fields; a linear model has none (contract, sections 3 and 4).

    So a sweep over dropout contradicts it.
    """
    if draft.values["training_mode"] == "linear_glm_baseline":
        sweep = draft.values["sweep"]
        if isinstance(sweep, Sweep) and sweep.dropout:
            raise HiddenConfigError("sweep must have no dropout with linear_glm_baseline", field="sweep")
        return
    try:
        for name, number in HIDDEN_NUMBERS.items():
            draft.values[name] = number.parse(draft.payload)
            number.check(draft.values[name])  # type: ignore[arg-type]
    except ParameterError as error:
        raise HiddenConfigError(error.message, **error.details) from None


def check_teacher(draft: Draft) -> None:
    teacher = draft.values["teacher"]
    assert isinstance(teacher, TeacherSource)  # noqa: S101  # step 3 put it there
    draft.lookups.check_teacher(teacher)


TRAIN_CHAIN: Final[tuple[tuple[int, str, Step], ...]] = (
    (1, "runtime", check_runtime),
    (2, "data target", resolve_data_target),
    (3, "saving", plan_saving),
    (4, "feature columns", parse_feature_columns),
    (5, "numbers", parse_train_numbers),
    (6, "bounds", check_train_bounds),
    (7, "mode normalised", normalise_training_mode),
    (8, "mode allowed", check_train_mode),
    (9, "hidden configuration", check_hidden_config),
)
DISTILL_CHAIN: Final[tuple[tuple[int, str, Step], ...]] = (
    (1, "runtime", check_runtime),
    (2, "data target", resolve_data_target),
    (3, "teacher source", find_teacher_source),
    (4, "saving", plan_saving),
    (5, "feature columns", parse_feature_columns),
    (6, "numbers", parse_numbers(DISTILL_NUMBERS)),
    (7, "bounds", check_bounds(DISTILL_NUMBERS)),
    (8, "mode normalised", normalise_training_mode),
    (9, "mode distillable", check_distill_mode),
    (10, "teacher", check_teacher),
)

_PAYLOAD_ONLY: Final = {"dataset_id", "data_path", "sheet_name", "save_model", "model_id", "overwrite"}
_INTERNAL: Final = {"data", "saving", "teacher", "warnings"}
TRAIN_FIELDS: Final = {f.name for f in fields(TrainRequest)} - _INTERNAL | _PAYLOAD_ONLY
DISTILL_FIELDS: Final = (
    {f.name for f in fields(DistillRequest)} - _INTERNAL | _PAYLOAD_ONLY | {*TEACHER_FIELDS}
)


def validate_train(payload: Payload, lookups: Lookups) -> TrainRequest:
    """Steps 1 to 9 of the train chain.

    Raises:
        StillhouseError: the error of the first step that fails.
    """
    return _validate(TRAIN_CHAIN, TrainRequest, TRAIN_FIELDS, payload, lookups)


def validate_distill(payload: Payload, lookups: Lookups) -> DistillRequest:
    """Steps 1 to 10 of the distil chain; raises like ``validate_train``."""
    return _validate(DISTILL_CHAIN, DistillRequest, DISTILL_FIELDS, payload, lookups)


def _validate(
    chain: tuple[tuple[int, str, Step], ...],
    request: type[Request],
    known: set[str],
    payload: Payload,
    lookups: Lookups,
) -> Request:
    draft = Draft(payload, lookups)
    for _, _, step in chain:
        step(draft)
    draft.warnings += _unknown_fields(payload, known)
    return request(**draft.values, warnings=tuple(draft.warnings))  # type: ignore[arg-type]


def _unknown_fields(payload: Payload, known: set[str]) -> Iterable[str]:
    unknown = [name for name in payload if name not in known]
    for name in unknown[:UNKNOWN_FIELDS_SHOWN]:
        nearest = difflib.get_close_matches(name, sorted(known), n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        yield f"unknown field {shown(name)} is ignored{hint}"
    if len(unknown) > UNKNOWN_FIELDS_SHOWN:
        yield f"{len(unknown) - UNKNOWN_FIELDS_SHOWN} more unknown fields are ignored"


def parse_task(payload: Payload) -> str:
    """Raises ParameterError."""
    task = payload.get("task")
    if task is None:
        return "auto"
    if task not in ("auto", "classification", "regression"):
        raise ParameterError(
            f"task must be auto, classification or regression, got {shown(task)}", field="task"
        )
    return str(task)


def parse_device(payload: Payload) -> str | None:
    """Raises ParameterError."""
    device = payload.get("device")
    if device is None:
        return None
    if not isinstance(device, str) or not DEVICE.fullmatch(device):
        raise ParameterError(f"device must be cpu, cuda or cuda:N, got {shown(device)}", field="device")
    return device


def _check_mode(draft: Draft, allowed: Iterable[str], what: str) -> None:
    mode, known = draft.values["training_mode"], list(allowed)
    if mode not in known:
        nearest = difflib.get_close_matches(str(mode)[:40], known, n=1, cutoff=0.0)[0]
        raise TrainingModeError(
            f"{what} must be {nearest} or another of /docs, got {shown(mode, 16)}",
            field="training_mode",
            allowed=known,
        )
