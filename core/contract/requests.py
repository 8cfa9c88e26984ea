"""Requests after validation: frozen, complete, free of doubt."""

from dataclasses import dataclass
from typing import Literal, Protocol

from core.contract.modes import TrainingMode
from core.contract.sweeps import Sweep

TaskChoice = Literal["auto", "classification", "regression"]


@dataclass(frozen=True, slots=True)
class DataSource:
    """Where the rows are.

    Attributes:
        kind: ``dataset``: ``location`` is a name in storage; ``path``: a file below a data root.
        format: A ``core.table.Format``.
        label: How messages and lineage call it; never a server path.
        max_rows, max_columns: What the table may have; None: no limit.
    """

    kind: Literal["dataset", "path"]
    location: str
    format: str
    label: str
    sheet_name: str | None = None
    max_rows: int | None = None
    max_columns: int | None = None


@dataclass(frozen=True, slots=True)
class Saving:
    """Under which name the bundle outlives the registry."""

    model_id: str
    overwrite: bool


@dataclass(frozen=True, slots=True)
class TeacherSource:
    """Attributes:
    kind: Which registry or folder ``name`` belongs to.
    """

    kind: Literal["run_id", "model_path", "model_id"]
    name: str


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """A train request that passed its chain; numbers lie in the ranges of ``contract.fields``.

    Attributes:
        batch_size: None: chosen from the row count.
        max_seconds: Of training, after which no further epoch begins; None: no limit.
        interval: Share of the values that intervals around predictions shall hold; None: no intervals.
        importance: Whether to measure how much each column matters.
        device: ``cpu``, ``cuda``, ``cuda:N``, or None for the best there is.
        ensemble_size: How many models are trained, and kept as one where there are several.
        sweep: Settings of which all combinations are trained, and the best is kept; None: none.
        saving: None: the bundle lives in the registry alone.
    """

    data: DataSource
    target_column: str
    task: TaskChoice = "auto"
    training_mode: TrainingMode = "mlp_dense"
    exclude_columns: tuple[str, ...] = ()
    date_columns: tuple[str, ...] = ()
    test_size: float = 0.2
    epochs: int = 100
    batch_size: int | None = None
    learning_rate: float = 0.001
    hidden_dim: int = 128
    num_hidden_layers: int = 2
    dropout: float = 0.1
    early_stopping_patience: int = 10
    random_seed: int = 42
    ensemble_size: int = 1
    sweep: Sweep | None = None
    max_seconds: float | None = None
    interval: float | None = None
    importance: bool = False
    device: str | None = None
    saving: Saving | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DistillRequest:
    """A distil request that passed its chain.

    Attributes:
        temperature: T of the softened outputs (Hinton et al. 2015), above 0.
        alpha: Share of the hard-label loss, 0 … 1.
        student_hidden_dim, student_num_hidden_layers, student_dropout: None: derived from the teacher.
    """

    data: DataSource
    target_column: str
    teacher: TeacherSource
    task: TaskChoice = "auto"
    training_mode: TrainingMode = "mlp_dense"
    exclude_columns: tuple[str, ...] = ()
    date_columns: tuple[str, ...] = ()
    test_size: float = 0.2
    epochs: int = 60
    batch_size: int | None = None
    learning_rate: float = 0.001
    temperature: float = 2.5
    alpha: float = 0.5
    student_hidden_dim: int | None = None
    student_num_hidden_layers: int | None = None
    student_dropout: float | None = None
    early_stopping_patience: int = 10
    random_seed: int = 42
    max_seconds: float | None = None
    interval: float | None = None
    importance: bool = False
    device: str | None = None
    saving: Saving | None = None
    warnings: tuple[str, ...] = ()


class Lookups(Protocol):
    """What the chains ask of the world. Called in the order of the chain, each only when it is reached."""

    def runtime_error(self) -> str | None:
        """Why PyTorch cannot be imported where training would run; None when it can."""

    def find_dataset(self, dataset_id: str) -> DataSource:
        """Raises DatasetNotFoundError."""

    def find_path(self, data_path: str) -> DataSource:
        """Raises DataTargetError, also for paths outside the data roots; DatasetError for unknown formats."""

    def model_exists(self, model_id: str) -> bool: ...

    def check_teacher(self, teacher: TeacherSource) -> None:
        """Raises RunNotFoundError for a run that is not live, TeacherSourceError for an unreadable model."""
