import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DatasetError
from core.splits import split_rows

SHARES = st.floats(0.01, 0.99)
LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)


def split_or_none(n, test_size, validation_size, seed, strata):
    try:
        return split_rows(n, test_size=test_size, validation_size=validation_size, seed=seed, strata=strata)
    except DatasetError:
        return None


@given(LABELS, SHARES, st.just(0.0) | SHARES, st.integers(0, 2**32 - 1), st.booleans())
def test_parts_are_disjoint_sorted_and_cover_all_rows(labels, test_size, validation_size, seed, stratified):
    split = split_or_none(len(labels), test_size, validation_size, seed, labels if stratified else None)
    if split is None:
        return
    parts = (split.train, split.validation, split.test)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for part in parts:
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()
    assert len(split.train) >= 1
    assert len(split.test) >= 1
    assert (len(split.validation) == 0) == (validation_size == 0)


@given(LABELS, SHARES, st.just(0.0) | SHARES, st.integers(0, 1000))
def test_every_class_keeps_a_training_row(labels, test_size, validation_size, seed):
    split = split_or_none(len(labels), test_size, validation_size, seed, labels)
    if split is not None:
        assert set(labels[split.train]) == set(labels)


@given(st.integers(10, 300), st.floats(0.05, 0.6), st.floats(0.05, 0.6), st.integers(0, 100))
def test_sizes_round_half_up(n, test_size, validation_size, seed):
    split = split_rows(n, test_size=test_size, validation_size=validation_size, seed=seed, strata=None)
    assert len(split.test) == max(1, int(np.floor(test_size * n + 0.5)))
    rest = n - len(split.test)
    assert len(split.validation) == min(rest - 2, max(1, int(np.floor(validation_size * rest + 0.5))))


@given(st.lists(st.integers(20, 90), min_size=2, max_size=5), st.floats(0.1, 0.4), st.integers(0, 99))
def test_strata_keep_their_proportion_within_one_row(counts, test_size, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    split = split_rows(len(labels), test_size=test_size, validation_size=0.1, seed=seed, strata=labels)
    quotas = len(split.test) * np.array(counts) / len(labels)
    assert (np.abs(np.bincount(labels[split.test], minlength=len(counts)) - quotas) < 1).all()
    assert len(split.test) == int(np.floor(test_size * len(labels) + 0.5))


def test_equal_arguments_give_an_equal_split_and_another_seed_another():
    first, again, other = (
        split_rows(500, test_size=0.2, validation_size=0.1, seed=seed, strata=None) for seed in (7, 7, 8)
    )
    assert np.array_equal(first.test, again.test)
    assert np.array_equal(first.train, again.train)
    assert not np.array_equal(first.test, other.test)


def test_every_row_is_equally_likely_to_be_tested():
    hits = np.zeros(20)
    for seed in range(2000):
        hits[split_rows(20, test_size=0.25, validation_size=0, seed=seed, strata=None).test] += 1
    # 2,000 draws at p = 1/4: four standard deviations of the binomial are 4 * sqrt(375) = 77
    assert np.abs(hits - 500).max() < 77 + 10


def test_a_class_of_one_row_trains():
    labels = np.array([0] * 10 + [1] + [2] * 10)
    for seed in range(20):
        split = split_rows(21, test_size=0.5, validation_size=0.5, seed=seed, strata=labels)
        assert 10 in split.train


@pytest.mark.parametrize(
    ("n", "validation_size", "sizes"), [(2, 0.0, (1, 0, 1)), (3, 0.2, (1, 1, 1)), (4, 0.2, (2, 1, 1))]
)
def test_small_tables_leave_training_what_they_can(n, validation_size, sizes):
    split = split_rows(n, test_size=0.9, validation_size=validation_size, seed=0, strata=None)
    assert (len(split.train), len(split.validation), len(split.test)) == sizes


@pytest.mark.parametrize(
    ("labels", "validation_size", "stratified", "missing"),
    [([0], 0.0, False, 1), ([0, 0], 0.1, False, 1), ([], 0.0, False, 2), ([0, 1, 2], 0.1, True, 2)],
)
def test_too_few_rows_are_refused_with_the_number_that_is_missing(
    labels, validation_size, stratified, missing
):
    strata = np.array(labels) if stratified else None
    with pytest.raises(DatasetError, match=f"^{len(labels)} rows.*add {missing} or more"):
        split_rows(len(labels), test_size=0.2, validation_size=validation_size, seed=0, strata=strata)
