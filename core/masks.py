"""Dropout masks, from generators of their own: with the process's two trainings would disturb each other."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**15  # units: a block stays in the cache, and malloc keeps it instead of asking the system


class Masks(Protocol):
    def draw(self, like: Tensor) -> Tensor:
        """The next mask of that shape and type: 0 with the probability, else 1 over the kept share.

        It is read only, and holds until the next draw.
        """

    def begin(self, epoch: int) -> None:
        """Goes on with the masks of an epoch, which are the same whatever was drawn before."""


def masks_for(probability: float, device: torch.device, seed: int, stream: int) -> Masks:
    """Masks on the device; equal arguments draw equal ones, and streams are independent."""
    if device.type == "cpu":
        return BlockMasks(probability, seed, stream)
    return DeviceMasks(probability, device, seed, stream)


def seed_from(*entropy: int) -> int:
    """A seed for a generator of PyTorch; other numbers give an independent one."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


class BlockMasks:
    """Masks for the CPU, many at a time: 16 random bits of SFC64 a unit, compared with a threshold.

    ``bernoulli_`` takes as long as all products of a network of 128 hidden units. The probability is rounded
    to a multiple of 2⁻¹⁶.
    """

    def __init__(self, probability: float, seed: int, stream: int) -> None:
        self._seed, self._stream = seed, stream
        self._dropped = round(probability * 2**16)
        self._shape: torch.Size | None = None
        self._masks: tuple[Tensor, ...] = ()
        self.begin(0)

    def begin(self, epoch: int) -> None:
        self._bits = np.random.SFC64(np.random.SeedSequence((self._seed, self._stream, epoch)))
        self._next = len(self._masks)

    def draw(self, like: Tensor) -> Tensor:
        if self._shape != like.shape:
            self._allocate(like)
        if self._next == len(self._masks):
            self._fill()
        self._next += 1
        return self._masks[self._next - 1]

    def _allocate(self, like: Tensor) -> None:
        self._shape = like.shape
        block = like.new_empty(max(1, BLOCK // like.numel()), *like.shape)
        self._masks, self._parts = block.unbind(), block.view(-1).split(BLOCK)
        self._next = len(self._masks)

    def _fill(self) -> None:
        scale = 2**16 / (2**16 - self._dropped)
        for part in self._parts:
            words = self._bits.random_raw(-(-len(part) // 4)).view(np.int16)
            torch.ge(torch.from_numpy(words[: len(part)]), self._dropped - 2**15, out=part)
            part *= scale
        self._next = 0


class DeviceMasks:
    """Masks by the device's own generator."""

    def __init__(self, probability: float, device: torch.device, seed: int, stream: int) -> None:
        self._kept = 1 - probability
        self._seed, self._stream = seed, stream
        self._generator = torch.Generator(device)
        self.begin(0)

    def begin(self, epoch: int) -> None:
        self._generator.manual_seed(seed_from(self._seed, self._stream, epoch))

    def draw(self, like: Tensor) -> Tensor:
        return torch.empty_like(like).bernoulli_(self._kept, generator=self._generator).div_(self._kept)


class BesideMasks:
    """Masks (B, K, H) for K networks side by side; those that are given the same stream share its masks."""

    def __init__(self, masks: Sequence[Masks]) -> None:
        self._masks, self._streams = masks, tuple(dict.fromkeys(masks))
        self._drawn: Tensor | None = None

    def begin(self, epoch: int) -> None:
        for stream in self._streams:
            stream.begin(epoch)

    def draw(self, like: Tensor) -> Tensor:
        like_BKH = like.unflatten(1, (len(self._masks), -1))
        if len(self._streams) == 1:
            return self._streams[0].draw(like_BKH[:, 0]).unsqueeze(1).expand_as(like_BKH)
        if self._drawn is None or self._drawn.shape != like_BKH.shape:
            self._drawn = torch.empty_like(like_BKH)
        drawn = {stream: stream.draw(like_BKH[:, 0]) for stream in self._streams}
        return torch.stack([drawn[stream] for stream in self._masks], 1, out=self._drawn)
