"""The moving average: the weights it promises, and what has no weight."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monoquant.errors import ConfigError
from monoquant.ranges import MovingAverageObserver

quick = settings(deadline=None, max_examples=100)
values = st.floats(-1e6, 1e6)


def observed(constant: float, extremes: list[tuple[float, float]]) -> MovingAverageObserver:
    observer = MovingAverageObserver(constant)
    for pair in extremes:
        observer.update(torch.tensor(pair, dtype=torch.float64))
    return observer


@quick
@given(extremes=st.lists(st.tuples(values, values), min_size=1, max_size=20), constant=st.floats(1e-3, 1))
def test_weights_are_those_of_adam(extremes: list[tuple[float, float]], constant: float) -> None:
    n = len(extremes)
    weights = [constant * (1 - constant) ** (n - i) / (1 - (1 - constant) ** n) for i in range(1, n + 1)]
    low = math.fsum(weight * min(pair) for weight, pair in zip(weights, extremes, strict=True))
    high = math.fsum(weight * max(pair) for weight, pair in zip(weights, extremes, strict=True))
    span = observed(constant, extremes).range()
    assert float(span.low) == pytest.approx(min(low, 0), rel=1e-12, abs=1e-6)
    assert float(span.high) == pytest.approx(max(high, 0), rel=1e-12, abs=1e-6)


def test_the_first_update_is_not_special() -> None:
    first = torch.tensor([0.0, 100.0])
    observer = observed(0.01, [(0.0, 100.0)] + 68 * [(0.0, 0.0)])
    # torch.ao's moving average would still be above 50.
    expected = 100 * 0.01 * 0.99**68 / (1 - 0.99**69)
    assert float(observer.range().high) == pytest.approx(expected)
    assert float(observed(0.01, [tuple(first.tolist())]).range().high) == 100


def test_zero_is_included_in_the_mean_not_in_every_update() -> None:
    span = observed(1e-9, [(2.0, 3.0), (-1.0, 5.0)]).range()
    assert float(span.low) == 0
    assert float(span.high) == pytest.approx(4)


@quick
@given(extremes=st.lists(st.tuples(values, values), min_size=1, max_size=8))
def test_constant_one_takes_the_last_update(extremes: list[tuple[float, float]]) -> None:
    span = observed(1, extremes).range()
    assert float(span.low) == min(0, *extremes[-1])
    assert float(span.high) == max(0, *extremes[-1])


@pytest.mark.parametrize("constant", [1e-18, 1e-300])
def test_a_constant_near_zero_is_the_plain_mean(constant: float) -> None:
    observer = observed(constant, [(-1.0, 1.0), (-2.0, 4.0), (-9.0, 10.0)])
    assert float(observer.range().low) == pytest.approx(-4)
    assert float(observer.range().high) == pytest.approx(5)


def test_updates_of_all_sizes_weigh_the_same() -> None:
    observer = MovingAverageObserver(1e-6)
    observer.update(torch.ones(1000))
    observer.update(torch.tensor([3.0]))
    assert float(observer.range().high) == pytest.approx(2, abs=1e-5)


def test_the_largest_values_do_not_overflow() -> None:
    largest = torch.finfo(torch.float64).max
    assert float(observed(0.01, 50 * [(-largest, largest)]).range().high) == pytest.approx(largest)


def test_the_default_constant_is_a_hundredth() -> None:
    assert MovingAverageObserver().constant == 0.01


@pytest.mark.parametrize("constant", [0, -0.1, 1.1, math.nan, math.inf, True, "0.01", None])
def test_a_bad_constant_is_refused(constant: Any) -> None:
    with pytest.raises(ConfigError, match=r"constant=.*above 0 and up to 1"):
        MovingAverageObserver(constant)
