"""An observer that breaks its contract fails the suite, in the test of the clause it breaks, and is told the way."""

from __future__ import annotations

import re
from typing import Any, Self

import pytest
import torch
from torch import Tensor

import monoquant as mq
from monoquant.ranges import ActivationRange, MinMaxObserver, MovingAverageObserver, RangeObserver
from monoquant.testing import ObserverConformance

pytestmark = pytest.mark.usefixtures("unshrunk")


def suite_of(given: Any, **attributes: Any) -> ObserverConformance:
    """The suite as an author would write it."""
    return type("TestMine", (ObserverConformance,), {"observer": given, **attributes})()


def clauses_of(suite: Any) -> list[str]:
    return [name for name in dir(suite) if name.startswith("test_")]


class CountsCalls(MinMaxObserver):
    def update(self, values: Tensor) -> None:
        super().update(values)
        self.count += 1 - values.numel()


class ZeroWithoutValues(MinMaxObserver):
    def range(self) -> ActivationRange:
        if self.count == 0:
            return ActivationRange(torch.zeros(()), torch.zeros(()))
        return super().range()


class IgnoresNan(MinMaxObserver):
    def _require_values(self) -> None:
        if self.count == self.non_finite:
            super()._require_values()

    def _begin(self, channels: int) -> None:
        super()._begin(channels)


class Widened(MinMaxObserver):
    def _limits(self) -> tuple[Tensor, Tensor]:
        return self._low * 1.01, self._high * 1.01


class OneForAll(MinMaxObserver):
    def _shaped(self, low: Tensor, high: Tensor) -> ActivationRange:
        return ActivationRange(low.amin(), high.amax())


class PooledChannels(MinMaxObserver):
    def _limits(self) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(self._low), self._high.amax().expand_as(self._high)


class Positive(MinMaxObserver):
    def _limits(self) -> tuple[Tensor, Tensor]:
        return self._low * 0, self._high * 0


class TakesIntegers(MinMaxObserver):
    def update(self, values: Tensor) -> None:
        super().update(values if values.is_floating_point() else values.float())


class Normalizes(MinMaxObserver):
    def update(self, values: Tensor) -> None:
        super().update(values)
        with torch.no_grad():
            values.mul_(0.5)


