"""Where values stand in a plot."""

from __future__ import annotations

import math
from collections.abc import Iterable

import attrs

_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
MOST = 999.0  # decibels; what is beyond is drawn as infinite
LANE = 18.0  # pixels for values that are not finite


@attrs.frozen
class Axis:
    """Decibels along a line, with lanes at its ends for what is not finite.

    Args:
        low: Smallest value of the scale.
        high: Largest value of the scale.
        start: Pixel of ``low``; may lie behind ``end``.
        end: Pixel of ``high``.
    """

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def of(cls, values: Iterable[float], start: float, end: float) -> Axis:
        """An axis that shows all values and the thresholds at 10 and 20 dB.

        Args:
            values: dB; may hold inf and nan.
            start: First pixel.
            end: Last pixel.
        """
        known = [_drawn(value) for value in values]
        finite = [value for value in known if math.isfinite(value)]
        step = _step(max([*finite, 25.0]) - min([*finite, 5.0]))
        low, high = math.floor(min([*finite, 5.0]) / step) * step, math.ceil(max([*finite, 25.0]) / step) * step
        towards = math.copysign(LANE, end - start)
        below = any(math.isnan(value) or value == -math.inf for value in known)
        return cls(low, high, start + towards * below, end - towards * (math.inf in known))

    def __call__(self, value: float) -> float:
        """The pixel of a value.

        Args:
            value: dB; inf stands beyond ``high``, nan and -inf before ``low``.
        """
        towards = math.copysign(LANE * 0.6, self.end - self.start)
        value = _drawn(value)
        if value == math.inf:
            return self.end + towards
        if not math.isfinite(value):
            return self.start - towards
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values from ``low`` to ``high``."""
        step = _step(self.high - self.low)
        first = math.ceil(self.low / step)
        return [index * step for index in range(first, math.floor(self.high / step) + 1)]


def _drawn(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) > MOST else value


def _step(span: float) -> float:
    return next(step for step in _STEPS if span / step <= 8)
