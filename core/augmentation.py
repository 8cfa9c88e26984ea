"""More rows for a student to learn from, for which only its teacher knows an answer.

Axes: N rows of the table, M further rows, F features.
"""

from typing import Final

import numpy as np

TIMES: Final = 7  # further rows for each row that trains
MOST_ROWS: Final = 8_192  # with those of the table: larger tables say enough by themselves
SPREAD: Final = 0.3  # standard deviations of a feature; 0.15 and 0.5 kept less, by 0.0015 and 0.0003


def further_rows(features_NF: np.ndarray, train: np.ndarray, seed: int) -> np.ndarray:
    """Rows near those that train: features that vary by more than 0 and 1 are shifted by normal noise.

    Args:
        train: Positions of the rows that train.

    Returns:
        (M, F) float32; equal arguments give equal rows. There are none where the table is large.
    """
    count = max(0, min(TIMES * len(train), MOST_ROWS - len(train)))
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, 1))))
    rows_MF: np.ndarray = features_NF[generator.choice(train, count)]
    noise_MF = generator.standard_normal(rows_MF.shape, dtype=np.float32)
    rows_MF += noise_MF * _spread(features_NF[train])
    return rows_MF


def _spread(features_NF: np.ndarray) -> np.ndarray:
    """Of each feature; 0 for those of categories, which are on or off."""
    indicator_F = ((features_NF == 0) | (features_NF == 1)).all(0)
    spread_F: np.ndarray = np.where(indicator_F, 0, SPREAD * features_NF.std(0)).astype(np.float32)
    return spread_F
