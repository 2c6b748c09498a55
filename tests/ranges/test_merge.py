"""Merging equals having seen everything in one place, and min, max and counts do not even see the order."""

import copy
import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monoquant.errors import ConfigError
from monoquant.ranges import (
    BUILT_IN_OBSERVERS,
    AutoObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageObserver,
    RangeObserver,
)
from monoquant.testing.strategies import activations

NAMES = ("minmax", "moving_average", "histogram", "auto")
orderless = pytest.mark.parametrize("name", ["minmax", "histogram", "auto"])
axes = st.sampled_from([None, 0])
thorough = settings(deadline=None, max_examples=60)


def observer_named(name: str, channel_axis: int | None = None) -> RangeObserver:
    """A fresh one of the observers that callers name."""
    kind = next(kind for kind in BUILT_IN_OBSERVERS if kind.name == name)
    return functools.partial(kind.create, channel_axis=channel_axis)() if channel_axis is not None else kind.observer()


def shown(name: str, axis: int | None, updates: list[torch.Tensor]) -> RangeObserver:
    observer = observer_named(name, axis)
    for values in updates:
        observer.update(values)
    return observer


def merged(observers: list[RangeObserver]) -> RangeObserver:
    result = observers[0]
    for observer in observers[1:]:
        result = result.merge(observer)
    return result


def same_state(first: RangeObserver, second: RangeObserver) -> bool:
    mine, others = vars(first), vars(second)
    return mine.keys() == others.keys() and all(
        torch.equal(value, others[key]) if isinstance(value, torch.Tensor) else value == others[key]
        for key, value in mine.items()
    )


@orderless
@thorough
@given(parts=activations(), axis=axes)
def test_merging_equals_seeing_everything(name: str, parts: list[torch.Tensor], axis: int | None) -> None:
    together = shown(name, axis, parts)
    assert same_state(merged([shown(name, axis, [part]) for part in parts]), together)
    assert same_state(together, shown(name, axis, [torch.cat(parts, dim=1)]))


@orderless
@thorough
@given(parts=activations(), axis=axes, data=st.data())
def test_order_makes_no_difference(name: str, parts: list[torch.Tensor], axis: int | None, data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(parts))
    assert same_state(shown(name, axis, parts), shown(name, axis, shuffled))
    assert same_state(
        merged([shown(name, axis, [part]) for part in parts]), merged([shown(name, axis, [part]) for part in shuffled])
    )


@orderless
@thorough
@given(parts=activations(), axis=axes, seed=st.integers(0, 99))
def test_merging_is_associative(name: str, parts: list[torch.Tensor], axis: int | None, seed: int) -> None:
    observers = [shown(name, axis, [part]) for part in parts]
    from_the_left = merged(observers)
    generator = torch.Generator().manual_seed(seed)
    while len(observers) > 1:
        at = int(torch.randint(len(observers) - 1, [], generator=generator))
        observers[at : at + 2] = [observers[at].merge(observers[at + 1])]
    assert same_state(from_the_left, observers[0])


@thorough
@given(parts=activations(), axis=axes, constant=st.floats(1e-12, 1), cut=st.integers(0, 6))
def test_merged_moving_averages_equal_one_of_all_updates(
    parts: list[torch.Tensor], axis: int | None, constant: float, cut: int
) -> None:
    observers = [MovingAverageObserver(constant, channel_axis=axis) for _ in range(3)]
    for index, part in enumerate(parts):
        observers[2].update(part)
        observers[index >= cut].update(part)
    merge, together = observers[0].merge(observers[1]).range(), observers[2].range()
    scale = max(float(part.abs().max()) for part in parts if part.numel())
    for found, expected in ((merge.low, together.low), (merge.high, together.high)):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14 * scale + 1e-321)


def test_a_moving_average_knows_what_came_last() -> None:
    early, late = (MovingAverageObserver(0.5) for _ in range(2))
    early.update(torch.tensor(1.0))
    late.update(torch.tensor(4.0))
    # Weights 1/3 and 2/3: half as much for the earlier one.
    assert float(early.merge(late).range().high) == pytest.approx(3)
    assert float(late.merge(early).range().high) == pytest.approx(2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("axis", [None, -1])
def test_merging_leaves_both_alone(name: str, axis: int | None) -> None:
    first, second = shown(name, axis, [torch.ones(3, 2)]), shown(name, axis, [1e6 * torch.randn(5, 2)])
    before = copy.deepcopy(first), copy.deepcopy(second)
    result = first.merge(second)
    result.update(torch.full((2, 2), -1e9))
    first.merge(observer_named(name, axis)).update(torch.full((2, 2), 0.5))
    assert same_state(first, before[0])
    assert same_state(second, before[1])
    assert result.count == 20


@pytest.mark.parametrize("name", NAMES)
def test_an_observer_of_nothing_adds_nothing(name: str) -> None:
    nothing, something = observer_named(name, 0), shown(name, 0, [torch.randn(2, 9), torch.randn(2, 9)])
    assert same_state(nothing.merge(something), something)
    assert same_state(something.merge(nothing), something)
    assert nothing.merge(nothing).count == 0


@pytest.mark.parametrize("name", NAMES)
def test_non_finite_counts_add_up(name: str) -> None:
    parts = [torch.tensor([1.0, torch.nan]), torch.tensor([torch.inf, torch.inf, 2.0])]
    result = merged([shown(name, None, [part]) for part in parts])
    assert (result.count, result.non_finite) == (5, 3)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (MinMaxObserver(), HistogramObserver()),
        (HistogramObserver(), MinMaxObserver()),
        (HistogramObserver(), AutoObserver()),
        (MinMaxObserver(), "minmax"),
    ],
)
def test_another_class_is_refused(first: RangeObserver, second: Any) -> None:
    with pytest.raises(ConfigError, match="same class"):
        first.merge(second)


@pytest.mark.parametrize(
    ("first", "second", "setting"),
    [
        (MinMaxObserver(), MinMaxObserver(channel_axis=0), "channel_axis"),
        (MinMaxObserver(channel_axis=1), MinMaxObserver(channel_axis=-1), "channel_axis"),
        (MovingAverageObserver(0.1), MovingAverageObserver(0.2), "constant"),
        (HistogramObserver(4), HistogramObserver(8), "bits"),
        (AutoObserver(4), AutoObserver(8), "bits"),
    ],
)
def test_other_settings_are_refused(first: RangeObserver, second: RangeObserver, setting: str) -> None:
    with pytest.raises(ConfigError, match=setting):
        first.merge(second)


@pytest.mark.parametrize("name", NAMES)
def test_another_number_of_channels_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="3 channels into 2"):
        shown(name, 0, [torch.ones(2, 1)]).merge(shown(name, 0, [torch.ones(3, 1)]))
