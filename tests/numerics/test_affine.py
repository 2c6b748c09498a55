"""Group-wise affine quantization: the error bound, exact values, and what must not change the result."""

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from monoquant.numerics.affine import GroupCodes, dequantize, round_to_nearest
from monoquant.numerics.grouping import group_count
from monoquant.numerics.metrics import measure
from monoquant.testing.strategies import schemes, weights
from monoquant.values import SCALE_DTYPES, Scheme

thorough = settings(deadline=None, max_examples=200)
normal = settings(deadline=None, max_examples=100)


def rounding(scheme: Scheme) -> float:
    """float32 rounds a group's range (twice), a quotient and a product, each by 2**-24 of as many scales as codes."""
    return 4 * (scheme.max_code + 1) * 2.0**-24


def float_values(codes: GroupCodes, scheme: Scheme) -> torch.Tensor:
    return dequantize(codes.codes, codes.scale, codes.zero_point, scheme.width(codes.codes.shape[1]))


def per_element(parameters: torch.Tensor, scheme: Scheme, columns: int) -> torch.Tensor:
    return parameters.repeat_interleave(scheme.width(columns), dim=1)[:, :columns]


def smallest_float32_weights(*multiples: float) -> torch.Tensor:
    return (torch.tensor([multiples], dtype=torch.float64) * 2.0**-149).float()


@thorough
@given(weight=weights(), scheme=schemes())
@example(weight=smallest_float32_weights(22, -3), scheme=Scheme(scale_dtype=torch.float32))
@example(weight=smallest_float32_weights(20, -3), scheme=Scheme(scale_dtype=torch.float32, symmetric=True))
def test_error_is_at_most_half_a_scale(weight: torch.Tensor, scheme: Scheme) -> None:
    """Every weight of every kind comes back to within half a scale of its group."""
    quantized = round_to_nearest(weight, scheme)
    error = (weight.double() - float_values(quantized, scheme).double()).abs()
    scale = per_element(quantized.scale.double().abs(), scheme, weight.shape[1])
    assert (error <= scale * (0.5 + rounding(scheme))).all()


def needed_scale(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    chunks = weight.double().split(scheme.width(weight.shape[1]), dim=1)
    low = torch.stack([chunk.amin(1).clamp_max(0) for chunk in chunks], dim=1)
    high = torch.stack([chunk.amax(1).clamp_min(0) for chunk in chunks], dim=1)
    if not scheme.symmetric:
        return high / scheme.max_code - low / scheme.max_code
    larger, smaller = torch.maximum(high, -low), torch.minimum(high, -low)
    return torch.maximum(larger / scheme.middle_code, smaller / (scheme.middle_code - 0.5))


@thorough
@given(weight=weights(), scheme=schemes())
def test_scale_is_no_larger_than_the_range_needs(weight: torch.Tensor, scheme: Scheme) -> None:
    """A scale is at most a step of its dtype above what the range of its group asks for: no accuracy is given away."""
    scale = round_to_nearest(weight, scheme).scale.double().abs()
    needed = needed_scale(weight, scheme)
    limits = torch.finfo(scheme.scale_dtype)
    allowed = needed * (1 + limits.eps) * (1 + 2.0**-22) + 2 * limits.smallest_normal * limits.eps
    # Below the smallest float32 the scale of a dead group may stand in.
    alive = needed >= 2.0**-149
    assert (scale[alive] <= allowed[alive]).all()
    assert (scale[needed == 0] == 1).all()


@thorough
@given(weight=weights(), scheme=schemes())
def test_zero_stays_zero(weight: torch.Tensor, scheme: Scheme) -> None:
    """Pruned weights and dead rows are exactly zero afterwards, whatever else is in their group."""
    values = float_values(round_to_nearest(weight, scheme), scheme)
    assert (values[weight == 0] == 0).all()


@thorough
@given(weight=weights(), scheme=schemes())
def test_codes_and_parameters_have_their_documented_form(weight: torch.Tensor, scheme: Scheme) -> None:
    """Codes and zero points fit their bits, scales can be divided by, and all have their shapes and dtypes."""
    quantized = round_to_nearest(weight, scheme)
    parameters = (weight.shape[0], group_count(weight.shape[1], scheme.width(weight.shape[1])))
    assert quantized.codes.shape == weight.shape
    assert quantized.scale.shape == quantized.zero_point.shape == parameters
    assert quantized.codes.dtype == quantized.zero_point.dtype == torch.uint8
    assert quantized.scale.dtype == scheme.scale_dtype
    assert int(quantized.codes.max()) < 2**scheme.bits
    assert int(quantized.zero_point.max()) < 2**scheme.bits
    assert torch.isfinite(quantized.scale).all()
    assert (quantized.scale != 0).all()
    if scheme.symmetric:
        assert (quantized.zero_point == 2 ** (scheme.bits - 1)).all()
    else:
        assert (quantized.scale > 0).all()


@normal
@given(weight=weights(), scheme=schemes(), seed=st.integers(0, 1000))
def test_permuting_rows_permutes_the_result(weight: torch.Tensor, scheme: Scheme, seed: int) -> None:
    """Rows do not see each other, so their order changes nothing but the order."""
    order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(seed))
    before, after = round_to_nearest(weight, scheme), round_to_nearest(weight[order], scheme)
    assert torch.equal(before.codes[order], after.codes)
    assert torch.equal(before.scale[order], after.scale)
    assert torch.equal(before.zero_point[order], after.zero_point)


