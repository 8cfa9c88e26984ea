"""The training loop: a generator of epoch reports that its caller may stop between any two batches.

Axes: N rows of the table, F features, C outputs, B rows of a batch.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from core.checkpoints import Checkpoint, Progress
from core.ensembles import evaluation_rows
from core.errors import CheckpointError, ParameterError, TrainingDivergedError, TrainingStoppedError
from core.estimate import EVALUATION_ROWS
from core.losses import Objective
from core.masks import seed_from
from core.models import begin_epoch, seed_dropout
from core.steps import Step, StepMaker, choose_step

THREADED_PRODUCT = 2**22  # multiply-adds of one layer and batch from which a second thread pays

Stop = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to learn.

    Attributes:
        patience: Epochs without improvement of the validation loss before stopping; 0 runs every epoch and
            keeps the last weights.
        seed: Of the batch order and of dropout.
        max_seconds: After which no further epoch begins, those before a checkpoint included.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    patience: int
    seed: int
    max_seconds: float = math.inf

    def learning_rate_in(self, epoch: int) -> float:
        """Of an epoch, counted from 1."""
        remaining = (1 + math.cos(math.pi * (epoch - 1) / self.epochs)) / 2
        return self.learning_rate * (0.01 + 0.99 * remaining)

    def is_complete(self, progress: Progress) -> bool:
        """Whether every epoch ran, or as many as the patience allows."""
        return progress.epoch >= self.epochs or 0 < self.patience <= progress.waited

    def is_out_of_time(self, progress: Progress) -> bool:
        """Whether the time was over before that."""
        return progress.seconds >= self.max_seconds and not self.is_complete(progress)


@dataclass(frozen=True, slots=True)
class EpochReport:
    """One finished epoch.

    Attributes:
        train_loss: Mean over the batches, as they were seen: with dropout and before each update.
        validation_loss: On the validation rows after the epoch; None where there are none.
    """

    epoch: int
    epochs: int
    train_loss: float
    validation_loss: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Rows:
    """Features on the device, once, and which rows learn and which watch (int64 positions)."""

    features_NF: Tensor
    train: Tensor
    validation: Tensor


class Checkpoints(Protocol):
    """Where a training keeps its state, so that another may go on from it.

    A failure to keep is the implementation's to bear: what it raises ends the training.
    """

    def latest(self) -> bytes | None:
        """The state to go on from; None starts anew."""

    def due(self, epoch: int) -> bool:
        """Whether to keep the state after this epoch, whose report was taken."""

    def keep(self, epoch: int, state: bytes) -> None: ...


def fit(
    network: nn.Sequential,
    objective: Objective,
    rows: Rows,
    schedule: Schedule,
    stop: Stop,
    make_step: StepMaker = choose_step,
    checkpoints: Checkpoints | None = None,
    fingerprint: str = "",
    clock: Callable[[], float] = time.perf_counter,
) -> Generator[EpochReport, None, Progress]:
    """Minimises ``objective`` with Adam; leaves the best weights in ``network``, in evaluation mode.

    The learning rate falls along half a cosine to a hundredth (Loshchilov and Hutter 2017). Same network,
    rows and schedule on the same device give the same bits, also where a training goes on from a checkpoint:
    batch order and dropout of an epoch follow from the seed and the epoch alone.

    Args:
        fingerprint: Of what the checkpoints belong to.

    Yields:
        One report per epoch that ran here.

    Returns:
        How far it came, epochs before a checkpoint included.

    Raises:
        CheckpointError: if the latest state is damaged or not of this training.
        TrainingStoppedError: within one batch after ``stop()`` turned true.
        TrainingDivergedError: if the loss is no longer finite.
    """
    device = rows.features_NF.device
    seed_dropout(network, schedule.seed, device)
    step = make_step(network, objective, rows.features_NF)
    state = _State(network, step)
    kept = checkpoints.latest() if checkpoints else None
    if kept is not None:
        state.load(kept, fingerprint)
    earlier_s, generator = state.progress.seconds, torch.Generator(device)
    began = clock()
    while not (schedule.is_complete(state.progress) or schedule.is_out_of_time(state.progress)):
        epoch, started = state.progress.epoch + 1, clock()
        begin_epoch(network, epoch)
        generator.manual_seed(seed_from(schedule.seed, epoch))
        order = rows.train[torch.randperm(len(rows.train), device=device, generator=generator)]
        train_loss = _run_epoch(step, order, schedule.batch_size, schedule.learning_rate_in(epoch), stop)
        validation_loss = loss_on(network, objective, rows.features_NF, rows.validation)
        ended = clock()
        state.end_epoch(validation_loss if schedule.patience else None, earlier_s + ended - began)
        yield EpochReport(epoch, schedule.epochs, train_loss, validation_loss, ended - started)
        if checkpoints and checkpoints.due(epoch):
            checkpoints.keep(epoch, state.to_bytes(fingerprint))
    state.load_best()
    network.eval()
    return state.progress


def loss_on(network: nn.Module, objective: Objective, features_NF: Tensor, rows: Tensor) -> float | None:
    """The objective over some rows in evaluation mode; None for no rows."""
    if not len(rows):
        return None
    return float(objective(outputs_of(network, features_NF, rows), rows))


@torch.inference_mode()
def outputs_of(network: nn.Module, features_NF: Tensor, rows: Tensor | None = None) -> Tensor:
    """Outputs (rows, C) in evaluation mode, computed in blocks so that activations stay small.

    They are written into one tensor: small results kept between large temporary ones would leave holes, and
    the process grew by twice the size of the features.
    """
    network.eval()
    chosen = features_NF if rows is None else rows
    outputs_NC: Tensor | None = None
    block_rows = evaluation_rows(network, EVALUATION_ROWS)
    for start in range(0, max(len(chosen), 1), block_rows):
        block = chosen[start : start + block_rows]
        part_BC = network(block if rows is None else features_NF[block])
        if outputs_NC is None:
            outputs_NC = part_BC.new_empty(len(chosen), part_BC.shape[1])
        outputs_NC[start : start + len(part_BC)] = part_BC
    assert outputs_NC is not None  # noqa: S101  # there is one block at least
    return outputs_NC


def choose_device(wanted: str | None) -> torch.device:
    """The device asked for, or the best there is.

    Raises:
        ParameterError: if this machine lacks it.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted is None:
        return torch.device("cuda:0" if available else "cpu")
    kind, _, index = wanted.partition(":")
    if kind == "cuda" and int(index or 0) >= available:  # torch.device("cuda:256") is cuda:0
        raise ParameterError(
            f"device {wanted} is absent where training ran ({available} CUDA devices): use cpu",
            field="device",
        )
    return torch.device("cuda:0" if wanted == "cuda" else wanted)


