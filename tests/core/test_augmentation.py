import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from core.augmentation import MOST_ROWS, SPREAD, TIMES, further_rows


def table(rows=400, seed=0):
    """Two numbers of different scale, a category, and a feature that never varies."""
    generator = np.random.default_rng(seed)
    columns = [
        generator.normal(0, 1, rows),
        generator.normal(5, 20, rows),
        generator.integers(0, 2, rows),
        np.full(rows, 3.0),
    ]
    return np.stack(columns, 1).astype(np.float32)


def test_numbers_are_shifted_by_their_spread_and_categories_stay():
    features, train = table(), np.arange(300)
    rows = further_rows(features, train, 7)
    assert (rows.shape, rows.dtype) == ((TIMES * 300, 4), np.float32)
    assert set(np.unique(rows[:, 2])) == {0, 1}
    assert set(np.unique(rows[:, 3])) == {3}
    before = features[train].std(0)[:2]
    # noise adds to the variance; of 2,100 rows drawn from 300 the deviation is known to some 5 %
    np.testing.assert_allclose(rows.std(0)[:2], before * np.sqrt(1 + SPREAD**2), rtol=0.1)


def test_rows_come_from_those_that_train_alone():
    features = table()
    features[300:] = 1e6
    assert further_rows(features, np.arange(300), 7).max() < 1e3


def test_the_same_seed_gives_the_same_rows_and_the_table_stays():
    features, train = table(), np.arange(300)
    before = features.copy()
    first = further_rows(features, train, 7)
    assert np.array_equal(first, further_rows(features, train, 7))
    assert not np.array_equal(first, further_rows(features, train, 8))
    assert np.array_equal(features, before)


@given(st.integers(2, MOST_ROWS + 100))
def test_there_are_never_more_rows_than_the_most_and_none_for_large_tables(rows):
    found = len(further_rows(np.zeros((rows, 1), np.float32), np.arange(rows), 0))
    assert found == max(0, min(TIMES * rows, MOST_ROWS - rows))
