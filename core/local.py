"""Stillhouse without a cluster: train, distil, save and load with files of this machine."""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import pyarrow as pa

from core.bundles import Bundle
from core.contract import DataSource, Saving, TeacherSource, validate_distill, validate_train
from core.distillation import Teacher, distill
from core.errors import DataTargetError, ModelNotFoundError, ParameterError, TeacherSourceError
from core.pipeline import Outcome, Work, train
from core.table import format_of
from core.training import EpochReport

Progress = Callable[[EpochReport], None]


def train_model_from_file(
    data_path: str | Path, target_column: str, *, progress: Progress | None = None, **fields: object
) -> tuple[Bundle, Mapping[str, object]]:
    """Trains a model on a table.

    Args:
        data_path: CSV, TSV, Parquet, Arrow, JSON Lines or XLSX.
        progress: Called after each epoch.
        fields: As in the contract's section 4: ``training_mode="tabresnet"``, ``epochs=50`` …

    Returns:
        The bundle and its metrics; of an ensemble or a sweep with ``members``, one entry each. What there is
        to say besides comes as Python warnings.

    Raises:
        StillhouseError: of a field or of the data; nothing is written.
    """
    payload = {**fields, "data_path": str(data_path), "target_column": target_column}
    request = validate_train(payload, _LocalLookups())
    _check_saves_nothing(request.saving)
    outcome = _run(train(request, _opener(request.data), _never), progress)
    return outcome.bundle, {**outcome.bundle.metrics, **outcome.comparison}


def distill_model_from_file(
    data_path: str | Path,
    target_column: str,
    teacher: Bundle | str | Path,
    *,
    progress: Progress | None = None,
    **fields: object,
) -> tuple[Bundle, Mapping[str, object]]:
    """Trains a small student on a table and on its teacher's outputs.

    Args:
        teacher: A bundle or the file of one.
        fields: As in the contract's section 5.

    Returns:
        The student's bundle, and its metrics with what section 5 adds: sizes, ``fidelity``,
        ``teacher_metrics``.

    Raises:
        StillhouseError
    """
    label = "in memory" if isinstance(teacher, Bundle) else str(teacher)
    payload = {
        **fields,
        "data_path": str(data_path),
        "target_column": target_column,
        "teacher_model_path": label,
    }
    request = validate_distill(payload, _LocalLookups())
    _check_saves_nothing(request.saving)
    file = teacher.to_bytes() if isinstance(teacher, Bundle) else _read_teacher(Path(teacher))
    master = Teacher(Bundle.from_bytes(file), len(file), {"path": Path(label).name})
    outcome = _run(distill(request, _opener(request.data), master, _never), progress)
    return outcome.bundle, {**outcome.bundle.metrics, **outcome.comparison}


def save_bundle(bundle: Bundle, path: str | Path) -> None:
    """Writes a bundle file whole or not at all."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_bytes(bundle.to_bytes())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def load_bundle(path: str | Path) -> Bundle:
    """Reads a bundle file.

    Raises:
        ModelNotFoundError, BundleError
    """
    file = Path(path)
    if not _is_file(file):
        raise ModelNotFoundError(f"There is no model file {file.name!r:.60}.")
    return Bundle.from_bytes(file.read_bytes())


class _LocalLookups:
    """The world of one process: every file may be read, and PyTorch was imported with this module."""

    def runtime_error(self) -> str | None:
        return None

    def find_dataset(self, dataset_id: str) -> DataSource:
        raise DataTargetError(f"dataset_id {dataset_id!r} needs a service: give the path of a file")

    def find_path(self, data_path: str) -> DataSource:
        file = Path(data_path)
        if not _is_file(file):
            raise DataTargetError(f"data_path must name a file, got {file.name!r:.60}")
        return DataSource("path", str(file), format_of(file.name, None), file.name)

    def model_exists(self, model_id: str) -> bool:
        raise DataTargetError(f"model_id {model_id!r} needs a service: use save_bundle")

    def check_teacher(self, teacher: TeacherSource) -> None:
        pass


def _check_saves_nothing(saving: Saving | None) -> None:
    if saving is not None:
        raise ParameterError("save_model needs a service: use save_bundle", field="save_model")


def _read_teacher(path: Path) -> bytes:
    if not _is_file(path):
        raise TeacherSourceError(f"teacher must be a bundle or the file of one, got {path.name!r:.50}")
    return path.read_bytes()


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113  # pathlib's raises for a name that is too long


def _opener(source: DataSource) -> Callable[[], pa.NativeFile]:
    return lambda: pa.OSFile(source.location)


def _never() -> bool:
    return False


def _run(work: Work, progress: Progress | None) -> Outcome:
    while True:
        try:
            report = next(work)
        except StopIteration as end:
            outcome = cast(Outcome, end.value)
            break
        if progress is not None:
            progress(report)
    for warning in outcome.warnings:
        warnings.warn(warning, stacklevel=3)
    return outcome
