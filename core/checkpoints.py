"""The state of an unfinished training, as one safetensors file. Free of torch.

Batch order and dropout of an epoch follow from the seed and the epoch's number alone, so the file holds no
random state. Like a bundle it is tensors plus one JSON header; nothing in it is executable.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Final

import numpy as np
import safetensors
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from core.bundles import checksum, dump_header, header_length
from core.errors import BundleError, CheckpointError

FORMAT_VERSION: Final = 1

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training has come.

    Attributes:
        epoch: The last one that ended; 0 before the first.
        seconds: Spent on training so far, over all attempts.
        best_loss: The lowest validation loss; None where none was watched yet.
        waited: Epochs since then.
    """

    epoch: int = 0
    seconds: float = 0.0
    best_loss: float | None = None
    waited: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that training needs to go on as if it had never stopped.

    Attributes:
        weights: And running statistics, by the names of ``torch.nn.Module.state_dict``.
        moments: What Adam remembers, by name.
        best: The weights of the best epoch; empty where none was watched yet.
    """

    progress: Progress
    weights: Arrays
    moments: Arrays
    best: Arrays = field(default_factory=dict)

    def to_bytes(self, fingerprint: str) -> bytes:
        """The file, which only a training of the same fingerprint takes back."""
        groups = {"weights": self.weights, "moments": self.moments, "best": self.best}
        tensors = {f"{group}.{name}": array for group, held in groups.items() for name, array in held.items()}
        header: dict[str, object] = {
            "format_version": FORMAT_VERSION,
            "fingerprint": fingerprint,
            "progress": asdict(self.progress),
        }
        header["sha256"] = checksum(header, tensors)
        return save_tensors(tensors, {_KEY: dump_header(header)})

    @classmethod
    def from_bytes(cls, data: bytes, fingerprint: str) -> "Checkpoint":
        """Reads a file.

        Raises:
            CheckpointError: if it is damaged, of another version, or of a training with another fingerprint.
        """
        header, tensors = _read(data)
        if header["format_version"] != FORMAT_VERSION or header["fingerprint"] != fingerprint:
            raise CheckpointError(
                "The checkpoint is of another model, table or settings: resume what it is of, or start anew."
            )
        groups: dict[str, dict[str, np.ndarray]] = {"weights": {}, "moments": {}, "best": {}}
        for name, array in tensors.items():
            group, _, of = name.partition(".")
            groups[group][of] = array
        return cls(Progress(**header["progress"]), **groups)  # type: ignore[arg-type]


def fingerprint_of(description: Mapping[str, object], arrays: Iterable[np.ndarray]) -> str:
    """A digest of what a state belongs to: JSON values, and numbers that are the same on every machine."""
    digest = hashlib.sha256(dump_header(description).encode())
    for array in arrays:
        digest.update(f"\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


_KEY: Final = "stillhouse_checkpoint"
_DAMAGED: Final = "The checkpoint is damaged: resume from an earlier one or start anew."


def _read(data: bytes) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    try:
        metadata = json.loads(data[8 : 8 + header_length(data)])["__metadata__"]
        header, tensors = json.loads(metadata[_KEY]), load_tensors(data)
        intact = header.pop("sha256") == checksum(header, tensors)
    except (BundleError, safetensors.SafetensorError, ValueError, LookupError, TypeError, AttributeError,
            RecursionError) as error:  # fmt: skip
        raise CheckpointError(_DAMAGED) from error
    if not intact:
        raise CheckpointError(_DAMAGED)
    return header, tensors
