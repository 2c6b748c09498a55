"""Signal and noise energies."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monoquant.numerics.metrics import Energy, energy_of, measure
from monoquant.testing.strategies import weights
from monoquant.values import PACKABLE_DTYPES

quick = settings(deadline=None, max_examples=150)
moderate = st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) > 1e-100)
pairs = st.lists(st.tuples(moderate, moderate), max_size=40)


def columns_of(pairs: list[tuple[float, float]]) -> tuple[torch.Tensor, torch.Tensor]:
    reference = torch.tensor([first for first, _ in pairs], dtype=torch.float64)
    return reference, torch.tensor([second for _, second in pairs], dtype=torch.float64)


@quick
@given(pairs=pairs)
def test_energies_equal_exact_sums(pairs: list[tuple[float, float]]) -> None:
    """The energies are the sums of squares that Python's exactly rounded summation finds."""
    energy = measure(*columns_of(pairs))
    assert energy.signal == pytest.approx(math.fsum(first**2 for first, _ in pairs), rel=1e-13)
    assert energy.noise == pytest.approx(math.fsum((first - second) ** 2 for first, second in pairs), rel=1e-13)


@quick
@given(parts=st.lists(pairs, max_size=5))
def test_pooling_equals_measuring_together(parts: list[list[tuple[float, float]]]) -> None:
    """Adding the energies of parts gives the energies of the whole."""
    pooled = sum((measure(*columns_of(part)) for part in parts), Energy())
    whole = measure(*columns_of([pair for part in parts for pair in part]))
    assert pooled.signal == pytest.approx(whole.signal, rel=1e-12)
    assert pooled.noise == pytest.approx(whole.noise, rel=1e-12)


@quick
@given(signal=st.floats(1e-300, 1e300), noise=st.floats(1e-300, 1e300))
def test_decibels_are_ten_times_the_logarithm_of_the_ratio(signal: float, noise: float) -> None:
    """Also where the ratio itself would overflow or underflow."""
    found = Energy(signal, noise).sqnr_db
    assert found == pytest.approx(10 * (math.log2(signal) - math.log2(noise)) / math.log2(10), abs=1e-9)


@pytest.mark.parametrize(
    ("signal", "noise", "decibels"),
    [(1.0, 0.0, math.inf), (0.0, 0.0, math.inf), (0.0, 1.0, -math.inf), (100.0, 1.0, 20.0), (1.0, 1000.0, -30.0)],
)
def test_decibels_at_the_ends(signal: float, noise: float, decibels: float) -> None:
    """Exact is infinite even without signal, and noise on silence is minus infinite."""
    assert Energy(signal, noise).sqnr_db == pytest.approx(decibels)


@pytest.mark.parametrize("energy", [Energy(math.nan, 1.0), Energy(1.0, math.nan), Energy(math.nan, 0.0)])
def test_nan_stays_nan(energy: Energy) -> None:
    """A broken measurement must not pass for a number, also after pooling it with a good one."""
    assert math.isnan(energy.sqnr_db)
    assert math.isnan((energy + Energy(5.0, 1.0)).sqnr_db)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_non_finite_value_spoils_the_figure(broken: float) -> None:
    """One non-finite weight makes the figure nan, and one non-finite approximation makes it fail every threshold."""
    good = torch.ones(100)
    bad = good.clone()
    bad[17] = broken
    assert math.isnan(measure(bad, bad).sqnr_db)
    assert math.isnan(measure(bad, good).sqnr_db)
    assert not measure(good, bad).sqnr_db > -math.inf


@pytest.mark.parametrize("dtype", PACKABLE_DTYPES, ids=str)
def test_sums_are_taken_in_double_precision(dtype: torch.dtype) -> None:
    """Differences and squares that the tensors' own dtype could not hold are not lost."""
    reference = torch.full((4096,), 256.0, dtype=dtype)
    approximation = reference.clone()
    approximation[0] = 1 + 2.0**-7
    energy = measure(reference, approximation)
    assert energy == Energy(4096 * 256.0**2, (255 - 2.0**-7) ** 2)


@quick
@given(weight=weights())
def test_shapes_do_not_matter(weight: torch.Tensor) -> None:
    """A matrix, its transpose and its flat form have one energy; a tensor compared with itself has no noise."""
    energy = measure(weight, weight)
    assert energy.noise == 0
    assert measure(weight.T, weight.T).signal == pytest.approx(energy.signal, rel=1e-12)
    flat = energy_of(weight.flatten(), torch.zeros(weight.numel()))
    assert (flat.signal, flat.noise) == (pytest.approx(energy.signal, rel=1e-12), 0)
