import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.masks import BLOCK, DeviceMasks, masks_for

CPU = torch.device("cpu")


def masks(probability=0.4, seed=3, stream=0):
    return masks_for(probability, CPU, seed, stream)


def drawn(source, shape=(16, 8), count=1):
    like = torch.empty(shape)
    return torch.stack([source.draw(like).clone() for _ in range(count)])


@pytest.mark.parametrize("make", [masks_for, DeviceMasks])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_masks_scale_what_they_keep_so_that_the_mean_stays(make, probability):
    values = drawn(make(probability, CPU, 1, 0), count=1000)
    kept = values[values != 0]
    # the probability is a multiple of 2⁻¹⁶
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - probability)), rtol=1e-4, atol=0)
    error = np.sqrt(probability / (1 - probability) / values.numel())
    assert float(values.double().mean()) == pytest.approx(1, abs=5 * error)


def test_units_are_dropped_independently():
    dropped = (drawn(masks(0.3), count=4000) == 0).double().flatten(1)
    correlations = torch.corrcoef(dropped.T) - torch.eye(dropped.shape[1])
    # the largest of 8,128 correlations of 4,000 pairs lies five standard errors away once in 200 times
    assert correlations.abs().max() < 5.5 / np.sqrt(4000)


def test_equal_seeds_and_streams_draw_equal_masks_and_others_do_not():
    first = drawn(masks(), count=5)
    assert torch.equal(drawn(masks(), count=5), first)
    assert not torch.equal(drawn(masks(seed=4), count=5), first)
    assert not torch.equal(drawn(masks(stream=1), count=5), first)


@pytest.mark.parametrize("make", [masks_for, DeviceMasks])
def test_masks_of_an_epoch_are_the_same_whatever_was_drawn_before(make):
    first, second = make(0.4, CPU, 3, 0), make(0.4, CPU, 3, 0)
    drawn(second, shape=(5, 3), count=7)
    for source in (first, second):
        source.begin(2)
    expected = drawn(first, count=3)
    assert torch.equal(drawn(second, count=3), expected)
    first.begin(3)
    assert not torch.equal(drawn(first, count=3), expected)


def test_global_generators_are_neither_read_nor_moved():
    first = drawn(masks())
    torch.manual_seed(9)
    np.random.seed(9)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert torch.equal(drawn(masks()), first)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=6))
def test_a_mask_has_the_shape_asked_for_and_never_comes_again(shapes):
    source, seen = masks(0.5), set()
    for shape in [shape for shape in shapes for _ in range(2)]:
        mask = drawn(source, shape)[0]
        assert mask.shape == shape
        if mask.numel() > 64:  # 2⁻⁶⁴ for two equal ones
            assert mask.numpy().tobytes() not in seen
            seen.add(mask.numpy().tobytes())


def test_masks_larger_than_a_block_are_random_throughout():
    mask = drawn(masks(0.5), (3, BLOCK))[0]
    assert not torch.equal(mask[0], mask[1])
    assert not torch.equal(mask[1], mask[2])
    # five standard errors
    assert (mask == 0).double().mean() == pytest.approx(0.5, abs=2.5 / np.sqrt(mask.numel()))


def test_masks_have_the_type_of_what_they_are_for():
    assert masks().draw(torch.empty(3, 2, dtype=torch.double)).dtype == torch.double
