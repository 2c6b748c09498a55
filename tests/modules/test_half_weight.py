"""Weights in 16 bits of floating point."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monoquant.errors import ConfigError
from monoquant.modules.half_weight import HalfWeight
from monoquant.modules.storage import empty_weight, pack_weight
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.testing.strategies import weights
from monoquant.values import HALF_DTYPES, HalfScheme, Scheme

halves = st.sampled_from(HALF_DTYPES).map(HalfScheme)


@given(weights(dtypes=(torch.float32, torch.float64)), halves)
def test_values_are_the_nearest_ones(weight: torch.Tensor, scheme: HalfScheme) -> None:
    """A cast, and nothing else."""
    packed, intended = HalfWeight.pack(weight, scheme, MatrixForm.rows_first(weight.shape))
    assert torch.equal(packed.dequantize(), weight.to(scheme.dtype).to(weight.dtype))
    assert intended.holds(packed)


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_shape_and_form_come_back(dtype: torch.dtype) -> None:
    """A weight of more axes keeps its shape; its rows are those of the form."""
    weight = torch.randn(4, 3, 5)
    form = MatrixForm.along(weight.shape, 1)
    packed, _ = pack_weight(weight, HalfScheme(dtype), form)
    assert torch.equal(packed.dequantize(), weight.to(dtype).float())
    assert torch.equal(packed.dequantized_rows(torch.tensor([2])), form.to_matrix(weight)[2:3].to(dtype).float())


def test_the_storage_does_not_follow_a_cast() -> None:
    """``.half()`` on bfloat16 storage would change values that fit no float16."""
    weight = torch.tensor([[1e10, 1.0]])
    packed, intended = HalfWeight.pack(weight, HalfScheme(torch.bfloat16), MatrixForm.rows_first((1, 2)))
    moved = packed.half()
    assert moved.values.dtype == torch.bfloat16
    assert intended.holds(moved)
    assert moved.dequantize().dtype == torch.float16


@given(weights(dtypes=(torch.float32,)), halves)
def test_a_state_dict_goes_round(weight: torch.Tensor, scheme: HalfScheme) -> None:
    """Into storage that was made for it."""
    form = MatrixForm.rows_first(weight.shape)
    packed, intended = pack_weight(weight, scheme, form)
    fresh = empty_weight(form, scheme, weight.dtype)
    fresh.load_state_dict(packed.state_dict(), strict=True, assign=True)
    assert intended.holds(fresh)


def test_another_kind_of_storage_is_refused() -> None:
    """float16 bytes are no bfloat16 ones, though both have 16 bits."""
    form = MatrixForm.rows_first((2, 2))
    packed, _ = pack_weight(torch.ones(2, 2), HalfScheme(torch.float16), form)
    fresh = empty_weight(form, HalfScheme(torch.bfloat16), torch.float32)
    with pytest.raises(RuntimeError, match=r"layout .* is \[1, 16, 2, 2, 0\], this layer has \[1, 16, 2, 2, 1\]"):
        fresh.load_state_dict(packed.state_dict(), strict=True, assign=True)


def test_wrong_settings_are_refused() -> None:
    """Each says what is allowed."""
    with pytest.raises(ConfigError, match=r"dtype=torch.float32: give one of torch.float16, torch.bfloat16"):
        HalfScheme(torch.float32)
    with pytest.raises(ConfigError, match="give a HalfScheme"):
        HalfWeight(MatrixForm.rows_first((2, 2)), Scheme())
