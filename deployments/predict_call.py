"""A predict request and its answer as they travel between ingress and predictor."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from core.exchange import JSON

BY_REFERENCE_BYTES: Final = 100_000  # from here Ray passes an array by reference, but copies bytes


@dataclass(frozen=True, slots=True)
class PredictCall:
    """One predict request as it came.

    Attributes:
        body: As bytes where it is small, as uint8 array where it is large.
        media_type: Of the body.
        run_id, model_id: From the query; JSON bodies may carry their own instead.
        intervals: From the query, whether they are wanted; JSON bodies may say so too.
    """

    body: bytes | np.ndarray
    media_type: str = JSON
    accept: str | None = None
    run_id: str | None = None
    model_id: str | None = None
    intervals: bool = False


@dataclass(frozen=True, slots=True)
class PredictAnswer:
    body: bytes | np.ndarray
    media_type: str
    warnings: list[str]


def packed(data: bytes | memoryview) -> bytes | np.ndarray:
    """Bytes in the form in which they travel without a copy."""
    return bytes(data) if len(data) < BY_REFERENCE_BYTES else np.frombuffer(data, np.uint8)
