"""Table in, bundle out: the work of one train request. Axes: N rows, F features, C outputs."""

import dataclasses
import math
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from core.architecture import Architecture, design
from core.bundles import Bundle
from core.checkpoints import Progress, fingerprint_of
from core.contract import DistillRequest, TrainRequest
from core.contract.modes import CLASSIFICATION_ONLY, TrainingMode
from core.details import check_interval, with_details
from core.encoding import Encoder
from core.ensembles import load_model
from core.errors import TrainingModeError
from core.estimate import training_need
from core.evaluation import report
from core.forest import forest_outputs
from core.losses import Objective, balanced_weights, blend, cross_entropy, soft_cross_entropy, squared_error
from core.members import Judge, members_of, train_members
from core.memory import memory_errors, require_room
from core.models import build_network, export_weights, initialise
from core.prediction import as_prediction
from core.preparation import (
    Prepared,
    count_rows,
    dropped_warning,
    encode,
    feature_columns,
    load_rows,
    place,
    schema_of,
    split_of,
    target_scale,
)
from core.schema import column_infos
from core.splits import Split
from core.stacked import Together
from core.table import Opener
from core.target import Target, infer_target
from core.training import (
    Checkpoints,
    EpochReport,
    Schedule,
    Stop,
    choose_batch_size,
    choose_device,
    divergence_error,
    fit,
    loss_on,
    outputs_of,
    threads_for,
)

