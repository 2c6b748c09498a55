"""The range of min and max: exact, whatever the dtype, and blind to order and repetition."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monoquant.ranges import MinMaxObserver
from monoquant.testing.strategies import weights

quick = settings(deadline=None, max_examples=100)


def shown(*updates: torch.Tensor, axis: int | None = None) -> MinMaxObserver:
    observer = MinMaxObserver(channel_axis=axis)
    for values in updates:
        observer.update(values)
    return observer


@quick
@given(values=weights())
def test_range_is_min_and_max_with_zero(values: torch.Tensor) -> None:
    span = shown(values).range()
    assert float(span.low) == min(0.0, float(values.double().min()))
    assert float(span.high) == max(0.0, float(values.double().max()))
    assert span.low.shape == span.high.shape == ()
    assert span.low.dtype == span.high.dtype == torch.float64


@quick
@given(values=weights(), cut=st.integers(0, 24))
def test_only_the_extremes_of_all_updates_count(values: torch.Tensor, cut: int) -> None:
    span = shown(values[:cut], values, values[cut:], values.flip(0), axis=1).range()
    assert torch.equal(span.low, values.double().amin(0).clamp_max(0))
    assert torch.equal(span.high, values.double().amax(0).clamp_min(0))


def test_double_precision_is_kept() -> None:
    values = torch.tensor([-1 - 2.0**-50, 1 + 2.0**-50], dtype=torch.float64)
    span = shown(values).range()
    assert [float(span.low), float(span.high)] == values.tolist()
