"""The world as the validation chains see it, from a thread beside the loop."""

from dataclasses import dataclass
from pathlib import PurePath

import pyarrow as pa

from core.contract import DataSource, TeacherSource
from core.datasets import DatasetCatalogue
from core.errors import StillhouseError
from core.paths import resolve_within
from core.saved_models import ModelStore
from core.storage import Storage
from core.table import Opener, format_of
from core.teachers import check_teacher_model
from deployments.settings import Settings


@dataclass(frozen=True, slots=True)
class World:
    """What is in storage and below the data roots."""

    settings: Settings
    storage: Storage
    datasets: DatasetCatalogue
    models: ModelStore

    @classmethod
    def of(cls, settings: Settings) -> "World":
        storage = Storage(settings.expanded_storage_url(), settings.storage_options)
        limits = settings.limits
        datasets = DatasetCatalogue(storage, max_rows=limits.rows, max_columns=limits.columns)
        return cls(settings, storage, datasets, ModelStore(storage))

    def opener(self, data: DataSource) -> Opener:
        """Opens the file that a request reads."""
        if data.kind == "dataset":
            return lambda: self.storage.open_native(data.location)
        path = resolve_within(data.location, self.settings.roots())
        return lambda: pa.OSFile(str(path))

    def lookups(self, runtime_error: str | None, teacher_error: StillhouseError | None) -> "WorldLookups":
        """Args:
        runtime_error: Why PyTorch cannot be imported where training would run.
        teacher_error: Why the run that should teach cannot: asked before, for it may hold no thread.
        """
        return WorldLookups(self, runtime_error, teacher_error)


class WorldLookups:
    """See ``core.contract.Lookups``."""

    def __init__(
        self, world: World, runtime_error: str | None, teacher_error: StillhouseError | None
    ) -> None:
        self._world, self._runtime_error, self._teacher_error = world, runtime_error, teacher_error

    def runtime_error(self) -> str | None:
        return self._runtime_error

    def find_dataset(self, dataset_id: str) -> DataSource:
        return self._world.datasets.source(dataset_id)

    def find_path(self, data_path: str) -> DataSource:
        settings = self._world.settings
        file = resolve_within(data_path, settings.roots())
        return DataSource(
            "path",
            data_path,
            format_of(file.name, None),
            PurePath(data_path).name,
            max_rows=settings.limits.rows,
            max_columns=settings.limits.columns,
        )

    def model_exists(self, model_id: str) -> bool:
        return self._world.models.exists(model_id)

    def check_teacher(self, teacher: TeacherSource) -> None:
        if teacher.kind == "run_id":
            if self._teacher_error is not None:
                raise self._teacher_error
        else:
            roots = self._world.settings.roots()
            check_teacher_model(teacher.kind, teacher.name, self._world.storage, roots)