@normal
@given(weight=weights(), scheme=schemes(), cut=st.integers(0, 24))
def test_rows_alone_give_what_they_give_together(weight: torch.Tensor, scheme: Scheme, cut: int) -> None:
    """A matrix quantized in two pieces equals the matrix quantized whole, so chunking is invisible."""
    assume(0 < cut < len(weight))
    whole = round_to_nearest(weight, scheme)
    pieces = [round_to_nearest(weight[:cut], scheme), round_to_nearest(weight[cut:], scheme)]
    assert torch.equal(torch.cat([piece.codes for piece in pieces]), whole.codes)
    assert torch.equal(torch.cat([piece.scale for piece in pieces]), whole.scale)
    assert torch.equal(torch.cat([piece.zero_point for piece in pieces]), whole.zero_point)


@normal
@given(weight=weights(dtypes=(torch.float32, torch.float64)), scheme=schemes(), power=st.integers(-8, -1))
def test_a_power_of_two_scales_the_result(weight: torch.Tensor, scheme: Scheme, power: int) -> None:
    """Halving a weight halves its scales and leaves its codes alone, as long as nothing gets subnormal."""
    factor = 2.0**power
    large, small = round_to_nearest(weight, scheme), round_to_nearest(weight * factor, scheme)
    well_above_subnormal = 2.0**8 * torch.finfo(scheme.scale_dtype).smallest_normal
    dead = per_element(large.scale, scheme, weight.shape[1]) == 1
    for scaled in (large, small):
        scale = scaled.scale.float().abs()
        dead = dead | per_element(scale < well_above_subnormal, scheme, weight.shape[1])
    assert torch.equal(large.codes[~dead], small.codes[~dead])
    expected, found = float_values(large, scheme) * factor, float_values(small, scheme)
    assert torch.equal(expected[~dead], found[~dead])


def _uses_whole_range(quantized: GroupCodes, scheme: Scheme, columns: int) -> torch.Tensor:
    chunks = quantized.codes.split(scheme.width(columns), dim=1)
    low = torch.stack([chunk.amin(1) for chunk in chunks], dim=1)
    high = torch.stack([chunk.amax(1) for chunk in chunks], dim=1)
    if scheme.symmetric:
        return low == 0
    low, high = torch.minimum(low, quantized.zero_point), torch.maximum(high, quantized.zero_point)
    return (low == 0) & (high == scheme.max_code)