class KeepsViews(MinMaxObserver):
    def __init__(self, *, channel_axis: int | None = None) -> None:
        super().__init__(channel_axis=channel_axis)
        self._parts: list[Tensor] = []

    def _observe(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        super()._observe(rows, low, high)
        self._parts.append(rows)

    def _limits(self) -> tuple[Tensor, Tensor]:
        return self._low, torch.stack([part.amax(1) for part in self._parts]).amax(0) if self._parts else self._high


class DrawsFromTorch(MinMaxObserver):
    def _observe(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        torch.rand(2)
        super()._observe(rows, low, high)


class Fades(MinMaxObserver):
    def _limits(self) -> tuple[Tensor, Tensor]:
        found = self._low, self._high
        self._low, self._high = self._low / 2, self._high / 2
        return found


class MeanOfMeans(MinMaxObserver):
    """Merging weighs both sides alike, whatever each has seen."""

    def _absorb(self, other: Self) -> None:
        infinite = ~torch.isfinite(self._low)
        self._low = torch.where(infinite, other._low, (self._low + other._low) / 2)
        self._high = torch.where(infinite, other._high, (self._high + other._high) / 2)


class AbsorbsInPlace(MinMaxObserver):
    def _observe(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        self._low.copy_(torch.minimum(self._low, low))
        self._high.copy_(torch.maximum(self._high, high))


class WeighsNothing(MinMaxObserver):
    """An observer that was never shown anything halves the range of the other one."""

    def merge(self, other: Self) -> Self:
        merged = super().merge(other)
        if (self.count == 0 or other.count == 0) and merged.count:
            merged._low, merged._high = merged._low / 2, merged._high / 2
        return merged


class MergesAnything(MinMaxObserver):
    def _settings(self) -> dict[str, Any]:
        return {}


class Latest(MovingAverageObserver):
    """A moving average whose author forgot to say so."""


BROKEN: list[tuple[type[RangeObserver], str, str]] = [
    (CountsCalls, "test_it_counts_what_it_sees", "after 10 values.*RangeObserver.update count"),
    (ZeroWithoutValues, "test_it_has_no_range_without_values", "after nothing answered.*InputError.*_limits only"),
    (IgnoresNan, "test_it_has_no_range_without_values", "after NaN answered.*InputError"),
    (Widened, "test_the_range_is_within_what_was_seen", "further than what was seen.*clip"),
    (OneForAll, "test_the_range_is_within_what_was_seen", "shapes .*one low and one high per channel"),
    (Positive, "test_it_takes_any_shape_and_dtype", "which is empty.*smallest and largest"),
    (TakesIntegers, "test_it_takes_any_shape_and_dtype", "int64.*are taken.*RangeObserver.update check"),
    (Normalizes, "test_it_keeps_nothing_of_what_it_is_shown", "wrote to the activations.*copies"),
    (KeepsViews, "test_it_keeps_nothing_of_what_it_is_shown", "changed with activations.*not views"),
    (DrawsFromTorch, "test_it_keeps_nothing_of_what_it_is_shown", "changed torch's settings"),
    (Fades, "test_asking_changes_nothing", "differs when it is asked twice.*change nothing"),
    (MeanOfMeans, "test_merging_equals_seeing_everything", "one that saw everything.*add up"),
    (MeanOfMeans, "test_merging_is_associative", "from the right.*what each has seen"),
    (Latest, "test_order_makes_no_difference", "in another order.*order_matters = True"),
    (AbsorbsInPlace, "test_merging_leaves_both_alone", "changed an observer that was merged.*never write"),
    (WeighsNothing, "test_merging_with_nothing_adds_nothing", "an observer of nothing changes.*weigh nothing"),
    (MergesAnything, "test_what_does_not_fit_is_refused", "another channel_axis is allowed.*_settings"),
    (PooledChannels, "test_each_channel_has_its_own_range", "among others.*channels_are_separate = False"),
]


@pytest.mark.parametrize(("kind", "clause", "message"), BROKEN, ids=lambda one: getattr(one, "__name__", ""))
def test_a_broken_observer_fails_in_its_clause(kind: type[RangeObserver], clause: str, message: str) -> None:
    """The message says what was seen and how to repair it."""
    with pytest.raises(AssertionError) as failure:
        getattr(suite_of(kind), clause)()
    assert re.search(message, str(failure.value), re.DOTALL), failure.value
    assert "To repair it: " in str(failure.value)


def test_what_is_declared_is_allowed() -> None:
    """An observer whose order matters, or whose channels share a range, says so and passes."""
    suite_of(Latest, order_matters=True).test_order_makes_no_difference()
    suite_of(PooledChannels, channels_are_separate=False).test_each_channel_has_its_own_range()


def test_every_clause_is_broken_by_one_of_them() -> None:
    """A new test of the suite needs an observer that fails it."""
    assert {clause for _, clause, _ in BROKEN} == set(clauses_of(ObserverConformance))


@pytest.mark.parametrize("given", [None, MinMaxObserver(), "minmax", dict])
def test_what_is_no_observer_class_is_refused(given: Any) -> None:
    """Nothing, an instance and a name are errors that say what to write."""
    with pytest.raises(mq.ConfigError, match=r"TestMine.observer is .*: give a subclass of RangeObserver"):
        suite_of(given).test_it_counts_what_it_sees()


def test_fresh_makes_fresh_ones() -> None:
    """An observer that has seen something would make every test pass or fail for the wrong reason."""
    seen = MinMaxObserver()
    seen.update(torch.ones(3))
    with pytest.raises(mq.ConfigError, match="give an observer that has seen nothing"):
        suite_of(MinMaxObserver, fresh=lambda *_: seen).test_it_counts_what_it_sees()
