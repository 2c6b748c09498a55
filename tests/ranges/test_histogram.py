"""The histogram: exact counts, honest predictions, and ranges that are good on the very data."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

import monoquant.ranges.histogram as histogram_module
from monoquant.errors import ConfigError, InputError
from monoquant.numerics.metrics import measure
from monoquant.ranges import ActivationRange, HistogramObserver, MinMaxObserver
from monoquant.testing.strategies import weights

thorough = settings(deadline=None, max_examples=60)
OCTAVES, PER_OCTAVE = 32, 32


def normal(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=Generator().manual_seed(seed))


def uniform(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, generator=Generator().manual_seed(seed))


def student_t(n: int, seed: int = 0) -> Tensor:
    parts = torch.randn(4, n, generator=Generator().manual_seed(seed))
    return parts[0] / (parts[1:] ** 2).mean(0).sqrt()


def cauchy(n: int, seed: int = 0) -> Tensor:
    parts = torch.randn(2, n, generator=Generator().manual_seed(seed))
    return (parts[0] / parts[1]).clamp(-100, 100)


DATA: dict[str, Callable[[int, int], Tensor]] = {
    "gaussian": normal,
    "shifted": lambda n, seed: normal(n, seed) + 5,
    "far below zero": lambda n, seed: normal(n, seed) - 50,
    "student t": student_t,
    "clipped cauchy": cauchy,
    "relu": lambda n, seed: normal(n, seed).relu(),
    "exponential": lambda n, seed: -(1 - uniform(n, seed)).log(),
    "gelu": lambda n, seed: torch.nn.functional.gelu(normal(n, seed)),
    "hardtanh": lambda n, seed: normal(n, seed).clamp(-1.3, 2.3),
    "sigmoid": lambda n, seed: (5 * normal(n, seed)).sigmoid(),
    "uniform": lambda n, seed: 2 * uniform(n, seed) - 1,
    "one-sided uniform": uniform,
    "constant": lambda n, _seed: torch.full((n,), 5.3),
    "zeros": lambda n, _seed: torch.zeros(n),
}


def observed(values: Tensor, bits: int = 8) -> HistogramObserver:
    observer = HistogramObserver(bits)
    observer.update(values)
    return observer


def widest(values: Tensor) -> ActivationRange:
    observer = MinMaxObserver()
    observer.update(values)
    return observer.range()


def sqnr_db(values: Tensor, span: ActivationRange, bits: int) -> float:
    scale, zero_point = (parameter.double() for parameter in span.affine(bits))
    codes = ((values.double() / scale).round() + zero_point).clamp(0, 2**bits - 1)
    return measure(values, (codes - zero_point) * scale).sqnr_db


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("n", [20, 300, 100_000])
@pytest.mark.parametrize("kind", DATA)
def test_real_data_are_never_half_a_decibel_worse_than_with_min_and_max(kind: str, n: int, bits: int) -> None:
    for seed in range(1 if n > 1000 else 8):
        values = DATA[kind](n, seed)
        with_all = sqnr_db(values, widest(values), bits)
        assert sqnr_db(values, observed(values, bits).range(), bits) >= with_all - 0.5


@pytest.mark.parametrize(
    ("n", "outliers", "size", "bits"),
    [(4_000_000, 1, 30, 8), (1_000_000, 1, 30, 4), (1_000_000, 100, 10, 4), (1_000_000, 10, 100, 4)],
)
def test_rare_outliers_are_clipped_for_six_decibels_of_total_error(n: int, outliers: int, size: int, bits: int) -> None:
    values = normal(n)
    values[:outliers] = size
    assert sqnr_db(values, observed(values, bits).range(), bits) > sqnr_db(values, widest(values), bits) + 6


@pytest.mark.parametrize("bits", [8, 4])
def test_outliers_that_carry_the_signal_are_kept(bits: int) -> None:
    values = normal(100_000)
    values[:100] = 10_000
    assert float(observed(values, bits).range().high) > 9_000


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("kind", ["gaussian", "shifted", "student t", "relu", "exponential", "gelu", "uniform"])
def test_prediction_is_what_the_data_show(kind: str, bits: int) -> None:
    values = DATA[kind](100_000, 0)
    observer = observed(values, bits)
    low, high = observer.range().low, observer.range().high
    for span in (observer.range(), widest(values), ActivationRange(low / 3, high / 5), ActivationRange(2 * low, high)):
        assert observer.predicted_energy(span).sqnr_db == pytest.approx(sqnr_db(values, span, bits), abs=0.05)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("values", [[-0.77, 5.3, 0.0, 0.0], [-1.0, 2.0], [-3.0, -5.0], [2.0, 1.5]], ids=str)
def test_prediction_is_exact_for_min_and_max_alone(values: list[float], bits: int) -> None:
    data = torch.tensor(values)
    energy = observed(data, bits).predicted_energy(widest(data))
    assert energy.signal == pytest.approx(sum(value**2 for value in values))
    assert energy.sqnr_db == pytest.approx(sqnr_db(data, widest(data), bits), abs=1e-6)


@pytest.mark.parametrize("value", [5.3, -0.77, 1.0])
def test_a_single_value_counts_once(value: float) -> None:
    observer = observed(torch.tensor([value], dtype=torch.float64))
    assert observer.predicted_energy(observer.range()).signal == pytest.approx(value**2)


def test_a_bin_without_width_does_not_drown_in_rounding() -> None:
    values = torch.tensor([-0.77] + [1.0] * 1000 + [1 + 2.0**-52], dtype=torch.float64)
    predicted = observed(values).predicted_energy(widest(values)).sqnr_db
    assert predicted == pytest.approx(sqnr_db(values, widest(values), 8), abs=1e-3)


def test_noise_is_not_negative_however_often_values_repeat() -> None:
    observer = observed(torch.tensor([1.0, 1 + 2.0**-19.9], dtype=torch.float64), bits=1)
    for _ in range(36):
        observer = observer.merge(observer)
    observer = observer.merge(observed(torch.tensor([0.985, 0.984], dtype=torch.float64), bits=1))
    assert observer.predicted_energy(ActivationRange(torch.zeros(()), torch.ones(()))).noise >= 0


@thorough
@given(values=weights(max_rows=4), bits=st.sampled_from([8, 4, 1, 16]))
def test_no_range_is_predicted_worse_than_min_and_max_or_is_wider(values: Tensor, bits: int) -> None:
    observer, all_of_it = observed(values, bits), widest(values)
    chosen = observer.range()
    assert observer.predicted_energy(chosen).noise <= observer.predicted_energy(all_of_it).noise
    assert all_of_it.low <= chosen.low <= 0 <= chosen.high <= all_of_it.high


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("kind", ["gaussian", "student t", "gelu", "far below zero", "outliers"])
def test_search_finds_what_an_exhaustive_one_finds(kind: str, bits: int) -> None:
    values = DATA[kind](100_000, 0) if kind in DATA else torch.cat([normal(100_000), torch.tensor([-30.0, 9.0, 20.0])])
    observer = observed(values, bits)
    span = widest(values)
    tries = [
        observer.predicted_energy(ActivationRange(span.low * 2.0**-i, span.high * 2.0**-j)).noise
        for i in torch.arange(0, 5, 1 / 3).tolist()
        for j in torch.arange(0, 5, 1 / 3).tolist()
    ]
    assert observer.predicted_energy(observer.range()).noise <= min(tries) * 1.005


@pytest.mark.parametrize("values", [[5.3], [-5.3], [0.0, 1.0], [-1.0, 0.0, 1.0], [0.0], [-2.0, 3.0]], ids=str)
@pytest.mark.parametrize("bits", [8, 4])
def test_few_distinct_values_keep_min_and_max(values: list[float], bits: int) -> None:
    data = torch.tensor(values * 50)
    span, expected = observed(data, bits).range(), widest(data)
    assert (span.low, span.high) == (expected.low, expected.high)


@pytest.mark.parametrize("factor", [1e-44, 1e-30, 1e30])
def test_magnitude_makes_no_difference(factor: float) -> None:
    values = torch.cat([normal(20_000), torch.tensor([30.0])]).double()
    span, scaled = observed(values, 4).range(), observed(values * factor, 4).range()
    if factor > 1e-38:
        assert float(scaled.high) == pytest.approx(float(span.high) * factor, rel=0.05)
    else:
        # All codes are zero, because a scale is a normal float32: nothing is to be gained.
        assert float(scaled.high) == pytest.approx(30 * factor)


@pytest.mark.parametrize("factor", [1e200, 1e300, 1e-300, 1e-323])
def test_doubles_beyond_float32_keep_min_and_max(factor: float) -> None:
    values = torch.cat([normal(2_000), torch.tensor([30.0])]).double() * factor
    observer = observed(values)
    assert float(observer.range().high) == float(values.max())
    if factor < 1:
        assert observer.predicted_energy(observer.range()).noise == 0


def counted_one_by_one(values: list[float]) -> list[list[int]]:
    counts = [[0] * (OCTAVES * PER_OCTAVE + 1) for _ in range(2)]
    _, top = math.frexp(max(abs(value) for value in values))
    for value in values:
        mantissa, exponent = math.frexp(abs(value))
        octave = exponent - (top - OCTAVES + 1)
        position = octave * PER_OCTAVE + math.floor((2 * mantissa - 1) * PER_OCTAVE) + 1
        counts[value < 0][position if value and octave >= 0 else 0] += 1
    return counts


@thorough
@given(values=weights(max_rows=8, max_columns=40), factor=st.sampled_from([1.0, 2.0**-33, 2.0**40]))
def test_counts_are_those_of_counting_one_by_one(values: Tensor, factor: float) -> None:
    both = torch.cat([values.double(), values.double() * factor], dim=0)
    observer = observed(values.double())
    observer.update(values.double() * factor)
    assert observer._counts[0].tolist() == counted_one_by_one(both.flatten().tolist())
    assert int(observer._counts.sum()) == observer.count


@pytest.mark.parametrize("axis", [None, -1])
def test_chunks_make_no_difference(axis: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(9_000, 3, generator=Generator().manual_seed(0))
    whole, chunked = HistogramObserver(channel_axis=axis), HistogramObserver(channel_axis=axis)
    whole.update(values)
    monkeypatch.setattr(histogram_module, "_ELEMENTS_AT_ONCE", 1)
    chunked.update(values)
    assert torch.equal(whole._counts, chunked._counts)


def test_energies_of_channels_add_up() -> None:
    values = torch.stack([normal(1_000), 100 * normal(1_000, 1), torch.zeros(1_000)])
    observer = HistogramObserver(channel_axis=0)
    observer.update(values)
    span = observer.range()
    channels = zip(values, span.low, span.high, strict=True)
    parts = [observed(row).predicted_energy(ActivationRange(low, high)) for row, low, high in channels]
    energy = observer.predicted_energy(span)
    assert energy.noise == pytest.approx(sum(part.noise for part in parts))
    assert energy.signal == pytest.approx(sum(part.signal for part in parts))
    assert energy.signal == pytest.approx(float((values.double() ** 2).sum()), rel=0.01)


def test_a_range_of_another_shape_is_not_predicted() -> None:
    observer = HistogramObserver(channel_axis=0)
    observer.update(torch.ones(3, 4))
    for shape in ([], [2], [1]):
        with pytest.raises(InputError, match="3 observed channels"):
            observer.predicted_energy(ActivationRange(torch.zeros(shape), torch.ones(shape)))


def test_without_usable_values_nothing_is_predicted() -> None:
    span = ActivationRange(torch.zeros(()), torch.ones(()))
    with pytest.raises(InputError, match="saw no values"):
        HistogramObserver().predicted_energy(span)
    with pytest.raises(InputError, match="1 of 2"):
        observed(torch.tensor([1.0, torch.inf])).predicted_energy(span)


@pytest.mark.parametrize("bits", [0, 17, True, 8.0, "4", None])
def test_bad_bits_are_refused(bits: Any) -> None:
    with pytest.raises(ConfigError, match=r"bits=.*1 to 16"):
        HistogramObserver(bits)
