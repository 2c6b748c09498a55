"""The Gaussian yardstick."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monoquant.numerics.affine import dequantize, round_to_nearest
from monoquant.numerics.metrics import measure
from monoquant.numerics.reference import gaussian_reference
from monoquant.testing.strategies import schemes
from monoquant.values import HALF_DTYPES, INT8_SCHEME, SCALE_DTYPES, HalfScheme, Scheme


def measured_db(scheme: Scheme, columns: int) -> float:
    weight = torch.randn((1 << 20) // columns, columns, generator=torch.Generator().manual_seed(11))
    quantized = round_to_nearest(weight, scheme)
    values = dequantize(quantized.codes, quantized.scale, quantized.zero_point, scheme.width(columns))
    return measure(weight, values).sqnr_db


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("group_size", "columns"),
    [(128, 2048), (32, 1024), (256, 512), (4, 64), (128, 576), (128, 100), (64, 65), (48, 200)],
)
def test_reference_is_what_gaussian_weights_give(group_size: int, columns: int, symmetric: bool) -> None:
    """A million Gaussian weights in rows of the same length, ragged ones included, agree to within 0.1 dB."""
    scheme = Scheme(group_size=group_size, symmetric=symmetric)
    assert gaussian_reference(scheme, columns).sqnr_db == pytest.approx(measured_db(scheme, columns), abs=0.1)


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES, ids=str)
def test_reference_knows_the_scale_dtype(scale_dtype: torch.dtype) -> None:
    """The yardstick takes the rounding of the scales into account."""
    scheme = Scheme(scale_dtype=scale_dtype)
    assert gaussian_reference(scheme, 512).sqnr_db == pytest.approx(measured_db(scheme, 512), abs=0.1)


@pytest.mark.parametrize("scheme", [INT8_SCHEME, Scheme(8), Scheme(8, 32, True), Scheme(4, None)], ids=str)
@pytest.mark.parametrize("columns", [64, 200, 2048])
def test_reference_knows_bits_and_whole_rows(scheme: Scheme, columns: int) -> None:
    """INT8, and one scale per row of any length, agree with a million Gaussian weights as well."""
    assert gaussian_reference(scheme, columns).sqnr_db == pytest.approx(measured_db(scheme, columns), abs=0.1)


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
def test_reference_of_16_bits(dtype: torch.dtype) -> None:
    """A float's error is relative, so the figure is that of its rounding whatever the length of a row."""
    weight = torch.randn(1 << 20, generator=torch.Generator().manual_seed(11))
    expected = measure(weight, weight.to(dtype)).sqnr_db
    for columns in (1, 64, 577):
        assert gaussian_reference(HalfScheme(dtype), columns).sqnr_db == pytest.approx(expected, abs=0.1)


@settings(deadline=None, max_examples=15)
@given(scheme=schemes(), columns=st.integers(1, 700))
def test_energies_are_those_of_one_row(scheme: Scheme, columns: int) -> None:
    """The signal is that of ``columns`` unit Gaussian weights, so that references of layers can be pooled."""
    assert gaussian_reference(scheme, columns).signal == pytest.approx(columns, rel=0.02)


def test_reference_leaves_the_random_state_alone() -> None:
    """Asking for the yardstick does not disturb the caller's random numbers."""
    before = torch.random.get_rng_state()
    gaussian_reference(Scheme(group_size=127), 1001)
    assert torch.equal(torch.random.get_rng_state(), before)
