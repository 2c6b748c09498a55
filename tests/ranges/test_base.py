"""What all observers do with what they are shown: shapes, dtypes, channels, and what they refuse."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monoquant.errors import ConfigError, InputError, PluginError
from monoquant.ranges import (
    BUILT_IN_OBSERVERS,
    AutoObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageObserver,
    ObserverKind,
    RangeObserver,
)
from monoquant.testing.strategies import weights

NAMES = ("minmax", "moving_average", "histogram", "auto")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn)
CLASSES = (MinMaxObserver, MovingAverageObserver, HistogramObserver, AutoObserver)
every_observer = pytest.mark.parametrize("name", NAMES)
quick = settings(deadline=None, max_examples=40)


def observer_named(name: str, channel_axis: int | None = None) -> RangeObserver:
    """A fresh one of the observers that callers name."""
    kind = next(kind for kind in BUILT_IN_OBSERVERS if kind.name == name)
    return functools.partial(kind.create, channel_axis=channel_axis)() if channel_axis is not None else kind.observer()


def shown(observer: RangeObserver, *updates: torch.Tensor) -> RangeObserver:
    for values in updates:
        observer.update(values)
    return observer


def limits(observer: RangeObserver) -> list[Any]:
    span = observer.range()
    return [span.low.tolist(), span.high.tolist()]


@pytest.mark.parametrize("name", ["minmax", "moving_average", "histogram"])
@quick
@given(values=weights(max_rows=4, max_columns=40), axis=st.sampled_from([0, 1, 2, -1, -2, -3]))
def test_each_channel_gets_the_range_of_its_slice(name: str, values: torch.Tensor, axis: int) -> None:
    values = torch.stack([values, -values, values * 2.0**-20])
    channels = values.shape[axis]
    if channels > 8:
        values, channels = values.narrow(axis, 0, 8), 8
    together = shown(observer_named(name, channel_axis=axis), values, values / 3).range()
    alone = [
        shown(observer_named(name), values.select(axis, i), values.select(axis, i) / 3).range() for i in range(channels)
    ]
    assert torch.equal(together.low, torch.stack([span.low for span in alone]))
    assert torch.equal(together.high, torch.stack([span.high for span in alone]))


@every_observer
@pytest.mark.parametrize("shape", [(), (7,), (2, 3), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_shape_and_float_dtype_is_taken(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    observer = shown(observer_named(name), values)
    assert observer.count == values.numel()
    span = observer.range()
    exact = values.double()
    assert float(span.low) >= min(0.0, float(exact.min()))
    assert float(span.high) <= max(0.0, float(exact.max()))
    assert float(span.high - span.low) > 0


@every_observer
def test_empty_tensors_count_as_nothing(name: str) -> None:
    observer = observer_named(name, channel_axis=-1)
    shown(observer, torch.empty(0, 5), torch.ones(2, 3), torch.empty(4, 0), torch.empty(0, 7))
    assert observer.count == 6
    plain = shown(observer_named(name, channel_axis=-1), torch.ones(2, 3))
    assert limits(observer) == limits(plain)


@every_observer
def test_without_values_there_is_no_range(name: str) -> None:
    with pytest.raises(InputError, match="saw no values"):
        shown(observer_named(name), torch.empty(0)).range()


@every_observer
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("axis", [None, 0])
def test_non_finite_values_are_counted_and_refused(name: str, bad: float, axis: int | None) -> None:
    observer = shown(observer_named(name, axis), torch.ones(2, 5), torch.tensor([[1, bad, 2], [bad, bad, 3]]))
    shown(observer, torch.zeros(2, 1))
    assert (observer.count, observer.non_finite) == (18, 3)
    with pytest.raises(InputError, match=r"3 of 18 values.*repair the model or its inputs"):
        observer.range()


@every_observer
def test_only_non_finite_values_are_refused_alone_and_merged(name: str) -> None:
    broken, sound = shown(observer_named(name), torch.tensor([torch.nan])), shown(observer_named(name), torch.ones(3))
    for observer in (broken.merge(sound), sound.merge(broken), broken.merge(broken)):
        assert observer.non_finite >= 1
        with pytest.raises(InputError, match="NaN or Inf"):
            observer.range()


@every_observer
def test_a_changed_number_of_channels_is_refused(name: str) -> None:
    observer = shown(observer_named(name, channel_axis=1), torch.ones(2, 3))
    with pytest.raises(InputError, match="4 channels after 3"):
        observer.update(torch.ones(2, 4))
    assert observer.count == 6
    shown(observer, torch.ones(9, 3, 2))
    assert observer.range().low.shape == (3,)


@pytest.mark.parametrize(("shape", "axis"), [((), 0), ((), -1), ((3,), 1), ((3,), -2), ((2, 3), 2)], ids=str)
def test_a_shape_without_the_channel_axis_is_refused(shape: tuple[int, ...], axis: int) -> None:
    with pytest.raises(InputError, match=rf"no dimension {axis}"):
        MinMaxObserver(channel_axis=axis).update(torch.ones(shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_values_that_are_not_float_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=str(dtype)):
        MinMaxObserver().update(torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("axis", [True, "-1", 1.0, (0,)])
@pytest.mark.parametrize("make", CLASSES)
def test_a_bad_channel_axis_is_refused(make: Callable[..., RangeObserver], axis: Any) -> None:
    with pytest.raises(ConfigError, match="channel_axis="):
        make(channel_axis=axis)


@every_observer
def test_state_is_a_copy_without_history(name: str) -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    observer, untouched = observer_named(name), observer_named(name)
    work = values * 2
    observer.update(work)
    untouched.update(work.detach().clone())
    with torch.no_grad():
        work.zero_()
    assert limits(observer) == limits(untouched)
    assert not any(value.requires_grad for value in vars(observer).values() if isinstance(value, torch.Tensor))


@every_observer
def test_inference_mode_and_normal_mode_may_alternate(name: str) -> None:
    parts = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [100.0], [0.01]])
    mixed = observer_named(name)
    for index, part in enumerate(parts):
        with torch.inference_mode(index != 1):
            mixed.update(part.clone())
    assert limits(mixed) == limits(shown(observer_named(name), *parts))


@every_observer
def test_another_default_device_or_dtype_changes_nothing(name: str) -> None:
    values = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    expected = limits(shown(observer_named(name, -1), values, values / 9))
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            found = limits(shown(observer_named(name, -1), values, values / 9))
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == expected


@every_observer
def test_range_does_not_change_the_observer(name: str) -> None:
    observer = shown(observer_named(name), torch.tensor([-1.0, 2.0, 0.5]))
    observer.range().low.fill_(-7)
    expected = limits(copy.deepcopy(observer))
    assert limits(observer) == expected == limits(shown(observer_named(name), torch.tensor([-1.0, 2.0, 0.5])))


@every_observer
def test_observers_have_names(name: str) -> None:
    observer = observer_named(name, -1)
    assert type(observer) is CLASSES[NAMES.index(name)]
    assert observer.channel_axis == -1
    assert observer_named(name).channel_axis is None


@pytest.mark.parametrize("create", [None, "minmax", 3])
def test_what_makes_no_observer_is_refused(create: Any) -> None:
    with pytest.raises(ConfigError, match="give a class, or a function that returns a fresh RangeObserver"):
        ObserverKind("mine", create)


def test_what_makes_something_else_is_refused() -> None:
    with pytest.raises(PluginError, match=r"observer 'mine' made \[\]: its create must return a fresh RangeObserver"):
        ObserverKind("mine", list).observer()
