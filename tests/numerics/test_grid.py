"""Grids: scales that can be stored, and the codes nearest to values on them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator

import monoquant as mq
from monoquant.numerics.affine import dequantize
from monoquant.numerics.grid import Grid, nearest_codes, storable
from monoquant.values import SCALE_DTYPES

SINGLES = st.floats(allow_nan=False, width=32)
dtypes = pytest.mark.parametrize("dtype", SCALE_DTYPES, ids=str)


@dtypes
@given(scale=SINGLES)
def test_every_scale_becomes_one_that_can_be_stored(dtype: torch.dtype, scale: float) -> None:
    """Never zero, never infinite, never of the other sign, and no longer changed by the dtype it is stored in."""
    [found] = storable(torch.tensor([scale]), dtype)
    assert found.dtype == torch.float32
    assert bool(torch.isfinite(found))
    assert float(found) != 0
    assert float(found.to(dtype)) == float(found)
    assert scale == 0 or abs(scale) < torch.finfo(dtype).smallest_normal or (scale > 0) == (float(found) > 0)


@dtypes
@given(scale=SINGLES)
def test_scales_in_range_are_rounded_to_the_nearest(dtype: torch.dtype, scale: float) -> None:
    """Where the dtype has values on both sides, the closer one is taken."""
    limits = torch.finfo(dtype)
    if not limits.smallest_normal <= abs(scale) <= limits.max:
        return
    found = float(storable(torch.tensor([scale]), dtype))
    bits = torch.tensor([found]).to(dtype).view(torch.int32 if dtype == torch.float32 else torch.int16)
    beside = [float((bits + step).view(dtype)) for step in (-1, 1)]
    assert abs(found - scale) <= min(abs(one - scale) for one in beside if math.isfinite(one))


@dtypes
def test_scales_out_of_range_take_the_closest_extreme(dtype: torch.dtype) -> None:
    """The largest finite value stands for what is larger, the smallest normal one for nothing."""
    limits = torch.finfo(dtype)
    assert storable(torch.tensor([math.inf, -math.inf]), dtype).tolist() == [limits.max, -limits.max]
    assert storable(torch.tensor([0.0, -0.0]), dtype).tolist() == [limits.smallest_normal] * 2


@given(
    value=st.floats(-1e4, 1e4, width=32),
    scale=st.sampled_from((0.013, 0.5, 1.0, 7.3, -0.25, -2.1)),
    zero_point=st.integers(0, 255),
    bits=st.sampled_from((4, 8)),
)
def test_no_code_is_nearer(value: float, scale: float, zero_point: int, bits: int) -> None:
    """Among all codes, none stands for a value closer to the given one; ties apart."""
    largest = 2**bits - 1
    zero_point = min(zero_point, largest)
    step = torch.tensor(scale)
    found = nearest_codes(torch.tensor([value]), step, torch.tensor(float(zero_point)), largest)
    assert found.item() in range(largest + 1)
    distances = ((torch.arange(largest + 1.0) - zero_point) * step.double() - value).abs()
    assert float(distances[int(found)]) <= float(distances.min()) * (1 + 1e-6) + 1e-6 * abs(value)


@pytest.mark.parametrize("symmetric", [False, True])
@dtypes
def test_a_grid_becomes_what_is_packed(dtype: torch.dtype, symmetric: bool) -> None:
    """Scales and zero_points in the dtypes they are stored in, which stand for the same values as before."""
    scheme = mq.Scheme(group_size=4, symmetric=symmetric, scale_dtype=dtype)
    generator = Generator().manual_seed(0)
    scale = storable(torch.rand(3, 2, generator=generator), dtype)
    zero_point = torch.randint(16, (3, 2), generator=generator).float()
    codes = torch.randint(16, (3, 8), generator=generator, dtype=torch.uint8)
    found = Grid(scale, zero_point).with_codes(codes, scheme)
    assert (found.codes.dtype, found.scale.dtype, found.zero_point.dtype) == (torch.uint8, dtype, torch.uint8)
    wide_scale, wide_zero = (one.repeat_interleave(4, 1) for one in (scale, zero_point))
    expected = (codes.float() - wide_zero) * wide_scale
    assert torch.equal(dequantize(found.codes, found.scale, found.zero_point, 4), expected)
