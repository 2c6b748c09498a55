"""Observers that choose the range of activations: min and max, moving average, least-error histogram."""

from __future__ import annotations

from monoquant.errors import ConfigError
from monoquant.ranges.auto import AutoObserver
from monoquant.ranges.base import ActivationRange, RangeObserver
from monoquant.ranges.histogram import HistogramObserver
from monoquant.ranges.minmax import MinMaxObserver
from monoquant.ranges.moving_average import MovingAverageObserver

__all__ = [
    "ActivationRange",
    "AutoObserver",
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageObserver",
    "RangeObserver",
    "observer_named",
]


def observer_named(name: str, channel_axis: int | None = None) -> RangeObserver:
    """A fresh observer with default settings.

    Args:
        name: ``"minmax"``, ``"moving_average"``, ``"histogram"`` or ``"auto"``.
        channel_axis: None (default) for one range, or the dimension whose every index gets one.

    Returns:
        The observer, which has seen nothing.

    Raises:
        ConfigError: For another name, or a channel_axis that is neither None nor a whole number.
    """
    classes: dict[str, type[RangeObserver]] = {
        "minmax": MinMaxObserver,
        "moving_average": MovingAverageObserver,
        "histogram": HistogramObserver,
        "auto": AutoObserver,
    }
    if name not in classes:
        raise ConfigError(f"observer={name!r}: give one of {', '.join(map(repr, classes))}")
    return classes[name](channel_axis=channel_axis)
