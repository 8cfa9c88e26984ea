"""What the service answers, typed. Times are in UTC; fields that a later service adds are passed over."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, Literal, TypeVar

Item = TypeVar("Item")
Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    data: tuple[Item, ...]
    has_more: bool
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Listed(Generic[Item]):
    """A list that is no page of a longer one."""

    data: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    dtype: str
    null_count: int


@dataclass(frozen=True, slots=True)
class Dataset:
    """One uploaded table; the same content has the same id."""

    dataset_id: str
    name: str | None
    format: str
    bytes: int
    sha256: str
    rows: int
    columns: tuple[Column, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Preview:
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


@dataclass(frozen=True, slots=True)
class Started:
    """A trainer has begun; the run is there once the training ends well."""

    run_id: str


@dataclass(frozen=True, slots=True)
class EpochReport:
    """One finished epoch; the service leaves out some where they follow each other quickly.

    Attributes:
        validation_loss: None where there are no validation rows.
    """

    epoch: int
    epochs: int
    train_loss: float | None
    validation_loss: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Metrics:
    """Attributes:
    test_metric_name: ``accuracy`` or ``rmse``.
    details: Of each class, and what the request asked for besides: intervals, importance.
    """

    task: Literal["classification", "regression"]
    train_loss: float | None
    test_loss: float | None
    test_metric_name: str
    test_metric_value: float | None
    extra: Mapping[str, float | None]
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SplitRows:
    train: int
    validation: int
    test: int


@dataclass(frozen=True, slots=True)
class Member:
    """One of several models that trained together.

    Attributes:
        random_seed: Of its first weights.
        validation_metric_value: Accuracy or RMSE on the validation rows; None where there are none, or its
            loss was no longer finite.
        kept: Whether it is the best of a sweep, or in the ensemble.
    """

    learning_rate: float
    dropout: float
    random_seed: int
    epochs_run: int
    validation_loss: float | None
    validation_metric_value: float | None
    kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A training that ended well.

    Attributes:
        members: Of an ensemble or a sweep; else empty.
        model_id, model_path: None unless it was saved.
        expires_at: When the run goes unless it is used; a saved model stays.
    """

    run_id: str
    model_id: str | None
    model_path: str | None
    metrics: Metrics
    expires_at: datetime
    epochs_run: int
    device: str
    rows: SplitRows
    timings_s: Mapping[str, float]
    warnings: tuple[str, ...]
    members: tuple[Member, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled(Trained):
    """A student, beside its teacher.

    Attributes:
        fidelity: Share of test rows where both agree; their RMSE in regression.
    """

    teacher_metrics: Metrics
    fidelity: float | None
    teacher_input_dim: int
    teacher_output_dim: int
    student_input_dim: int
    student_output_dim: int
    teacher_model_size_bytes: int
    student_model_size_bytes: int
    size_saved_bytes: int
    size_saved_percent: float
    teacher_param_count: int
    student_param_count: int
    param_saved_count: int
    param_saved_percent: float


@dataclass(frozen=True, slots=True)
class Predictions:
    """In input order.

    Attributes:
        classes: None in regression, as are ``probabilities``.
        probabilities: One of each class a row.
        intervals: Low and high of each row, where they were asked for.
    """

    predictions: tuple[Value, ...]
    classes: tuple[Value, ...] | None
    probabilities: tuple[tuple[float, ...], ...] | None
    warnings: tuple[str, ...]
    intervals: tuple[tuple[float, float], ...] | None = None


@dataclass(frozen=True, slots=True)
class PredictedTable:
    """Predictions as a file: ``prediction`` and, in classification, ``probability_<class>`` columns."""

    content: bytes
    media_type: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Metric:
    name: str | None
    value: float | None


@dataclass(frozen=True, slots=True)
class Run:
    """A trained run in the registry."""

    run_id: str
    kind: Literal["train", "distill"]
    task: str
    training_mode: str
    metric: Metric
    bytes: int
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class RunDetails(Run):
    schema: Mapping[str, object]
    lineage: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Saved:
    """Attributes:
    model_path: In the service's storage; ``teacher_model_path`` takes it.
    """

    model_id: str
    model_path: str


@dataclass(frozen=True, slots=True)
class Model:
    """A saved model."""

    model_id: str
    task: str
    training_mode: str
    metric: Metric
    bytes: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ModelDetails(Model):
    schema: Mapping[str, object]
    metrics: Mapping[str, object]
    lineage: Mapping[str, object]
    settings: Mapping[str, object]
    architecture: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Range:
    """Attributes:
    default: None where it depends on the data or the teacher.
    exclusive_min, exclusive_max: Whether the bound itself is outside.
    """

    min: float
    max: float
    default: float | None
    exclusive_min: bool = False
    exclusive_max: bool = False


@dataclass(frozen=True, slots=True)
class RegistryLimits:
    ttl_seconds: float
    max_items: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Queue:
    capacity: int
    free: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask; ``train`` and ``distill`` are the ranges of their fields."""

    body_bytes: int
    json_bytes: int
    rows: int
    columns: int
    train: Mapping[str, Range]
    distill: Mapping[str, Range]
    registry: RegistryLimits
    queue: Queue


@dataclass(frozen=True, slots=True)
class ErrorEntry:
    """One row of the catalogue of errors."""

    code: str
    type: str
    severity: str
    status: int
    message: str
    suggested_action: str
    retryable: bool
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """Attributes:
    status: ``ok`` or ``unavailable``.
    """

    status: str
    components: Mapping[str, Mapping[str, object]]
