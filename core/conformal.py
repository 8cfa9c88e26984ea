"""Intervals around a regression's predictions, by split conformal prediction.

Vovk et al. 2005; Lei et al. 2018, "Distribution-Free Predictive Inference for Regression", algorithm 2.
"""

import math

import numpy as np

_ROUNDING = 1e-9  # 100 · 0.55 is 55.00000000000001


def fewest_rows(level: float) -> int:
    """How many residuals a finite interval of that level needs.

    >>> fewest_rows(0.9), fewest_rows(0.95)
    (9, 19)
    """
    return max(1, math.ceil(level / (1 - level) - _ROUNDING))


def interval_radius(residuals_N: np.ndarray, level: float) -> float:
    """Half the width of intervals that hold a new row's value with at least the probability ``level``.

    It is the ⌈(N + 1) · level⌉-th smallest of the absolute residuals, exact for rows drawn like these.

    Raises:
        ValueError: for fewer than ``fewest_rows(level)`` residuals.
    """
    rank = math.ceil((len(residuals_N) + 1) * level - _ROUNDING)
    if rank > len(residuals_N):
        raise ValueError(f"level {level} needs {fewest_rows(level)} residuals, got {len(residuals_N)}")
    return float(np.partition(np.abs(residuals_N), rank - 1)[rank - 1])
