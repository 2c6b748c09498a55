"""The contract of range observers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from hypothesis import strategies as st
from torch import Generator, Tensor

from monoquant.errors import ConfigError, InputError
from monoquant.ranges import ActivationRange, RangeObserver
from monoquant.testing.conformance.base import Conformance, require
from monoquant.testing.strategies.inputs import activations
from monoquant.testing.unchanged import torch_settings

_AXES = st.none() | st.just(0)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_SHAPES = ((), (7,), (2, 3), (2, 3, 4, 5))


class ObserverConformance(Conformance):
    """Tests every range observer must pass.

    Example::

        class TestMine(ObserverConformance):
            observer = Mine

    Attributes:
        observer: The class to test; override :meth:`fresh` as well if its settings have no defaults.
        order_matters: Whether later values weigh more, so that order changes the range, as in a moving average; default
            False.
        channels_are_separate: Whether each channel's range depends on that channel alone; default True.
        tolerance: By how much ranges that should be equal may differ, relative to the largest magnitude; default 1e-9.
    """

    observer: type[RangeObserver]
    order_matters: ClassVar[bool] = False
    channels_are_separate: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-9

    def fresh(self, channel_axis: int | None = None) -> RangeObserver:
        """Make an observer that has seen nothing.

        Args:
            channel_axis: As of RangeObserver.
        """
        return self.observer(channel_axis=channel_axis)

    def test_it_counts_what_it_sees(self) -> None:
        """Every value counts once, NaN and Inf as well."""
        parts = [torch.ones(2, 3), torch.tensor([[torch.nan, 1.0], [-torch.inf, 2.0]]), torch.ones(2, 0)]
        found = _counts(self._shown(parts))
        broken = f"after 10 values, two of them NaN or Inf, count and non_finite are {found}."
        require(found == (10, 2), broken, "let RangeObserver.update count, and override _observe only")

    def test_it_has_no_range_without_values(self) -> None:
        """After nothing, empty tensors, NaN or Inf, ``range()`` raises InputError: no range can follow."""
        for what, parts in (
            ("nothing", []),
            ("empty tensors", [torch.ones(2, 0)]),
            ("NaN", [torch.ones(2, 1), torch.tensor([[torch.nan], [1.0]])]),
            ("Inf", [torch.tensor([[-torch.inf], [1.0]]), torch.ones(2, 1)]),
        ):
            for axis in (None, 0):
                found = _range_or_error(self._shown(parts, axis))
                broken = f"range() after {what} answered {found!r}, where it must raise InputError."
                require(
                    isinstance(found, InputError), broken, "let RangeObserver.range check, and override _limits only"
                )

    def test_the_range_is_within_what_was_seen(self) -> None:
        """Nothing is made up: low is at least the smallest value or 0, high at most the largest or 0."""

        @self.for_all(activations(), _AXES)
        def observes(parts: list[Tensor], axis: int | None) -> None:
            found = self._shown(parts, axis).range()
            rows = torch.cat(parts, dim=1)
            rows = rows.reshape(1, -1) if axis is None else rows
            low, high = rows.amin(1).clamp_max(0), rows.amax(1).clamp_min(0)
            shape = () if axis is None else (len(rows),)
            form = found.low.shape == found.high.shape == shape
            broken = (
                f"range() has the shapes {list(found.low.shape)} and {list(found.high.shape)}, expected {list(shape)}."
            )
            require(form, broken, "return one low and one high per channel from _limits")
            within = bool(
                (found.low >= low - self._room(parts)).all() and (found.high <= high + self._room(parts)).all()
            )
            broken = f"the range {found!r} reaches further than what was seen, {low.tolist()} to {high.tolist()}."
            require(within, broken, "clip what _limits returns to the smallest and the largest value seen")

    def test_it_takes_any_shape_and_dtype(self) -> None:
        """Scalars to four dimensions, all float dtypes, gradients; integers and missing dimensions are refused."""
        generator = Generator("cpu").manual_seed(0)
        for shape in _SHAPES:
            for dtype in _DTYPES:
                observer = self._fresh()
                observer.update(torch.randn(shape, generator=generator, dtype=dtype).requires_grad_())
                found = observer.range()
                broken = f"the range of {list(shape)} random values of {dtype} is {found!r}, which is empty."
                require(bool(found.high > found.low), broken, "return the smallest and largest value from _limits")
        for values, axis in ((torch.ones(3, dtype=torch.int64), None), (torch.ones(3), 1)):
            refused = _refusal(self._fresh(axis), values)
            broken = f"values of shape {list(values.shape)} and {values.dtype} with channel_axis={axis} are taken."
            require(
                isinstance(refused, InputError), broken, "let RangeObserver.update check, and override _observe only"
            )

    def test_it_keeps_nothing_of_what_it_is_shown(self) -> None:
        """The activations are left alone, and writing to them later changes no range; global settings neither."""

        @self.for_all(activations(), _AXES)
        def observes(parts: list[Tensor], axis: int | None) -> None:
            settings, shown = torch_settings(), [part.clone() for part in parts]
            observer = self._shown(shown, axis)
            same = all(torch.equal(one, other) for one, other in zip(shown, parts, strict=True))
            require(same, "the observer wrote to the activations it was shown.", "work on copies")
            before = observer.range()
            for part in shown:
                part.fill_(1e30)
            kept = self._same(before, observer.range(), parts)
            require(kept, "the observer's range changed with activations it was shown.", "keep copies, not views")
            require(torch_settings() == settings, "the observer changed torch's settings.", "leave them alone")

    def test_asking_changes_nothing(self) -> None:
        """``range()`` gives the same again, also after what it returned was written to."""

        @self.for_all(activations(), _AXES)
        def observes(parts: list[Tensor], axis: int | None) -> None:
            observer = self._shown(parts, axis)
            first = observer.range()
            kept = ActivationRange(first.low.clone(), first.high.clone())
            first.low.fill_(-1e30)
            same = self._same(kept, observer.range(), parts)
            require(same, "range() differs when it is asked twice.", "let _limits return copies, and change nothing")

    def test_merging_equals_seeing_everything(self) -> None:
        """Observers of parts, merged in order, have the range of one that saw all."""

        @self.for_all(activations(), _AXES)
        def merges(parts: list[Tensor], axis: int | None) -> None:
            whole, merged = self._shown(parts, axis), _merged([self._shown([part], axis) for part in parts])
            equal = _counts(whole) == _counts(merged) and self._same(whole.range(), merged.range(), parts)
            broken = f"merged observers have the range {merged.range()!r}, one that saw everything {whole.range()!r}."
            require(equal, broken, "keep sums, counts or extremes rather than figures that do not add up")

    def test_merging_is_associative(self) -> None:
        """It makes no difference which neighbours are merged first."""

        @self.for_all(activations(), _AXES)
        def merges(parts: list[Tensor], axis: int | None) -> None:
            left = _merged([self._shown([part], axis) for part in parts])
            right = self._shown(parts[-1:], axis)
            for part in reversed(parts[:-1]):
                right = self._shown([part], axis).merge(right)
            broken = f"merged from the left the range is {left.range()!r}, from the right {right.range()!r}."
            remedy = "weigh both sides by what each has seen"
            require(self._same(left.range(), right.range(), parts), broken, remedy)

    def test_order_makes_no_difference(self) -> None:
        """Unless ``order_matters``, the range is that of the set of values."""

        @self.for_all(activations().flatmap(lambda parts: st.tuples(st.just(parts), st.permutations(parts))), _AXES)
        def observes(pair: tuple[list[Tensor], list[Tensor]], axis: int | None) -> None:
            if self.order_matters:
                return
            one, other = (self._shown(parts, axis).range() for parts in pair)
            broken = f"the range is {one!r}, and {other!r} for the same values in another order."
            require(self._same(one, other, pair[0]), broken, "say order_matters = True if that is meant")

    def test_merging_leaves_both_alone(self) -> None:
        """The result is a new observer; showing it more changes neither of the two."""

        @self.for_all(activations(), activations(), _AXES)
        def merges(parts: list[Tensor], others: list[Tensor], axis: int | None) -> None:
            channels = min(len(parts[0]), len(others[0]))
            pair = [self._shown([part[:channels] for part in each], axis) for each in (parts, others)]
            before = [(_counts(observer), observer.range()) for observer in pair]
            for merged in (pair[0].merge(pair[1]), pair[0].merge(self._fresh(axis))):
                merged.update(torch.full((channels, 2), 1e30, dtype=torch.float64))
            for observer, (counts, kept) in zip(pair, before, strict=True):
                same = counts == _counts(observer) and self._same(kept, observer.range(), [*parts, *others])
                require(
                    same,
                    "merging changed an observer that was merged.",
                    "replace the tensors of the state, never write to them",
                )

    def test_merging_with_nothing_adds_nothing(self) -> None:
        """An observer that saw nothing is neutral, on either side."""

        @self.for_all(activations(), _AXES)
        def merges(parts: list[Tensor], axis: int | None) -> None:
            observer = self._shown(parts, axis)
            for merged in (observer.merge(self._fresh(axis)), self._fresh(axis).merge(observer)):
                same = _counts(merged) == _counts(observer) and self._same(merged.range(), observer.range(), parts)
                broken = f"merging with an observer of nothing changes {observer.range()!r} to {merged.range()!r}."
                require(same, broken, "let what was never shown anything weigh nothing")

    def test_what_does_not_fit_is_refused(self) -> None:
        """Another class, another axis or another number of channels is a ConfigError, not a wrong range."""
        mine = self._shown([torch.ones(2, 3)], 0)
        for what, other in (
            ("another class", object()),
            ("another channel_axis", self._fresh(1)),
            ("three channels", self._shown([torch.ones(3, 3)], 0)),
        ):
            try:
                mine.merge(other)  # type: ignore[arg-type]  # that is what is refused
            except ConfigError:
                continue
            raise AssertionError(
                f"merging with an observer of {what} is allowed.\nTo repair it: let RangeObserver.merge check, "
                "add your settings to _settings(), and override _absorb only"
            )

    def test_each_channel_has_its_own_range(self) -> None:
        """Unless channels are not separate, each gets the range it would get alone."""

        @self.for_all(activations())
        def observes(parts: list[Tensor]) -> None:
            if not self.channels_are_separate:
                return
            together = self._shown(parts, 0).range()
            for channel in range(len(parts[0])):
                alone = self._shown([part[channel] for part in parts]).range()
                ours = ActivationRange(together.low[channel], together.high[channel])
                broken = f"channel {channel} has the range {ours!r} among others, and {alone!r} alone."
                require(self._same(ours, alone, parts), broken, "say channels_are_separate = False if that is meant")

    def _fresh(self, axis: int | None = None) -> RangeObserver:
        found, suite = getattr(self, "observer", None), type(self).__name__
        overridden = type(self).fresh is not ObserverConformance.fresh
        if not overridden and not (isinstance(found, type) and issubclass(found, RangeObserver)):
            raise ConfigError(
                f"{suite}.observer is {found!r}: give a subclass of RangeObserver, 'observer = MyObserver'"
            )
        made: Any = self.fresh(axis)
        if not isinstance(made, RangeObserver) or _counts(made) != (0, 0):
            raise ConfigError(f"{suite} made {made!r}: give an observer that has seen nothing")
        return made

    def _shown(self, parts: Sequence[Tensor], axis: int | None = None) -> RangeObserver:
        observer = self._fresh(axis)
        for part in parts:
            observer.update(part)
        return observer

    def _room(self, parts: Sequence[Tensor]) -> float:
        largest = max((float(part.abs().max()) for part in parts if part.numel()), default=0.0)
        return self.tolerance * largest + 1e-300

    def _same(self, one: ActivationRange, other: ActivationRange, parts: Sequence[Tensor]) -> bool:
        room = self._room(parts)
        pairs = ((one.low, other.low), (one.high, other.high))
        return all(a.shape == b.shape and bool(((a - b).abs() <= room).all()) for a, b in pairs)


def _counts(observer: RangeObserver) -> tuple[int, int]:
    return observer.count, observer.non_finite


def _merged(observers: Sequence[RangeObserver]) -> RangeObserver:
    result = observers[0]
    for observer in observers[1:]:
        result = result.merge(observer)
    return result


def _range_or_error(observer: RangeObserver) -> Any:
    try:
        return observer.range()
    except Exception as error:
        return error


def _refusal(observer: RangeObserver, values: Tensor) -> Exception | None:
    try:
        observer.update(values)
    except Exception as error:
        return error
    return None
