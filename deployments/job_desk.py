"""What clients do with jobs, before the ledger is asked."""

import asyncio
import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import BinaryIO, Final, Protocol, cast

from core.architecture import design
from core.contract import TrainRequest
from core.contract.validation import DISTILL_FIELDS, TRAIN_FIELDS
from core.contract.violations import requested, violations
from core.errors import (
    ConfigurationError,
    DatasetError,
    DataTargetError,
    HiddenConfigError,
    JobBusyError,
    RequestError,
    StillhouseError,
    ValidationError,
)
from core.estimate import training_need
from core.jobs.callbacks import CallbackKind
from core.jobs.inquiries import Wanted
from core.jobs.orders import Order, parse_order, parse_retry, validation_error
from core.jobs.records import Checkpoint, Event, Job, JobKind, NewJob, Verdict
from core.jobs.states import TERMINAL
from core.paging import Page
from core.table import inspect_table
from deployments.dispatcher import Filed, News
from deployments.lookups import World
from deployments.origin import Origin

ASSUMED_BATCH: Final = 256


class Jobs(Protocol):
    """The dispatcher, wherever it runs; see ``deployments.dispatcher``."""

    async def create(self, new: NewJob) -> Filed: ...
    async def get(self, job_id: str, owner: str | None) -> Filed: ...
    async def page(self, wanted: Wanted, limit: int, cursor: str | None) -> tuple[Page[Job], int]: ...
    async def cancel(self, job_id: str) -> Job: ...
    async def retry(
        self, job_id: str, payload: Mapping[str, object], changes: Mapping[str, object], resume_from: str
    ) -> Filed: ...
    async def events(self, job_id: str, owner: str | None, after: int, limit: int) -> list[Event]: ...
    async def follow(self, job_id: str, owner: str | None, after: int, version: int) -> News: ...
    async def attempts(self, job_id: str) -> list[dict[str, object]]: ...
    async def checkpoints(self, job_id: str) -> list[Checkpoint]: ...
    async def epochs(
        self, job_id: str, attempt: int, limit: int, from_epoch: int | None
    ) -> list[dict[str, object]]: ...
    async def logs(
        self,
        job_id: str,
        limit: int,
        after: int | None,
        level: str | None,
        attempt: int | None,
        since: float | None,
    ) -> list[dict[str, object]]: ...
    async def counts(self) -> Mapping[str, int]: ...
    async def hear(
        self, job_id: str, token: str, kind: CallbackKind, body: Mapping[str, object]
    ) -> Verdict: ...
    async def bearer(self, job_id: str, token: str) -> Job: ...


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks.

    Attributes:
        sees: Whose jobs there are for the visitor; None: everybody's.
    """

    name: str
    sees: str | None


@dataclass(frozen=True, slots=True)
class DryRun:
    """What would come of an order."""

    errors: list[StillhouseError]
    warnings: list[str]
    dataset: Mapping[str, object] | None
    estimate: Mapping[str, object] | None = None


class JobDesk:
    """Takes orders; free of Ray, so that tests bring a dispatcher of their own."""

    def __init__(self, jobs: Jobs, world: World) -> None:
        self.jobs, self._world = jobs, world

    async def create(
        self, body: Mapping[str, object], kind: JobKind | None, visitor: Visitor, origin: Origin
    ) -> Filed:
        """Files a job.

        Raises:
            ValidationError, ConfigurationError: at once; what only the data tells is the job's failure.
            DatasetNotFoundError: if the order is ``strict``.
            QuotaExceededError, QueueFullError, TrainerUnreachableError
        """
        order = await asyncio.to_thread(parse_order, body, kind)
        self._check_possible(order)
        if order.strict:
            await asyncio.to_thread(self._find_data, order)
        return await self.jobs.create(
            NewJob(
                job_id=job_id_of(origin, body),
                owner=visitor.name,
                kind=order.kind,
                payload=order.payload,
                options=order.options,
                trace_id=origin.trace_id,
                executor=order.executor,
                priority=order.priority,
                project_id=order.project_id,
                epochs=order.epochs,
                warnings=order.warnings,
            )
        )

    async def cancel(self, job_id: str, visitor: Visitor) -> Job:
        await self.jobs.get(job_id, visitor.sees)
        return await self.jobs.cancel(job_id)

    async def retry(self, job_id: str, body: Mapping[str, object], visitor: Visitor) -> Filed:
        """Runs a job once more, with changes.

        Raises:
            ValidationError, ConfigurationError: if the changed request is wrong.
            JobBusyError, CheckpointMissingError
        """
        job = (await self.jobs.get(job_id, visitor.sees)).job
        if job.state not in TERMINAL:
            raise JobBusyError(
                f"Only a job that has ended can be retried; this one is {job.state}.", state=job.state.value
            )
        order = parse_retry(body)
        known = TRAIN_FIELDS if job.kind == "train" else DISTILL_FIELDS
        unknown = sorted(set(order.changes) - known)
        if unknown:
            raise validation_error(
                RequestError(f"{name!r:.40} cannot be changed by a retry.", field=name[:128])
                for name in unknown
            )
        payload = {**job.payload, **order.changes}
        if found := violations(job.kind, payload):
            wrong = [error for error in found if isinstance(error, RequestError)]
            raise validation_error(wrong) if wrong else found[0]
        changes = {**order.changes, **({"new_snapshot": True} if order.new_snapshot else {})}
        return await self.jobs.retry(job_id, payload, changes, order.resume_from)

    async def dry_run(self, body: Mapping[str, object], kind: JobKind | None) -> DryRun:
        """Everything that is wrong with an order, in the request and in the data, without making a job."""
        return await asyncio.to_thread(self._dry_run, body, kind)

    def _dry_run(self, body: Mapping[str, object], kind: JobKind | None) -> DryRun:
        try:
            order = parse_order(body, kind)
            self._check_possible(order)
        except (ValidationError, ConfigurationError) as error:
            return DryRun([error], [], None)
        errors: list[StillhouseError] = []
        if order.payload.get("target_column") is None:
            errors.append(
                DataTargetError("target_column is required: name the column.", field="target_column")
            )
        try:
            dataset = self._find_data(order)
        except StillhouseError as error:
            return DryRun([*errors, error], list(order.warnings), None)
        names = [str(column["name"]) for column in dataset["columns"]]  # type: ignore[attr-defined]
        target = order.payload.get("target_column")
        if target is not None and target not in names:
            errors.append(DatasetError(f"The data has no column {target!r:.40}.", field="target_column"))
        return DryRun(errors, list(order.warnings), dataset, estimate_of(order, dataset))

    def _check_possible(self, order: Order) -> None:
        """Raises HiddenConfigError for what this service is not configured for."""
        jobs = self._world.settings.jobs
        if order.executor == "external" and not jobs.external_command:
            raise HiddenConfigError(
                "executor external needs jobs.external_command: use ray.", field="executor"
            )
        if order.options.get("callback_url") and jobs.secret() is None:
            raise HiddenConfigError(
                "callback_url needs jobs.callback_secret, which signs: leave it out.", field="callback_url"
            )

    def open_data(self, job: Job) -> BinaryIO:
        """The file that a job reads; raises DatasetNotFoundError, DatasetError, StorageError. Blocking."""
        lookups = self._world.lookups(None, None)
        path, dataset_id = job.payload.get("data_path"), job.payload.get("dataset_id")
        source = lookups.find_dataset(str(dataset_id)) if path is None else lookups.find_path(str(path))
        try:
            return cast("BinaryIO", self._world.opener(source)())
        except FileNotFoundError:
            raise DatasetError("The file of the dataset is gone: upload it again.") from None

    def _find_data(self, order: Order) -> Mapping[str, object]:
        """The data of an order, described; raises DatasetNotFoundError, DataTargetError, DatasetError."""
        lookups = self._world.lookups(None, None)
        path, dataset_id = order.payload.get("data_path"), order.payload.get("dataset_id")
        if path is None:
            return self._world.datasets.get(str(dataset_id)).to_dict()
        source = lookups.find_path(str(path))
        info = inspect_table(self._world.opener(source), source.format)  # type: ignore[arg-type]
        columns = [asdict(column) for column in info.columns]
        return {"name": source.label, "format": source.format, "rows": info.rows, "columns": columns}


def estimate_of(order: Order, dataset: Mapping[str, object]) -> Mapping[str, object] | None:
    """What a training will take at least, as far as it can be told before the data is read.

    Returns:
        Bytes on the device for a table whose columns are numbers (texts become more than one each), and
        steps, epochs that early stopping may save included; None for a student, whose teacher decides.
    """
    request = requested(order.kind, order.payload)
    rows, columns = dataset["rows"], dataset["columns"]
    if not isinstance(request, TrainRequest) or not isinstance(rows, int) or not isinstance(columns, list):
        return None
    train_rows, batch_size = math.ceil(rows * (1 - request.test_size)), request.batch_size or ASSUMED_BATCH
    architecture = design(
        request.training_mode,
        inputs=max(1, len(columns) - 1 - len(request.exclude_columns)),
        outputs=2,
        hidden_dim=request.hidden_dim,
        num_hidden_layers=request.num_hidden_layers,
        dropout=request.dropout,
        classification=request.task != "regression",
    )
    need = training_need(
        architecture,
        rows=rows,
        train_rows=max(1, train_rows),
        batch_size=batch_size,
        watched=request.early_stopping_patience > 0,
        on_cuda=False,
    )
    return {"memory_bytes": need.total, "steps": request.epochs * math.ceil(train_rows / batch_size)}


def job_id_of(origin: Origin, payload: Mapping[str, object]) -> str:
    """A new id; with an Idempotency-Key the same one for the same request, so that twice is one."""
    if not origin.idempotency:
        return str(uuid.uuid4())
    name = f"{origin.idempotency} {json.dumps(payload, sort_keys=True)}"
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))