@thorough
@given(weight=weights(), scheme=schemes())
def test_requantizing_is_idempotent_where_the_range_is_used_up(weight: torch.Tensor, scheme: Scheme) -> None:
    """Groups that use both end codes (or symmetric code 0) find the very same codes and scale again.

    A float32 scale has no spare bits for the division by 15 or 255, so it may move by a few roundings when asymmetric.
    """
    columns = weight.shape[1]
    once = round_to_nearest(weight, scheme)
    twice = round_to_nearest(float_values(once, scheme), scheme)
    whole = _uses_whole_range(once, scheme, columns)
    elements = per_element(whole, scheme, columns)
    assert torch.equal(once.codes[elements], twice.codes[elements])
    if scheme.symmetric or scheme.scale_dtype != torch.float32:
        assert torch.equal(once.scale[whole], twice.scale[whole])
    else:
        torch.testing.assert_close(once.scale[whole], twice.scale[whole], rtol=2.0**-21, atol=2.0**-149)


@normal
@given(weight=weights(), scheme=schemes())
def test_requantizing_never_coarsens(weight: torch.Tensor, scheme: Scheme) -> None:
    """Other groups may get a finer scale the second time, never a coarser one; all-zero groups excepted."""
    once = round_to_nearest(weight, scheme)
    values = float_values(once, scheme)
    twice = round_to_nearest(values, scheme)
    chunks = values.split(scheme.width(weight.shape[1]), dim=1)
    alive = torch.stack([chunk.abs().amax(1) > 0 for chunk in chunks], dim=1)
    slack = 1 + (2.0**-21 if scheme.scale_dtype == torch.float32 else 0)
    before, after = once.scale.double().abs()[alive], twice.scale.double().abs()[alive]
    assert (after <= before * slack + (2.0**-149 if slack > 1 else 0)).all()


@pytest.mark.parametrize(
    ("values", "symmetric", "codes", "scale", "zero_point"),
    [
        (range(16), False, range(16), 1.0, 0),
        (range(-15, 1), False, range(16), 1.0, 15),
        (range(-8, 8), False, range(16), 1.0, 8),
        ([5.0, 10.0, 15.0], False, [5, 10, 15], 1.0, 0),
        ([-30.0, -10.0], False, [0, 10], 2.0, 15),
        (range(-8, 8), True, range(16), 1.0, 8),
        (range(8, -8, -1), True, range(16), -1.0, 8),
        ([-7.5, 7.5], True, [0, 15], 1.0, 8),
        ([8.0, -7.5], True, [0, 15], -1.0, 8),
        ([0.0, 0.0], False, [0, 0], 1.0, 0),
        ([0.0, 0.0], True, [8, 8], 1.0, 8),
        ([3.0], True, [0], -0.375, 8),
        ([-3.0], True, [0], 0.375, 8),
    ],
)
def test_known_groups(values: list[float], symmetric: bool, codes: list[int], scale: float, zero_point: int) -> None:
    """Groups small enough to work out by hand get the codes and parameters worked out by hand."""
    weight = torch.tensor([list(values)], dtype=torch.float32)
    quantized = round_to_nearest(weight, Scheme(symmetric=symmetric))
    assert quantized.codes.tolist() == [list(codes)]
    assert quantized.scale.tolist() == [[scale]]
    assert quantized.zero_point.tolist() == [[zero_point]]


@pytest.mark.parametrize(
    ("values", "symmetric", "codes", "scale", "zero_point"),
    [
        (range(256), False, range(256), 1.0, 0),
        ([-510.0, -2.0, 0.0], False, [0, 254, 255], 2.0, 255),
        (range(-128, 128), False, range(256), 1.0, 128),
        (range(-128, 128), True, range(256), 1.0, 128),
        ([64.0, -63.5], True, [0, 255], -0.5, 128),
        ([-127.5, 127.5], True, [0, 255], 1.0, 128),
        ([0.0, 0.0], True, [128, 128], 1.0, 128),
        ([3.0], True, [0], -0.0234375, 128),
    ],
)
def test_known_groups_of_8_bits(
    values: list[float], symmetric: bool, codes: list[int], scale: float, zero_point: int
) -> None:
    """The same with 256 codes, a whole row per scale."""
    weight = torch.tensor([list(values)], dtype=torch.float32)
    quantized = round_to_nearest(weight, Scheme(8, None, symmetric, torch.float32))
    assert quantized.codes.tolist() == [list(codes)]
    assert quantized.scale.tolist() == [[scale]]
    assert quantized.zero_point.tolist() == [[zero_point]]


