"""Scale and zero point of a range: every value in it comes back, zero exactly, whatever the magnitude."""

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from monoquant.errors import ConfigError, InputError
from monoquant.ranges import ActivationRange
from monoquant.testing.strategies import weights

thorough = settings(deadline=None, max_examples=100)
widths = st.sampled_from([8, 4]) | st.integers(1, 16)
TINIEST = torch.finfo(torch.float32).smallest_normal
LARGEST = torch.finfo(torch.float32).max


def spanned(values: torch.Tensor) -> ActivationRange:
    return ActivationRange(values.amin(), values.amax())


def reproduced(values: torch.Tensor, span: ActivationRange, bits: int) -> torch.Tensor:
    scale, zero_point = (parameter.double() for parameter in span.affine(bits))
    codes = ((values.double() / scale).round() + zero_point).clamp(0, 2**bits - 1)
    return (codes - zero_point) * scale


@thorough
@given(values=weights(), bits=widths)
@example(values=torch.tensor([[-1e-45, 3e-45]]), bits=8)
@example(values=torch.tensor([[-LARGEST, LARGEST]]), bits=8)
@example(values=torch.tensor([[-0.5, 2.5]]), bits=2)
def test_values_in_the_range_come_back_to_within_half_a_scale(values: torch.Tensor, bits: int) -> None:
    span = spanned(values)
    scale = span.affine(bits)[0].double()
    error = (values.double() - reproduced(values, span, bits)).abs()
    assert (error <= scale * (0.5 + 1e-9)).all()


@thorough
@given(values=weights(), bits=widths)
def test_scale_is_no_larger_than_the_range_needs(values: torch.Tensor, bits: int) -> None:
    span = spanned(values)
    needed = float(span.high - span.low) / (2**bits - 1)
    scale = float(span.affine(bits)[0])
    assert scale <= max(needed * (1 + 2.0**-22), TINIEST) or needed == 0


@thorough
@given(values=weights(), bits=widths)
def test_parameters_have_their_documented_form_and_zero_is_exact(values: torch.Tensor, bits: int) -> None:
    span = ActivationRange(values.amin(1), values.amax(1))
    scale, zero_point = span.affine(bits)
    assert scale.dtype == torch.float32
    assert zero_point.dtype == torch.int32
    assert scale.shape == zero_point.shape == (len(values),)
    assert torch.isfinite(scale).all()
    assert (scale >= TINIEST).all()
    assert ((zero_point >= 0) & (zero_point < 2**bits)).all()
    assert (reproduced(torch.zeros(len(values)), span, bits) == 0).all()
    assert (span.low <= 0).all()
    assert (span.high >= 0).all()


@thorough
@given(values=weights(), bits=widths)
def test_channels_get_what_each_gets_alone(values: torch.Tensor, bits: int) -> None:
    together = ActivationRange(values.amin(1), values.amax(1)).affine(bits)
    alone = [spanned(row).affine(bits) for row in values]
    assert torch.equal(together[0], torch.stack([scale for scale, _ in alone]))
    assert torch.equal(together[1], torch.stack([zero_point for _, zero_point in alone]))


@settings(deadline=None, max_examples=50)
@given(values=weights(dtypes=[torch.float32]), bits=st.sampled_from([4, 8]))
def test_codes_are_those_of_torch(values: torch.Tensor, bits: int) -> None:
    span = spanned(values)
    scale, zero_point = span.affine(bits)
    by_torch = torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, 2**bits - 1).double()
    # torch multiplies by a rounded 1 / scale, so that values near the middle of two codes may get the other one.
    error, own_error = (values.double() - by_torch).abs(), (values.double() - reproduced(values, span, bits)).abs()
    assert (error - own_error).abs().max() <= float(scale) * 1e-4


@pytest.mark.parametrize(
    ("low", "high", "bits", "scale", "zero_point"),
    [
        (0.0, 0.0, 8, 1.0, 0),
        (0.0, 255.0, 8, 1.0, 0),
        (-255.0, 0.0, 8, 1.0, 255),
        (-128.0, 127.0, 8, 1.0, 128),
        (-8.0, 7.0, 4, 1.0, 8),
        (0.0, 0.5, 1, 0.5, 0),
        (5.0, 510.0, 8, 2.0, 0),
        (-510.0, -5.0, 8, 2.0, 255),
        (0.0, 1e-45, 8, TINIEST, 0),
        (-1e-300, 0.0, 8, TINIEST, 0),
        (-255 * TINIEST, 0.0, 8, TINIEST, 255),
        (-1.7e308, 1.7e308, 8, LARGEST, 255),
    ],
)
def test_known_ranges(low: float, high: float, bits: int, scale: float, zero_point: int) -> None:
    span = ActivationRange(torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64))
    assert [float(parameter) for parameter in span.affine(bits)] == [scale, zero_point]


def test_scale_is_rounded_up_to_float32() -> None:
    needed = 1.0 / 255
    span = ActivationRange(torch.tensor(0.0), torch.tensor(1.0))
    assert needed < float(span.affine()[0]) < needed * (1 + 2.0**-22)
    lower = ActivationRange(torch.tensor(0.0), torch.tensor(3.0))
    assert float(lower.affine()[0]) >= 3.0 / 255


@pytest.mark.parametrize("bits", [0, 17, -1, True, 8.0, "8", None])
def test_bad_bits_are_refused(bits: Any) -> None:
    with pytest.raises(ConfigError, match=r"bits=.*1 to 16"):
        ActivationRange(torch.zeros(()), torch.ones(())).affine(bits)


@pytest.mark.parametrize(("low", "high"), [([], [2]), ([2], [3]), ([2, 2], [2, 2])], ids=str)
def test_shapes_that_are_no_range_are_refused(low: list[int], high: list[int]) -> None:
    with pytest.raises(InputError, match="shapes"):
        ActivationRange(torch.zeros(low), torch.zeros(high))


@pytest.mark.parametrize(("low", "high"), [(-torch.inf, 1), (0, torch.inf), (torch.nan, 1), (0, torch.nan)])
def test_ranges_that_are_not_finite_are_refused(low: float, high: float) -> None:
    with pytest.raises(InputError, match="NaN or Inf"):
        ActivationRange(torch.tensor(float(low)), torch.tensor(float(high)))
