"""Standardisation of many columns at once, and the statistics that it rests on."""

from dataclasses import dataclass
from typing import Final

import numpy as np

# Training values lie within sqrt(rows) standard deviations, so the limit touches none of them in any table of
# fewer than 1e12 rows; it keeps absurd inputs finite in float32.
LIMIT: Final = 1e6
_TINY: Final = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, slots=True)
class Summary:
    """What the training values of one feature amount to; ``std`` is 1 where they are all equal."""

    median: float
    mean: float
    std: float
    constant: bool


def summarise(values_N: np.ndarray, null_count: int) -> Summary:
    """Median, mean and population standard deviation of values imputed with their median.

    Args:
        values_N: Finite float64, at least one; reordered in place.
        null_count: How many more values there are that the median stands for.

    Deviations are taken from the median, a shifted two-pass algorithm (Chan, Golub, LeVeque 1983, "Algorithms
    for computing the sample variance"), so that a large offset such as that of Unix times costs no digits.
    """
    low, high = float(values_N.min()), float(values_N.max())
    if low == high:
        return Summary(low, low, 1.0, constant=True)
    exponent = _safe_exponent(max(-low, high))
    values = np.ldexp(values_N, -exponent) if exponent else values_N
    median = float(np.median(values, overwrite_input=True))
    total = len(values) + null_count
    deviations = values - median
    shift = float(deviations.sum()) / total
    deviations -= shift
    variance = (float(np.square(deviations).sum()) + null_count * shift**2) / total
    mean, std = np.ldexp([median + shift, variance**0.5], exponent)
    std = max(std, _TINY)  # the deviation of subnormal numbers may round to 0
    return Summary(float(np.ldexp(median, exponent)), float(mean), float(std), constant=False)


def _safe_exponent(magnitude: float) -> int:
    """The binary exponent to divide by where squares would leave the range of float64, else 0."""
    return 0 if 1e-100 < magnitude < 1e100 else int(np.frexp(magnitude)[1])


class Scaling:
    """Imputes and standardises the values of V features.

    Args:
        medians, means, stds: float64 (V,); ``stds`` positive.
    """

    def __init__(self, medians: np.ndarray, means: np.ndarray, stds: np.ndarray) -> None:
        self.medians, self.means, self.stds = medians, means, stds
        self._columns = (medians[:, None], means[:, None], stds[:, None])

    def apply(self, values_VN: np.ndarray, first: int, features_NV: np.ndarray) -> np.ndarray | None:
        """Writes the standardised values of features ``first`` and on.

        Args:
            values_VN: float64, overwritten; what is not finite is null.
            features_NV: float32, written.

        Returns:
            bool (V, N), true where values were null; None where none was.
        """
        medians_V1, means_V1, stds_V1 = (c[first : first + len(values_VN)] for c in self._columns)
        finite = np.isfinite(values_VN)
        nulls = None
        if not finite.all():
            nulls = ~finite
            np.copyto(values_VN, medians_V1, where=nulls)
        with np.errstate(over="ignore"):
            np.subtract(values_VN, means_V1, out=values_VN)
            np.divide(values_VN, stds_V1, out=values_VN)
        np.minimum(values_VN, LIMIT, out=values_VN)
        np.maximum(values_VN, -LIMIT, out=values_VN)
        features_NV[...] = values_VN.T
        return nulls