LABEL_SMOOTHING = 0.05
TEMPERATURE_SPREAD = 0.25  # standard deviation of log T before any row is seen


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished training.

    Attributes:
        file: The bundle as it is stored.
        epochs_run: Including the epochs waited in vain before early stopping.
        rows: Counts by part: train, validation, test.
        timings_s: Seconds: load (read, encode, move), train, total.
        comparison: Of a distillation what the contract's section 5 adds; of several models one entry each.
    """

    bundle: Bundle
    file: bytes
    epochs_run: int
    device: str
    rows: Mapping[str, int]
    timings_s: Mapping[str, float]
    warnings: tuple[str, ...]
    comparison: Mapping[str, object] = dataclasses.field(default_factory=dict)


Work = Generator[EpochReport, None, Outcome]


def train(
    request: TrainRequest, open_file: Opener, stop: Stop, checkpoints: Checkpoints | None = None
) -> Work:
    """Reads, encodes, trains and evaluates; stores nothing but states in ``checkpoints``.

    Yields:
        A report per epoch that ran here.

    Raises:
        CheckpointError: if the latest state is damaged, or of another request, table or architecture.
        StillhouseError: what only the data or the device can tell.
    """
    started = time.perf_counter()
    device = choose_device(request.device)
    table = load_rows(request, open_file)
    target = infer_target(table[request.target_column], request.target_column, request.task)
    if target.dropped:
        table = table.take(pa.array(target.rows))
    _check_mode_fits(request.training_mode, target)
    infos = column_infos(table)
    split = split_of(request, target)
    check_interval(request, target, split)
    columns = feature_columns(table, request)
    del table
    encoder = Encoder.fit(columns, split.train, date_columns=request.date_columns)
    classes = target.classes
    architecture = design(
        request.training_mode,
        inputs=encoder.width,
        outputs=len(classes) if classes else 1,
        hidden_dim=request.hidden_dim,
        num_hidden_layers=request.num_hidden_layers,
        dropout=request.dropout,
        classification=classes is not None,
    )
    schedule = schedule_of(request, len(split.train), architecture)
    together = dataclasses.replace(architecture, members=max(1, len(members_of(request))))
    check_room(columns, split, together, schedule, device)
    features = encode(columns, encoder)
    mean, std = target_scale(target, split)
    data = place(features, target, split, (mean, std), device)
    loaded = time.perf_counter()

    objective = _objective(request, data, classes, features, stop)
    keeping = Keeping(checkpoints, settings_of(request, schedule), architecture, encoder)
    made = yield from _make(request, objective, data, std, schedule, stop, keeping)
    trained = time.perf_counter()

    bundle = Bundle(
        task=target.task,
        training_mode=request.training_mode,
        target_column=request.target_column,
        classes=classes,
        architecture=made.architecture,
        encoder=encoder,
        weights=made.weights,
        target_mean=mean,
        target_std=std,
        temperature=_temperature(request, made.network, data),
        schema=schema_of(request, infos, encoder, classes),
        settings=made.settings,
        lineage={"teacher": None},
    )
    bundle = dataclasses.replace(bundle, metrics=evaluate(bundle, made.network, objective, data))
    bundle = with_details(request, bundle, made.network, data, stop)
    return Outcome(
        bundle=bundle,
        file=bundle.to_bytes(),
        epochs_run=made.progress.epoch,
        device=str(device),
        rows=count_rows(split),
        timings_s=timings(started, loaded, trained),
        warnings=(
            *request.warnings,
            *dropped_warning(target),
            *encoder.warnings,
            *time_warning(schedule, made.progress),
        ),
        comparison={"members": made.members} if made.members else {},
    )


def new_network(
    architecture: Architecture, encoder: Encoder, seed: int, device: torch.device
) -> nn.Sequential:
    """A network on the device, its weights drawn from ``seed``."""
    network = build_network(architecture)
    initialise(network, seed, encoder.never_active())
    return network.to(device)


def timings(started: float, loaded: float, trained: float) -> dict[str, float]:
    """Seconds of each part, up to now."""
    return {"load": loaded - started, "train": trained - loaded, "total": time.perf_counter() - started}


def check_room(
    columns: Mapping[str, pa.ChunkedArray],
    split: Split,
    architecture: Architecture,
    schedule: Schedule,
    device: torch.device,
) -> None:
    """Refuses what cannot fit, now that the size of everything is known and little of it is there.

    Raises:
        CudaOutOfMemoryError, HostOutOfMemoryError
    """
    need = training_need(
        architecture,
        rows=sum(count_rows(split).values()),
        train_rows=len(split.train),
        batch_size=schedule.batch_size,
        watched=schedule.patience > 0,
        on_cuda=device.type == "cuda",
    )
    freed = sum(column.nbytes for column in columns.values())
    require_room(need, schedule.batch_size, device, given_back=freed)


def schedule_of(
    request: TrainRequest | DistillRequest, train_rows: int, architecture: Architecture
) -> Schedule:
    return Schedule(
        epochs=request.epochs,
        batch_size=request.batch_size or choose_batch_size(train_rows, batch_norm=architecture.batch_norm),
        learning_rate=request.learning_rate,
        patience=request.early_stopping_patience,
        seed=request.random_seed,
        max_seconds=math.inf if request.max_seconds is None else request.max_seconds,
    )


_AFTERWARDS: Final = {"max_seconds", "interval", "importance"}  # settings that change no epoch


@dataclass(frozen=True, slots=True)
class Keeping:
    """Where the states of a training are kept, and what they belong to.

    Attributes:
        settings: Of the request as it is carried out.
        teacher: The weights that teach, of a distillation.
    """

    checkpoints: Checkpoints | None
    settings: Mapping[str, object]
    architecture: Architecture
    encoder: Encoder
    teacher: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def fingerprint(self, data: Prepared) -> str:
        """Settings, shapes, split and targets: what costs little and has the same bits on every machine."""
        described = {
            "settings": {name: value for name, value in self.settings.items() if name not in _AFTERWARDS},
            "architecture": dataclasses.asdict(self.architecture),
            "features": self.encoder.feature_names,
        }
        split = data.split
        teacher = (self.teacher[name] for name in sorted(self.teacher))
        arrays = (split.train, split.validation, split.test, data.truth, *teacher)
        return fingerprint_of(described, arrays)


def run(
    network: nn.Sequential,
    objective: Objective,
    data: Prepared,
    schedule: Schedule,
    stop: Stop,
    keeping: Keeping,
) -> Generator[EpochReport, None, Progress]:
    """Fits the network, from the latest state where there is one."""
    batch_size, width = schedule.batch_size, max(keeping.architecture.hidden_dim, 1)
    fingerprint = keeping.fingerprint(data) if keeping.checkpoints else ""
    with threads_for(batch_size, width), memory_errors(batch_size, data.features.device):
        return (
            yield from fit(
                network,
                objective,
                data.rows(),
                schedule,
                stop,
                checkpoints=keeping.checkpoints,
                fingerprint=fingerprint,
            )
        )


@dataclass(frozen=True, slots=True)
class _Made:
    """What one request trained, with the settings that it turned out to have.

    Attributes:
        members: Of several models one entry each, as the answer has them.
    """

    network: nn.Sequential
    architecture: Architecture
    weights: Mapping[str, np.ndarray]
    settings: Mapping[str, object]
    progress: Progress
    members: Sequence[Mapping[str, object]] = ()


def _make(
    request: TrainRequest,
    objective: Objective,
    data: Prepared,
    target_std: float,
    schedule: Schedule,
    stop: Stop,
    keeping: Keeping,
) -> Generator[EpochReport, None, _Made]:
    """Trains one model, or several together, of which all are kept as an ensemble or the best one."""
    architecture, device = keeping.architecture, data.features.device
    members = members_of(request)
    if not members:
        network = new_network(architecture, keeping.encoder, request.random_seed, device)
        progress = yield from run(network, objective, data, schedule, stop, keeping)
        return _Made(network, architecture, export_weights(network), keeping.settings, progress)
    networks = [new_network(architecture, keeping.encoder, member.seed, device) for member in members]
    together = Together(networks, architecture, members, objective, data.rows(), schedule)
    judge = _judge(data, target_std)
    with (
        threads_for(schedule.batch_size, max(architecture.hidden_dim, 1)),
        memory_errors(schedule.batch_size, device),
    ):
        kept = yield from train_members(
            together,
            judge,
            stop,
            keeping.checkpoints,
            keeping.fingerprint(data) if keeping.checkpoints else "",
            best_alone=request.sweep is not None,
        )
    network = load_model(kept.architecture, kept.weights).to(device)
    settings = {**keeping.settings, **kept.settings}
    return _Made(network, kept.architecture, kept.weights, settings, kept.progress, kept.report)


def _judge(data: Prepared, target_std: float) -> Judge:
    """Accuracy on the validation rows, or the root mean squared error in the target's units."""
    target_V = data.target.cpu().numpy()[data.split.validation]
    if target_V.dtype == np.int64:
        return lambda outputs_VC: float(np.mean(outputs_VC.argmax(1) == target_V))
    return lambda outputs_V1: target_std * float(np.sqrt(np.mean((outputs_V1[:, 0] - target_V) ** 2)))