def test_double_precision_decides_in_double_precision() -> None:
    """A float64 weight just above the middle of two codes goes up, although float32 would see it in the middle."""
    weight = torch.tensor([[0.5 + 2.0**-40, 0.5 - 2.0**-40, 15.0]], dtype=torch.float64)
    assert round_to_nearest(weight, Scheme()).codes.tolist() == [[1, 0, 15]]


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES, ids=str)
def test_one_zero_point_can_stand_for_all(scale_dtype: torch.dtype) -> None:
    """A symmetric matrix is stored without zero points, and means the same as one full of eights."""
    codes = torch.arange(16, dtype=torch.uint8).reshape(2, 8)
    scale = torch.tensor([[0.5, -1.0], [2.0, 0.25]], dtype=scale_dtype)
    eights = torch.full((2, 2), 8, dtype=torch.uint8)
    values = dequantize(codes, scale, 8, 5)
    assert torch.equal(values, dequantize(codes, scale, eights, 5))
    assert values.dtype == torch.float32
    assert values[0].tolist() == [-4.0, -3.5, -3.0, -2.5, -2.0, 3.0, 2.0, 1.0]


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES, ids=str)
def test_signed_codes_mean_what_unsigned_ones_mean(scale_dtype: torch.dtype) -> None:
    """INT8 is stored signed: 128 less in codes and zero points changes no value, and 0 is the middle."""
    unsigned = torch.tensor([[0, 1, 127, 128], [254, 255, 3, 200]], dtype=torch.uint8)
    signed = (unsigned.short() - 128).to(torch.int8)
    scale = torch.tensor([[0.5, -1.0], [2.0, 0.25]], dtype=scale_dtype)
    zero_point = torch.tensor([[7, 128], [0, 255]], dtype=torch.uint8)
    shifted = (zero_point.short() - 128).to(torch.int8)
    assert torch.equal(dequantize(signed, scale, shifted, 2), dequantize(unsigned, scale, zero_point, 2))
    assert torch.equal(dequantize(signed, scale, 0, 2), dequantize(unsigned, scale, 128, 2))
    assert dequantize(signed, scale, 0, 2)[0].tolist() == [-64.0, -63.5, 1.0, 0.0]


def test_every_group_has_a_scale_of_its_own() -> None:
    """A large value in one group leaves the resolution of its neighbours alone, also that of a ragged last group."""
    weight = torch.tensor([[15.0, 0.0, 1500.0, 0.0, 0.15]])
    quantized = round_to_nearest(weight, Scheme(group_size=2, scale_dtype=torch.float32))
    torch.testing.assert_close(quantized.scale, torch.tensor([[1.0, 100.0, 0.01]]))


@pytest.mark.parametrize(
    ("scheme", "low", "high"),
    [
        (Scheme(), 19.8, 20.1),
        (Scheme(symmetric=True), 19.5, 19.9),
        (Scheme(8), 44.4, 44.7),
        (Scheme(8, None, True, torch.float32), 41.6, 41.9),
    ],
    ids=str,
)
def test_gaussian_weights_reach_what_the_format_allows(scheme: Scheme, low: float, high: float) -> None:
    """Two million Gaussian weights lose what is known of the format, no more and no less."""
    weight = torch.randn(1024, 2048, generator=torch.Generator().manual_seed(7)) * 0.02
    energy = measure(weight, float_values(round_to_nearest(weight, scheme), scheme))
    assert low <= energy.sqnr_db <= high
