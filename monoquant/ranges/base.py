"""What all range observers share: the range itself, and how values are shown, counted and merged."""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable
from typing import Any, Self

import attrs
import torch
from torch import Tensor

from monoquant.errors import ConfigError, InputError, PluginError
from monoquant.numerics.affine import round_away_from_zero

MAX_BITS = 16
_SAME_CHANNELS = "the channel_axis must have the same length every time"


def check_bits(bits: Any) -> None:
    """Refuse a width that codes cannot have.

    Args:
        bits: What was given; a whole number from 1 to 16 is right.

    Raises:
        ConfigError: For anything else.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= MAX_BITS:
        raise ConfigError(f"bits={bits!r}: give a whole number of bits from 1 to {MAX_BITS}")


def _at_most_zero(low: Tensor) -> Tensor:
    return low.detach().cpu().double().clamp_max(0)


def _at_least_zero(high: Tensor) -> Tensor:
    return high.detach().cpu().double().clamp_min(0)


@attrs.frozen(eq=False)
class ActivationRange:
    """The values that codes have to span; zero is always among them.

    Args:
        low: Smallest value, any float dtype, finite: ``[]`` for one range, ``[channels]`` for one per channel. Kept as
            float64 on the CPU; a positive value becomes 0, so that zero stays exact.
        high: Largest value, in the same form; a negative value becomes 0.

    Raises:
        InputError: For shapes that differ or have two dimensions or more, and for NaN and Inf.
    """

    low: Tensor = attrs.field(converter=_at_most_zero)
    high: Tensor = attrs.field(converter=_at_least_zero)

    def __attrs_post_init__(self) -> None:
        if self.low.shape != self.high.shape or self.low.dim() > 1:
            shapes = f"{list(self.low.shape)} and {list(self.high.shape)}"
            raise InputError(f"A range of shapes {shapes}: give low and high both as [] or both as [channels].")
        if not (torch.isfinite(self.low).all() and torch.isfinite(self.high).all()):
            raise InputError("A range whose low or high is NaN or Inf: give finite values.")

    def affine(self, bits: int = 8) -> tuple[Tensor, Tensor]:
        """Scale and zero point of unsigned codes ``q = clamp(round(x / scale) + zero_point, 0, 2**bits - 1)``.

        ``(q - zero_point) * scale`` is within half a scale of every x in the range, up to float rounding, and zero is
        exact (Jacob et al. 2018, as torch.ao's ``MinMaxObserver`` with ``quint8``). The scale is rounded up to
        float32, so that the range fits its codes.

        Args:
            bits: Bits per code, 1 to 16, default 8.

        Returns:
            scale, float32, and zero_point, int32 in 0..2**bits - 1, both of the range's shape. The scale is a normal
            float32: one for the empty range, the smallest normal one for ranges too narrow for float32, the largest
            finite one for ranges too wide for it.

        Raises:
            ConfigError: For bits that are no whole number from 1 to 16.
        """
        check_bits(bits)
        max_code = 2**bits - 1
        limits = torch.finfo(torch.float32)
        exact = (self.high - self.low) / max_code
        scale = round_away_from_zero(exact.clamp(limits.smallest_normal, limits.max), torch.float32)
        scale = torch.where(self.low == self.high, torch.ones_like(scale), scale)
        zero_point = torch.round(-self.low / scale.double()).clamp(0, max_code).to(torch.int32)
        return scale, zero_point


class RangeObserver(abc.ABC):
    """Remembers enough of the activations it is shown to choose their range.

    ``monoquant.testing.ObserverConformance`` tests what is asked of one.

    Args:
        channel_axis: None (default) for one range of all values; otherwise the dimension of the activations whose
            every index gets a range of its own, such as -1 for the last one.

    Attributes:
        channel_axis: As given.
        count: Values seen so far, NaN and Inf included.
        non_finite: How many of them were NaN or Inf.

    Raises:
        ConfigError: For a channel_axis that is neither None nor a whole number.
    """

    def __init__(self, *, channel_axis: int | None = None) -> None:
        if isinstance(channel_axis, bool) or not isinstance(channel_axis, int | None):
            raise ConfigError(f"channel_axis={channel_axis!r}: give None for one range, or a dimension such as -1")
        self.channel_axis = channel_axis
        self.count = 0
        self.non_finite = 0
        self._channels: int | None = None

    def update(self, values: Tensor) -> None:
        """Show the observer one call's activations.

        Args:
            values: Any shape, float dtype and device; nothing of it is kept alive. An empty tensor counts as nothing.
                From a tensor with NaN or Inf only the counts are taken: no range can follow.

        Raises:
            InputError: For a dtype that is not float, a shape without the channel_axis, or a number of channels other
                than before.
        """
        if values.numel() == 0:
            return
        rows = self._by_channel(values.detach())
        if self._channels not in (None, len(rows)):
            raise InputError(f"Activations with {len(rows)} channels after {self._channels}: {_SAME_CHANNELS}.")
        self._begin(len(rows))
        low, high = rows.amin(1).cpu().double(), rows.amax(1).cpu().double()
        self.count += rows.numel()
        # NaN and Inf reach the extremes, so that finite values need no pass of their own.
        if torch.isfinite(low).all() and torch.isfinite(high).all():
            self._observe(rows, low, high)
        else:
            self.non_finite += int((~torch.isfinite(rows)).sum())

    def merge(self, other: Self) -> Self:
        """Combine with an observer of later data.

        Args:
            other: An observer of the same class with the same settings and channels; what it saw counts as seen after
                what this one saw.

        Returns:
            A new observer, as if it had been shown everything; both others stay as they are.

        Raises:
            ConfigError: For another class, other settings, or another number of channels.
        """
        if type(other) is not type(self):
            raise ConfigError(f"Merging a {type(other).__name__} into a {type(self).__name__}: give the same class.")
        if other._settings() != self._settings():
            raise ConfigError(f"Merging an observer with {other._settings()} into one with {self._settings()}.")
        # A shallow copy is enough, because no observer changes a tensor of its state in place.
        merged = copy.copy(self)
        merged.count += other.count
        merged.non_finite += other.non_finite
        if other._channels is not None:
            if self._channels not in (None, other._channels):
                raise ConfigError(f"Merging {other._channels} channels into {self._channels}: {_SAME_CHANNELS}.")
            merged._begin(other._channels)
            merged._absorb(other)
        return merged

    def range(self) -> ActivationRange:
        """The range chosen for what was seen.

        Returns:
            low and high of shape ``[]``, or ``[channels]`` with a channel_axis.

        Raises:
            InputError: If nothing was seen, or NaN or Inf was.
        """
        self._require_values()
        low, high = self._limits()
        return self._shaped(low, high)

    def _by_channel(self, values: Tensor) -> Tensor:
        """float32 or float64 ``[channels, n]``; narrower dtypes are exact in float32."""
        if not values.is_floating_point():
            raise InputError(f"Activations of {values.dtype}: only float activations have a range to quantize.")
        working = values if values.dtype == torch.float64 else values.float()
        if self.channel_axis is None:
            return working.reshape(1, -1)
        if not -values.dim() <= self.channel_axis < values.dim():
            shape = list(values.shape)
            raise InputError(f"Activations of shape {shape} have no dimension {self.channel_axis}, the channel_axis.")
        return working.movedim(self.channel_axis, 0).reshape(values.shape[self.channel_axis], -1)

    def _begin(self, channels: int) -> None:
        if self._channels is None:
            self._channels = channels
            self._reset(channels)

    def _require_values(self) -> None:
        if self.count == 0:
            raise InputError("The observer saw no values: run the model on calibration data that reaches the layer.")
        if self.non_finite:
            shares = f"{self.non_finite} of {self.count} values"
            raise InputError(f"The observer saw NaN or Inf in {shares}: repair the model or its inputs.")

    def _shaped(self, low: Tensor, high: Tensor) -> ActivationRange:
        return ActivationRange(low[0], high[0]) if self.channel_axis is None else ActivationRange(low, high)

    def _settings(self) -> dict[str, Any]:
        return {"channel_axis": self.channel_axis}

    @abc.abstractmethod
    def _reset(self, channels: int) -> None:
        """Set the state of an observer that has seen nothing."""

    @abc.abstractmethod
    def _observe(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        """Take in finite ``rows`` ``[channels, n]`` on any device; low and high ``[channels]``, float64 on the CPU."""

    @abc.abstractmethod
    def _absorb(self, other: Self) -> None:
        """Take in the state of another observer, as later data."""

    @abc.abstractmethod
    def _limits(self) -> tuple[Tensor, Tensor]:
        """Low and high, float64 ``[channels]``, zero not yet included."""


def _check_create(_instance: Any, _attribute: Any, value: Any) -> None:
    if not callable(value):
        raise ConfigError(f"create={value!r}: give a class, or a function that returns a fresh RangeObserver")


@attrs.frozen
class ObserverKind:
    """A kind of observer by name, and how a fresh one is made: one for each layer.

    Args:
        name: What ``observer=...`` calls it.
        create: Called without arguments; returns a RangeObserver that has seen nothing. A subclass, or a
            ``functools.partial`` of one for other settings than its defaults.

    Raises:
        ConfigError: When ``create`` cannot be called.
    """

    name: str
    create: Callable[[], RangeObserver] = attrs.field(validator=_check_create)

    def observer(self) -> RangeObserver:
        """A fresh observer.

        Raises:
            PluginError: When ``create`` returns something else.
        """
        made: object = self.create()
        if not isinstance(made, RangeObserver):
            raise PluginError(f"observer {self.name!r} made {made!r}: its create must return a fresh RangeObserver")
        return made
