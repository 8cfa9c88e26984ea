"""Networks of one shape that train together, in steps that cost each the less the more they are.

Each has weights and a learning rate of its own, and stops when it has waited in vain; the others go on
without it. All learn from the same batches, with the same dropout masks of units that have nothing in common:
each is what ``core.training.fit`` makes of it with the same schedule, up to rounding. So the first layer is
one product for all, and members of a sweep differ in nothing but what is swept.
Axes: N rows of the table, B rows of a batch, F features, K members, C outputs, P weights of one layer.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from core.architecture import Architecture
from core.checkpoints import Checkpoint, Progress
from core.ensembles import side_by_side, stack
from core.errors import CheckpointError, TrainingStoppedError
from core.losses import Objective
from core.masks import BesideMasks, Masks, masks_for, seed_from
from core.models import Dropout, begin_epoch
from core.stacked_step import Moments, StackedStep
from core.training import (
    Checkpoints,
    EpochReport,
    Rows,
    Schedule,
    Stop,
    divergence_error,
    outputs_of,
    split_batches,
)

UNITS_TOGETHER = 2**17  # of one layer and batch, B·K·H: with more, what a step touches leaves the CPU's cache

_RUNNING, _ENDED, _DIVERGED = range(3)


@dataclass(frozen=True, slots=True)
class Member:
    """What one network of several does not share with the others.

    Attributes:
        seed: Of its first weights.
    """

    learning_rate: float
    dropout: float
    seed: int


@dataclass(frozen=True, slots=True)
class Fitted:
    """A member whose training has ended.

    Attributes:
        weights: By the names of ``state_dict``, the best on the validation rows; None if its loss was no
            longer finite.
        validation_loss: Of these weights; None where there are no validation rows.
    """

    member: Member
    weights: Mapping[str, Tensor] | None
    epochs_run: int
    validation_loss: float | None


@dataclass(frozen=True, slots=True)
class Together:
    """What trains together.

    Attributes:
        networks: One for each member, of the ``architecture`` but for its dropout; they are left as they are.
        schedule: Of all; its seed is that of batch order and dropout, its learning rate is not used.
    """

    networks: Sequence[nn.Sequential]
    architecture: Architecture
    members: Sequence[Member]
    objective: Objective
    rows: Rows
    schedule: Schedule

    def part(self, places: slice) -> "Together":
        return dataclasses.replace(self, networks=self.networks[places], members=self.members[places])

    def parts(self) -> "list[Together]":
        """Those that have a step in common: as many as the cache allows, on a GPU all."""
        units = self.schedule.batch_size * max(self.architecture.hidden_dim, 1)
        cached = self.rows.features_NF.device.type == "cpu"
        most = max(1, UNITS_TOGETHER // units) if cached else len(self.members)
        return [self.part(places) for places in parts_of(len(self.members), most)]


def fit_together(
    together: Together, stop: Stop, checkpoints: Checkpoints | None = None, fingerprint: str = ""
) -> Generator[EpochReport, None, tuple[list[Fitted], Progress]]:
    """Minimises the objective with Adam for each member, as ``core.training.fit`` does for one.

    Args:
        fingerprint: Of what the checkpoints belong to.

    Yields:
        One report per epoch that ran here, whose losses are means over the members that it trained.

    Returns:
        The members in their order, and how far they came together.

    Raises:
        CheckpointError: if the latest state is damaged or not of this training.
        TrainingStoppedError: within one batch after ``stop()`` turned true.
        TrainingDivergedError: if no member's loss stayed finite.
    """
    stacks = [Stack(part) for part in together.parts()]
    progress = Progress()
    kept = checkpoints.latest() if checkpoints else None
    if kept is not None:
        progress = restore(stacks, Checkpoint.from_bytes(kept, fingerprint))
    earlier_s, began, epochs = progress.seconds, time.perf_counter(), together.schedule.epochs
    limit_s = together.schedule.max_seconds
    while progress.epoch < epochs and progress.seconds < limit_s and any(stack.running for stack in stacks):
        epoch, started = progress.epoch + 1, time.perf_counter()
        train_loss, validation_loss = _run_epoch(together, stacks, epoch, stop)
        if train_loss is None:
            break
        ended = time.perf_counter()
        progress = Progress(epoch, earlier_s + ended - began)
        yield EpochReport(epoch, epochs, train_loss, validation_loss, ended - started)
        if checkpoints and checkpoints.due(epoch):
            checkpoints.keep(epoch, state_of(stacks, progress).to_bytes(fingerprint))
    fitted = [one for stack in stacks for one in stack.end()]
    if all(one.weights is None for one in fitted):
        raise divergence_error()
    return fitted, progress


def _run_epoch(
    together: Together, stacks: Sequence["Stack"], epoch: int, stop: Stop
) -> tuple[float | None, float | None]:
    """The mean losses of those that it trained; None where none is finite."""
    rows, schedule = together.rows, together.schedule
    generator = torch.Generator(rows.features_NF.device).manual_seed(seed_from(schedule.seed, epoch))
    order = torch.randperm(len(rows.train), device=generator.device, generator=generator)
    batches = split_batches(rows.train[order], schedule.batch_size)
    losses = [pair for stack in stacks for pair in stack.run_epoch(epoch, batches, stop)]
    train_loss, validation_loss = (_mean(part) for part in zip(*losses, strict=True))
    return train_loss, validation_loss


@dataclass(slots=True)
class Run:
    """A member that has not ended."""

    place: int
    member: Member
    epochs: int = 0
    waited: int = 0
    best_loss: float = math.inf
    last_loss: float | None = None

    def saw(self, validation_loss: float | None) -> bool:
        """Whether that was the lowest so far."""
        self.epochs, self.last_loss = self.epochs + 1, validation_loss
        if validation_loss is None:
            return False
        improved = validation_loss < self.best_loss
        self.best_loss = validation_loss if improved else self.best_loss
        self.waited = 0 if improved else self.waited + 1
        return improved


class Stack:
    """Networks that learn in common steps, until one after the other has ended."""

    def __init__(self, together: Together) -> None:
        self._of, self._ended = together, dict[int, Fitted]()
        self.device = together.rows.features_NF.device
        self.running = [Run(place, member) for place, member in enumerate(together.members)]
        self._masks = _masks_of(together)
        self._moments = Moments([], [], torch.zeros(()))
        states = stack(together.networks)
        self._shapes = {name: tensor.shape[1:] for name, tensor in states.items()}
        self._best = {name: tensor.clone() for name, tensor in states.items()}
        self._place(states)

    def run_epoch(
        self, epoch: int, batches: Sequence[Tensor], stop: Stop
    ) -> list[tuple[float, float | None]]:
        """Trains the running members; returns their losses in training and in validation."""
        if not self.running:
            return []
        train_losses, validation_losses = self._train(epoch, batches, stop), self._validate()
        improved = [run.saw(loss) for run, loss in zip(self.running, validation_losses, strict=True)]
        if self._of.schedule.patience:
            self._remember([k for k, better in enumerate(improved) if better])
        self._end_some([math.isfinite(loss) for loss in train_losses])
        return list(zip(train_losses, validation_losses, strict=True))

    def end(self) -> list[Fitted]:
        """All members as they are now, in their order."""
        self._ended |= {run.place: self._result(k) for k, run in enumerate(self.running)}
        self.running = []
        return [self._ended[place] for place in sorted(self._ended)]

    def state(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds: its groups, of tensors with an axis of all members."""
        moments = {
            **{f"mean.{index}": vector for index, vector in enumerate(self._moments.means)},
            **{f"square.{index}": vector for index, vector in enumerate(self._moments.squares)},
            "steps": self._moments.steps.expand(len(self.running)),
        }
        groups = {"weights": self._states(), "best": self._best, "moments": moments}
        state = {
            group: {name: self._whole(of) for name, of in held.items()} for group, held in groups.items()
        }
        for place, fitted in self._ended.items():
            for name, tensor in (fitted.weights or {}).items():
                state["weights"][name][place] = tensor
        state["moments"]["members"] = self._members()
        return state

    def restore(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Goes on as the stack did whose state this is; raises KeyError, RuntimeError or IndexError."""
        weights, moments = state["weights"], state["moments"]
        self.running, self._ended = [], {}
        for place, member in enumerate(self._of.members):
            epochs, waited, best, last, status = moments["members"][place].tolist()
            loss = None if math.isnan(last) else last
            if status == _RUNNING:
                self.running.append(Run(place, member, int(epochs), int(waited), best, loss))
            else:
                learned = {name: of[place].clone() for name, of in weights.items()}
                self._ended[place] = Fitted(member, learned if status == _ENDED else None, int(epochs), loss)
        places = [run.place for run in self.running]
        self._best = {name: of[places] for name, of in state["best"].items()}
        means, squares = (
            [moments[f"{kind}.{index}"][places] for index in range(len(self._moments.means))]
            for kind in ("mean", "square")
        )
        if places:
            self._moments = Moments(means, squares, moments["steps"][places[0]].clone())
            self._place({name: of[places] for name, of in weights.items()}, self._moments)

    def _whole(self, of_running: Tensor) -> Tensor:
        """With places for those that have ended, which hold zeros."""
        whole = of_running.new_zeros(len(self._of.members), *of_running.shape[1:])
        whole[[run.place for run in self.running]] = of_running
        return whole

    def _members(self) -> Tensor:
        """A row a member, float64: epochs, epochs waited, lowest and last loss, status; NaN is no loss."""
        rows_K5 = torch.full((len(self._of.members), 5), math.nan, dtype=torch.float64)
        for run in self.running:
            last = math.nan if run.last_loss is None else run.last_loss
            rows_K5[run.place] = rows_K5.new_tensor([run.epochs, run.waited, run.best_loss, last, _RUNNING])
        for place, one in self._ended.items():
            last = math.nan if one.validation_loss is None else one.validation_loss
            status = _DIVERGED if one.weights is None else _ENDED
            rows_K5[place] = rows_K5.new_tensor([one.epochs_run, 0, math.inf, last, status])
        return rows_K5

    def _train(self, epoch: int, batches: Sequence[Tensor], stop: Stop) -> list[float]:
        begin_epoch(self._network, epoch)
        share = dataclasses.replace(self._of.schedule, learning_rate=1.0).learning_rate_in(epoch)
        totals_K = torch.zeros(len(self.running), device=self._of.rows.features_NF.device)
        for rows_B in batches:
            if stop():
                raise TrainingStoppedError(
                    "Training was stopped because nobody waits for its result any more."
                )
            totals_K.add_(self._step(rows_B, share), alpha=len(rows_B))
        return (totals_K / sum(map(len, batches))).tolist()

    @torch.inference_mode()
    def _validate(self) -> Sequence[float | None]:
        rows_V = self._of.rows.validation
        if not len(rows_V):
            return [None] * len(self.running)
        outputs = outputs_of(self._network, self._of.rows.features_NF, rows_V)
        losses_K, _ = self._of.objective.gradient(outputs.unflatten(1, (len(self.running), -1)), rows_V)
        return losses_K.tolist()

    def _end_some(self, finite: Sequence[bool]) -> None:
        """Ends members whose loss is not finite, and those that have waited long enough."""
        patience, staying = self._of.schedule.patience, []
        for k, run in enumerate(self.running):
            if not finite[k]:
                self._ended[run.place] = Fitted(run.member, None, run.epochs, None)
            elif 0 < patience <= run.waited:
                self._ended[run.place] = self._result(k)
            else:
                staying.append(k)
        self._keep(staying)

    def _place(self, states: Mapping[str, Tensor], moments: Moments | None = None) -> None:
        """Makes the running members one network with these weights."""
        members = [run.member for run in self.running]
        self._network = side_by_side(self._of.architecture, len(members), states)
        for dropout, masks in zip(_dropouts(self._network), self._masks, strict=True):
            dropout.masks = BesideMasks([masks[member.dropout] for member in members])
            dropout.probability = max(member.dropout for member in members)
        rates = [member.learning_rate for member in members]
        features_NF = self._of.rows.features_NF
        self._step = StackedStep(self._network, rates, self._of.objective, features_NF, moments)
        self._moments = self._step.moments

    def _keep(self, staying: list[int]) -> None:
        """Goes on with the members at these positions alone."""
        if len(staying) == len(self.running):
            return
        states = {name: tensor[staying] for name, tensor in self._states().items()}
        self._best = {name: tensor[staying] for name, tensor in self._best.items()}
        self._moments = self._moments.of(staying)
        self.running = [self.running[k] for k in staying]
        if staying:
            self._place(states, self._moments)

    def _remember(self, improved: list[int]) -> None:
        if improved:
            for name, tensor in self._states().items():
                self._best[name][improved] = tensor[improved]

    def _result(self, k: int) -> Fitted:
        run = self.running[k]
        remembered = self._of.schedule.patience > 0 and math.isfinite(run.best_loss)
        states = self._best if remembered else self._states()
        loss = run.best_loss if remembered else run.last_loss
        weights = {name: tensor[k].clone() for name, tensor in states.items()}
        return Fitted(run.member, weights, run.epochs, loss)

    def _states(self) -> dict[str, Tensor]:
        """Weights and statistics with an axis of the running members, as they are now."""
        members = len(self.running)
        if not members:
            return self._best
        return {
            name: tensor.expand(members) if tensor.dim() == 0 else tensor.view(members, *self._shapes[name])
            for name, tensor in self._network.state_dict().items()
        }


def state_of(stacks: Sequence[Stack], progress: Progress) -> Checkpoint:
    """What there is of a training, with the members of all stacks behind one another."""
    states = [stack.state() for stack in stacks]
    groups = {
        group: {name: torch.cat([state[group][name] for state in states]).cpu().numpy() for name in held}
        for group, held in states[0].items()
    }
    return Checkpoint(progress, **groups)


def restore(stacks: Sequence[Stack], kept: Checkpoint) -> Progress:
    """Puts the stacks where those were that ``state_of`` was taken of, however they are divided.

    Raises:
        CheckpointError: if they are of other members.
    """
    groups, start = {"weights": kept.weights, "best": kept.best, "moments": kept.moments}, 0
    try:
        for stack in stacks:
            end = start + len(stack.running)
            stack.restore({group: _tensors(held, start, end, stack.device) for group, held in groups.items()})
            start = end
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise CheckpointError("The checkpoint does not fit the models: start anew.") from error
    return kept.progress


def _tensors(held: Mapping[str, np.ndarray], start: int, end: int, device: torch.device) -> dict[str, Tensor]:
    """Those of some members."""
    return {name: torch.tensor(array[start:end], device=device) for name, array in held.items()}


def parts_of(count: int, most: int) -> list[slice]:
    """The fewest slices that have ``most`` each at most, as equal as can be.

    >>> [part.stop - part.start for part in parts_of(10, 4)]
    [4, 3, 3]
    """
    parts = -(-count // most)
    edges = [-(-count * part // parts) for part in range(parts + 1)]
    return [slice(*edge) for edge in itertools.pairwise(edges)]


def _mean(losses: Sequence[float | None]) -> float | None:
    finite = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    return sum(finite) / len(finite) if finite else None


def _masks_of(together: Together) -> list[dict[float, Masks]]:
    """For each dropout of a network a stream by probability: those of ``core.models.seed_dropout``."""
    seed, device = together.schedule.seed, together.rows.features_NF.device
    probabilities = {member.dropout for member in together.members}
    return [
        {probability: masks_for(probability, device, seed, stream) for probability in probabilities}
        for stream in range(len(_dropouts(together.networks[0])))
    ]


def _dropouts(network: nn.Sequential) -> list[Dropout]:
    return [module for module in network.modules() if isinstance(module, Dropout)]