def choose_batch_size(train_rows: int, *, batch_norm: bool) -> int:
    """A power of two near the root of the row count, 16 … 1,024; twice that, from 64, with normalisation.

    Over 15 seeds of breast_cancer, 64 rows gave 97.7 % and 32 gave 97.2: small batches have noisy statistics.
    Without them (diabetes) 16 rows were better than 32 and 64.
    """
    near = math.sqrt(max(train_rows, 1)) * (2 if batch_norm else 1)
    return int(min(1024, max(64 if batch_norm else 16, 2 ** round(math.log2(near)))))


@contextmanager
def threads_for(batch_size: int, width: int) -> Iterator[None]:
    """Keeps small products on one thread: with two they take 3.6 to 7.6 times as long (OpenMP spins)."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if batch_size * width * width >= THREADED_PRODUCT else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_epoch(step: Step, order: Tensor, batch_size: int, learning_rate: float, stop: Stop) -> float:
    total = torch.zeros((), device=order.device)
    for rows_B in split_batches(order, batch_size):
        if stop():
            raise TrainingStoppedError("Training was stopped because nobody waits for its result any more.")
        total.add_(step(rows_B, learning_rate), alpha=len(rows_B))
    mean = float(total) / len(order)
    if not math.isfinite(mean):
        raise divergence_error()
    return mean


def divergence_error() -> TrainingDivergedError:
    return TrainingDivergedError(
        "The loss is no longer finite: lower learning_rate, or check the columns for extreme values."
    )


def split_batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """Consecutive batches; a last one of a single row joins its neighbour, for it has no batch statistics."""
    batches = list(order.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


class _State:
    """What was learned and how far that came: the part of a training that a checkpoint holds."""

    def __init__(self, network: nn.Module, step: Step) -> None:
        self._network, self._step = network, step
        self._best: dict[str, Tensor] = {}
        self.progress = Progress()

    def end_epoch(self, watched: float | None, seconds: float) -> None:
        """Counts the epoch and remembers its weights if no validation loss was lower."""
        before = self.progress
        if watched is None:
            self.progress = replace(before, epoch=before.epoch + 1, seconds=seconds)
            return
        better = watched < (math.inf if before.best_loss is None else before.best_loss)
        if better:
            self._best = {name: value.clone() for name, value in self._network.state_dict().items()}
        self.progress = Progress(
            epoch=before.epoch + 1,
            seconds=seconds,
            best_loss=watched if better else before.best_loss,
            waited=0 if better else before.waited + 1,
        )

    def load_best(self) -> None:
        if self._best:
            self._network.load_state_dict(self._best)

    def to_bytes(self, fingerprint: str) -> bytes:
        moments: Mapping[str, Tensor] = self._step.moments()  # type: ignore[assignment]
        weights = self._network.state_dict()
        return Checkpoint(self.progress, _arrays(weights), _arrays(moments), _arrays(self._best)).to_bytes(
            fingerprint
        )

    def load(self, file: bytes, fingerprint: str) -> None:
        """Raises CheckpointError."""
        kept = Checkpoint.from_bytes(file, fingerprint)
        weights, moments, best = map(_tensors, (kept.weights, kept.moments, kept.best))
        try:
            self._network.load_state_dict(weights)
            self._step.restore(moments)  # type: ignore[arg-type]
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError("The checkpoint does not fit the model: start anew.") from error
        self.progress, self._best = kept.progress, best


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.tensor(array) for name, array in arrays.items()}
