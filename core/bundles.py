"""Bundles: a trained model with everything needed to use it, as one safetensors file. Free of torch.

The file is tensors plus one JSON header under the metadata key ``stillhouse``. Nothing in it is executable.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final

import numpy as np
import safetensors
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from core.architecture import Architecture
from core.encoding import Encoder
from core.errors import BundleError
from core.target import Task

FORMAT_VERSION: Final = 1
ENSEMBLE_VERSION: Final = 2  # of a bundle with several members, which older services refuse by its number
Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Interval:
    """Around each prediction of a regression.

    Attributes:
        level: Share of new values that it holds.
        radius: Half its width, in the target's units.
    """

    level: float
    radius: float


@dataclass(frozen=True, slots=True)
class Bundle:
    """One trained model.

    Attributes:
        classes: Sorted labels in the order of the logits; None in regression.
        target_mean, target_std: Undo the standardisation of a regression target; 0 and 1 in classification.
        temperature: Divides the logits before the softmax (Guo et al. 2017); 1 where none was fitted.
        interval: None where none was asked for, as in every file of earlier days.
        schema: Columns with dtype, role and null count; target; classes (contract, section 7).
        settings: The request's fields as they were used, for the record.
        weights: By the names of ``torch.nn.Module.state_dict``; of an ensemble with an axis of members in
            front.
    """

    task: Task
    training_mode: str
    target_column: str
    classes: tuple[Value, ...] | None
    architecture: Architecture
    encoder: Encoder
    weights: Mapping[str, np.ndarray]
    target_mean: float = 0.0
    target_std: float = 1.0
    temperature: float = 1.0
    interval: Interval | None = None
    schema: Mapping[str, object] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    metrics: Mapping[str, object] = field(default_factory=dict)
    lineage: Mapping[str, object] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The file: the same bundle always gives the same bytes."""
        encoder_header, encoder_arrays = self.encoder.to_state()
        header = {
            "format_version": FORMAT_VERSION if self.architecture.members == 1 else ENSEMBLE_VERSION,
            "task": self.task,
            "training_mode": self.training_mode,
            "target_column": self.target_column,
            "classes": self.classes,
            "architecture": _shape_of(self.architecture),
            "encoder": encoder_header,
            "target_mean": self.target_mean,
            "target_std": self.target_std,
            "temperature": self.temperature,
            "interval": None if self.interval is None else dataclasses.asdict(self.interval),
            "schema": self.schema,
            "settings": self.settings,
            "metrics": self.metrics,
            "lineage": self.lineage,
            "library_versions": {name: version(name) for name in ("torch", "numpy", "pyarrow")},
        }
        tensors = {f"weights.{name}": array for name, array in self.weights.items()}
        tensors |= {f"encoder.{name}": array for name, array in encoder_arrays.items()}
        header["sha256"] = checksum(header, tensors)
        # One key only: safetensors writes several in an order that changes from call to call.
        return save_tensors(tensors, {"stillhouse": dump_header(header)})

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> "Bundle":
        """Reads a bundle file.

        Raises:
            BundleError: if the file is damaged, of an unknown version, or not a bundle at all.
        """
        header = read_header(bytes(data[: 8 + header_length(data)]))
        try:
            tensors = load_tensors(bytes(data))
            intact = header.pop("sha256", None) == checksum(header, tensors)
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise BundleError(_DAMAGED) from error
        if not intact:
            raise BundleError(
                "The model file does not match its checksum: it was damaged; restore or retrain."
            )
        try:
            return _assemble(header, tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(_DAMAGED) from error


def read_header(start: bytes) -> dict[str, object]:
    """The JSON header from the first ``8 + header_length(start)`` bytes of a file.

    Raises:
        BundleError: as ``Bundle.from_bytes``; the tensors are not looked at.
    """
    try:
        metadata = json.loads(start[8 : 8 + header_length(start)])["__metadata__"]
        header = json.loads(metadata["stillhouse"])
        found, lacks = header["format_version"], _HEADER_FIELDS - header.keys()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(_DAMAGED) from error
    if found not in (FORMAT_VERSION, ENSEMBLE_VERSION):
        raise BundleError(
            f"The bundle has format version {found!r:.20}; this service reads up to {ENSEMBLE_VERSION}.",
            format_version=str(found)[:20],
        )
    if lacks or not isinstance(header["metrics"], dict):
        raise BundleError(_DAMAGED)
    return dict(header)


def header_length(start: bytes | memoryview) -> int:
    """Bytes of the safetensors header that follow the first 8; raises BundleError if it cannot be one."""
    length = int.from_bytes(bytes(start[:8]), "little")
    if len(start) < 8 or not 2 <= length <= _LARGEST_HEADER:
        raise BundleError(_DAMAGED)
    return length


_DAMAGED: Final = (
    "The file is not a whole Stillhouse bundle (safetensors): restore it or train the model again."
)
_HEADER_FIELDS: Final = {f.name for f in dataclasses.fields(Bundle)} - {"weights", "interval"}
_LARGEST_HEADER: Final = 100_000_000  # the limit of safetensors itself


def _shape_of(architecture: Architecture) -> dict[str, object]:
    """The fields of an architecture; that there is one member goes without saying, as in older bundles."""
    shape = dataclasses.asdict(architecture)
    return shape if architecture.members != 1 else {k: v for k, v in shape.items() if k != "members"}


def _architecture(shape: Mapping[str, object]) -> Architecture:
    architecture = Architecture(**shape)  # type: ignore[arg-type]
    if not isinstance(architecture.members, int) or architecture.members < 1:
        raise ValueError(f"members must be a number of them, got {architecture.members}")
    return architecture


def dump_header(header: Mapping[str, object]) -> str:
    """A header as JSON, the same text for the same values."""
    return json.dumps(header, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def checksum(header: Mapping[str, object], tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the header and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(dump_header(header).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"\0{name}\0{array.dtype.str}\0{np.shape(tensors[name])}\0".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _assemble(header: Mapping[str, object], tensors: Mapping[str, np.ndarray]) -> Bundle:
    def under(prefix: str) -> dict[str, np.ndarray]:
        return {
            name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)
        }

    direct = {f.name: header[f.name] for f in dataclasses.fields(Bundle) if f.name in header}
    classes, interval = header["classes"], header.get("interval")
    return Bundle(
        **direct  # type: ignore[arg-type]
        | {
            "interval": None if interval is None else Interval(**interval),  # type: ignore[arg-type]
            "classes": None if classes is None else tuple(classes),  # type: ignore[arg-type]
            "architecture": _architecture(header["architecture"]),  # type: ignore[arg-type]
            "encoder": Encoder.from_state(header["encoder"], under("encoder.")),  # type: ignore[arg-type]
            "weights": under("weights."),
        }
    )
