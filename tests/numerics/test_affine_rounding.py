"""Casting scales to a narrower dtype without letting them shrink."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monoquant.numerics.affine import round_away_from_zero
from monoquant.values import SCALE_DTYPES

quick = settings(deadline=None, max_examples=200)
single = st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=50)
double = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=50)
near_half = st.lists(st.floats(-70000, 70000, width=32) | st.floats(-(2.0**-13), 2.0**-13, width=32), min_size=1)


def all_magnitudes(dtype: torch.dtype) -> torch.Tensor:
    patterns = torch.arange(2**15, dtype=torch.int32).to(torch.int16)
    values = patterns.view(dtype).double()
    return values[~values.isnan()]


def smallest_not_below(magnitude: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    table = all_magnitudes(dtype)
    return table[torch.searchsorted(table, magnitude)]


@quick
@given(values=single | near_half, dtype=st.sampled_from((torch.float16, torch.bfloat16)))
def test_float32_goes_to_the_next_magnitude_up(values: list[float], dtype: torch.dtype) -> None:
    """The result is the smallest 16-bit magnitude that is not below the value: found by looking through all of them."""
    value = torch.tensor(values, dtype=torch.float32)
    rounded = round_away_from_zero(value, dtype)
    assert rounded.dtype == dtype
    assert torch.equal(rounded.double().abs(), smallest_not_below(value.double().abs(), dtype))
    assert torch.equal(rounded.signbit(), value.signbit())


@quick
@given(values=double | near_half, dtype=st.sampled_from((torch.float16, torch.bfloat16)))
def test_float64_goes_to_the_next_magnitude_up(values: list[float], dtype: torch.dtype) -> None:
    """Also from float64, whose cast to 16 bits may round twice, the nearest magnitude not below is found."""
    value = torch.tensor(values, dtype=torch.float64)
    rounded = round_away_from_zero(value, dtype)
    assert torch.equal(rounded.double().abs(), smallest_not_below(value.abs(), dtype))
    assert torch.equal(rounded.signbit(), value.signbit())


@quick
@given(values=double)
def test_float64_to_float32_moves_at_most_one_step(values: list[float]) -> None:
    """In float32 the next smaller magnitude would already be below the value."""
    value = torch.tensor(values, dtype=torch.float64)
    rounded = round_away_from_zero(value, torch.float32)
    assert (rounded.double().abs() >= value.abs()).all()
    below = torch.nextafter(rounded, torch.zeros_like(rounded))
    exact = rounded.double() == value
    assert (exact | (below.double().abs() < value.abs())).all()
    assert torch.equal(rounded.signbit(), value.signbit())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_exact_values_stay(dtype: torch.dtype) -> None:
    """Every value that the dtype can hold, subnormal and negative ones included, comes back unchanged."""
    finite = all_magnitudes(dtype)[:-1]
    for value in (finite, -finite):
        for wide in (torch.float32, torch.float64):
            assert torch.equal(round_away_from_zero(value.to(wide), dtype).double(), value)


@pytest.mark.parametrize("dtype", SCALE_DTYPES, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_ends_of_the_range(dtype: torch.dtype, sign: int) -> None:
    """What is too small becomes the smallest subnormal and what is too large becomes infinite, with its sign."""
    limits = torch.finfo(dtype)
    smallest = limits.smallest_normal * limits.eps
    value = torch.tensor(
        [smallest / 1000, smallest * 1.25, limits.max, limits.max * (1 + 2.0**-40)], dtype=torch.float64
    )
    expected = [sign * smallest, sign * 2 * smallest, sign * limits.max, sign * math.inf]
    assert round_away_from_zero(sign * value, dtype).double().tolist() == expected