def evaluate(bundle: Bundle, network: nn.Module, objective: Objective, data: Prepared) -> dict[str, object]:
    """``metrics`` of the contract, on the test rows.

    Raises:
        TrainingError: if they are not finite, for the last step or a test row went too far.
    """
    device = data.features.device
    test = torch.as_tensor(data.split.test, device=device)
    outputs = outputs_of(network, data.features, test).cpu().numpy()
    train_loss = loss_on(network, objective, data.features, torch.as_tensor(data.split.train, device=device))
    test_loss = loss_on(network, objective, data.features, test)
    if not all(loss is None or math.isfinite(loss) for loss in (train_loss, test_loss)):
        raise divergence_error()
    return report(
        as_prediction(bundle, outputs),
        data.truth[data.split.test],
        train_loss=train_loss,
        test_loss=test_loss,
    )


def settings_of(request: TrainRequest | DistillRequest, schedule: Schedule) -> dict[str, object]:
    """The request as it was carried out, without what says where data and result lie."""
    left_out = {"data", "teacher", "saving", "warnings", "device"}
    settings: dict[str, object] = {
        name: value for name, value in dataclasses.asdict(request).items() if name not in left_out
    }
    return settings | {"data": request.data.label, "batch_size": schedule.batch_size}


def time_warning(schedule: Schedule, progress: Progress) -> tuple[str, ...]:
    if not schedule.is_out_of_time(progress):
        return ()
    of = f"{progress.epoch} of {schedule.epochs} epochs"
    return (f"training ended after {of}, for max_seconds is {schedule.max_seconds:g}",)


def _check_mode_fits(mode: TrainingMode, target: Target) -> None:
    if mode in CLASSIFICATION_ONLY and target.task != "classification":
        raise TrainingModeError(
            f"training_mode {mode} needs a classification target: use mlp_dense or task=classification",
            field="training_mode",
        )


def _objective(
    request: TrainRequest,
    data: Prepared,
    classes: tuple[object, ...] | None,
    features: np.ndarray,
    stop: Stop,
) -> Objective:
    mode, split = request.training_mode, data.split
    if mode == "tree_teacher_distillation":
        target = data.truth if classes else data.target.cpu().numpy()
        n_classes = len(classes) if classes else None
        outputs = forest_outputs(features, target, split.train, n_classes, request.random_seed, stop)
        soft = torch.as_tensor(outputs).to(data.features.device)
        if classes:
            return blend(0.5, cross_entropy(data.target, len(classes)), soft_cross_entropy(soft))
        return blend(0.5, squared_error(data.target), squared_error(soft.squeeze(1)))
    if classes is None:
        return squared_error(data.target)
    if mode == "imbalance_aware":
        weights_C = balanced_weights(data.truth[split.train], len(classes)).to(data.features.device)
        return cross_entropy(data.target, len(classes), weights_C)
    smoothing = LABEL_SMOOTHING if mode == "calibrated_classifier" else 0.0
    return cross_entropy(data.target, len(classes), label_smoothing=smoothing)


def _temperature(request: TrainRequest, network: nn.Module, data: Prepared) -> float:
    return _fit_temperature(network, data) if request.training_mode == "calibrated_classifier" else 1.0


def _fit_temperature(network: nn.Module, data: Prepared) -> float:
    """T that minimises the log-loss on the validation rows (Guo et al. 2017).

    A normal prior on log T keeps a few rows that all are right from sharpening the model without end.
    """
    rows = data.split.validation
    device = data.features.device
    logits = outputs_of(network, data.features, torch.as_tensor(rows, device=device)).cpu().double()
    truth = torch.as_tensor(data.truth[rows])

    def log_loss(log_temperature: float) -> float:
        misfit = float(nn.functional.cross_entropy(logits / np.exp(log_temperature), truth))
        return misfit + log_temperature**2 / (2 * TEMPERATURE_SPREAD**2 * len(rows))

    return float(np.exp(minimize_scalar(log_loss, bounds=(-3.0, 3.0), method="bounded").x))
