"""The kernel that runs everywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monoquant.kernels import portable
from monoquant.kernels.base import product_of
from monoquant.kernels.portable import Portable, dequantized, multiply_tiles
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.values import Scheme
from tests.kernels.matrices import counts, matrices, normal, packed, relative_error

KERNEL = Portable()


@given(matrix=matrices, count=counts, bias=st.booleans(), tile=st.sampled_from([1, 50, 700, 1 << 20]))
def test_any_matrix_in_tiles_of_any_size(matrix: PackedMatrix, count: int, bias: bool, tile: int) -> None:
    """Any shape, group size, symmetry and scale dtype gives the product with the dequantized matrix."""
    inputs, added = normal(count, matrix.columns, seed=1), normal(matrix.rows, seed=2) if bias else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(portable, "TILE_ELEMENTS", tile)
        output = KERNEL.multiply(inputs, matrix.codes, (), added)
        fast = multiply_tiles(inputs, matrix.codes, added, centred=False)
    assert output.shape == fast.shape == (count, matrix.rows)
    assert output.is_contiguous()
    assert relative_error(output, inputs, matrix, added) < 5e-6
    assert relative_error(fast, inputs, matrix, added) < 3e-5


@given(matrix=matrices)
def test_tiles_are_the_dequantized_rows_to_the_bit(matrix: PackedMatrix) -> None:
    """However codes are unpacked, they stand for the same floats as everywhere else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(portable, "TILE_ELEMENTS", 3 * matrix.columns)
        tiles = torch.cat([tile.clone() for _, tile in portable._tiles(matrix.codes, centred=True)])
    assert torch.equal(tiles, dequantized(matrix.codes))
    assert torch.equal(tiles, matrix.dequantize())


@pytest.mark.parametrize("value", [6e-8, 3e-5, 65504.0])
def test_scales_at_the_ends_of_float16(value: float) -> None:
    """Subnormal and the largest scales are read as they are."""
    matrix = packed(4, 64, Scheme(4, 32))
    matrix.scale.fill_(value)
    (tile,) = (tile for _, tile in portable._tiles(matrix.codes, centred=True))
    assert torch.equal(tile, matrix.dequantize())
    assert tile.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs_are_summed_in_float32(dtype: torch.dtype) -> None:
    """Only inputs and the result are rounded: the error is that of one rounding, not of as many as there are sums."""
    matrix, inputs = packed(40, 2000, Scheme()), normal(20, 2000, seed=1, dtype=dtype)
    output = KERNEL.multiply(inputs, matrix.codes, (), None)
    assert output.dtype == dtype
    assert relative_error(output, inputs, matrix) < torch.finfo(dtype).eps


def test_float64_inputs_keep_their_precision() -> None:
    """A float64 model computes in float64."""
    matrix, inputs = packed(9, 130, Scheme()), normal(5, 130, dtype=torch.float64)
    output = KERNEL.multiply(inputs, matrix.codes, (), None)
    assert relative_error(output, inputs, matrix) < 1e-14


@settings(deadline=None)
@given(count=st.sampled_from([1, 200]))
def test_it_never_holds_the_whole_matrix(count: int) -> None:
    """Tiles are small, whatever the matrix is: that is what makes it run where the float matrix would not fit."""
    matrix = packed(4096, 1024, Scheme())
    sizes = [tile.numel() for _, tile in portable._tiles(matrix.codes, centred=True)]
    assert max(sizes) <= portable.TILE_ELEMENTS < 4096 * 1024
    assert sum(sizes) == 4096 * 1024


def test_a_nan_stays_in_its_row() -> None:
    """One broken input row makes its own outputs nan, and no others."""
    matrix, inputs = packed(30, 200, Scheme()), normal(20, 200)
    inputs[3, 7] = torch.nan
    for centred in (True, False):
        finite = torch.isfinite(multiply_tiles(inputs, matrix.codes, None, centred=centred))
        assert finite.all(1).tolist() == [row != 3 for row in range(20)]
        assert not finite[3].any()


def test_it_can_multiply_anything() -> None:
    """It is what is left when no other kernel can."""
    matrix = packed(3, 5, Scheme(8, 2))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert KERNEL.obstacle(product_of(matrix.codes, matrix.scheme, dtype)) is None
    assert KERNEL.derive(matrix.codes, product_of(matrix.codes, matrix.scheme, torch.float32)) == ()
