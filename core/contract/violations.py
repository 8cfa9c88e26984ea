"""Everything that is wrong with a train or distil request at once, before anything is looked up."""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal

from core.contract.fields import (
    DISTILL_NUMBERS,
    HIDDEN_NUMBERS,
    TRAIN_NUMBERS,
    NumberField,
    parse_columns,
    parse_flag,
    parse_model_id,
    parse_text,
)
from core.contract.requests import DataSource, DistillRequest, TeacherSource, TrainRequest
from core.contract.sweeps import check_sweep, parse_sweep
from core.contract.validation import (
    TEACHER_FIELDS,
    TEACHER_MISSING,
    Payload,
    parse_device,
    parse_task,
    validate_distill,
    validate_train,
)
from core.errors import (
    DataTargetError,
    HiddenConfigError,
    RequestError,
    StillhouseError,
    TeacherSourceError,
    TrainingModeError,
)

Check = Callable[[Payload], object]
_TEXTS: Final = ("target_column", "dataset_id", "data_path", "sheet_name")
_UNNAMED: Final = "?"


def violations(kind: Literal["train", "distill"], payload: Payload) -> list[StillhouseError]:
    """The fields that are wrong one by one; in the absence of such, the combination that cannot be.

    Whether data, teachers and models exist is not looked at, and a target may come later.

    Returns:
        RequestErrors for fields; TrainingModeError or HiddenConfigError for a configuration that cannot be.
    """
    wrong = [error for check in _checks(kind) if (error := _failure(check, payload)) is not None]
    return wrong or list(_impossible(kind, payload))


def _checks(kind: Literal["train", "distill"]) -> Iterator[Check]:
    for name in _TEXTS:
        yield lambda payload, name=name: parse_text(payload, name, DataTargetError)  # type: ignore[misc]
    yield _names_data
    if kind == "distill":
        yield _names_teacher
    yield lambda payload: parse_flag(payload, "save_model")
    yield lambda payload: parse_flag(payload, "overwrite")
    yield lambda payload: payload.get("model_id") is None or parse_model_id(payload["model_id"])
    yield lambda payload: parse_columns(payload, "exclude_columns")
    yield lambda payload: parse_columns(payload, "date_columns")
    numbers = {**TRAIN_NUMBERS, **HIDDEN_NUMBERS} if kind == "train" else DISTILL_NUMBERS
    for number in numbers.values():
        yield lambda payload, number=number: _in_range(number, payload)  # type: ignore[misc]
    if kind == "train":
        yield _sweeps_in_range
    yield parse_device


def _in_range(number: NumberField, payload: Payload) -> None:
    number.check(number.parse(payload))


def _sweeps_in_range(payload: Payload) -> None:
    if (sweep := parse_sweep(payload)) is not None:
        check_sweep(sweep)


def _names_data(payload: Payload) -> None:
    if payload.get("dataset_id") is None and payload.get("data_path") is None:
        raise DataTargetError("dataset_id or data_path is required: name the data", field="dataset_id")


def _names_teacher(payload: Payload) -> None:
    given = [name for name in TEACHER_FIELDS if payload.get(name) is not None]
    if not given:
        raise TeacherSourceError(TEACHER_MISSING, field=TEACHER_FIELDS[0])
    for name in given:
        parse_text(payload, name, TeacherSourceError)


def _failure(check: Check, payload: Payload) -> StillhouseError | None:
    try:
        check(payload)
    except RequestError as error:
        return error
    return None


def _impossible(kind: Literal["train", "distill"], payload: Payload) -> Iterator[StillhouseError]:
    complete = {**payload, "target_column": payload.get("target_column") or _UNNAMED}
    try:
        parse_task(payload)
        validate_train(complete, _Anywhere()) if kind == "train" else validate_distill(complete, _Anywhere())
    except TrainingModeError as error:
        yield error
    except RequestError as error:  # each field is right, but not beside the others
        yield HiddenConfigError(error.message, **error.details)
    except HiddenConfigError as error:
        yield error


class _Anywhere:
    """A world in which everything is found."""

    def runtime_error(self) -> str | None:
        return None

    def find_dataset(self, dataset_id: str) -> DataSource:
        return DataSource("dataset", dataset_id, "csv", dataset_id)

    def find_path(self, data_path: str) -> DataSource:
        return DataSource("path", data_path, "csv", data_path)

    def model_exists(self, model_id: str) -> bool:  # noqa: ARG002  # none is in the way
        return False

    def check_teacher(self, teacher: TeacherSource) -> None:
        pass


def requested(
    kind: Literal["train", "distill"], payload: Mapping[str, object]
) -> TrainRequest | DistillRequest:
    """The request as it would be carried out if everything it names is there; for estimates.

    Raises:
        StillhouseError: if ``violations`` finds any.
    """
    complete = {**payload, "target_column": payload.get("target_column") or _UNNAMED}
    return (validate_train if kind == "train" else validate_distill)(complete, _Anywhere())
