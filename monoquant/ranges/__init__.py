"""Observers that choose the range of activations: min and max, moving average, least-error histogram."""

from __future__ import annotations

from monoquant.ranges.auto import AutoObserver
from monoquant.ranges.base import ActivationRange, ObserverKind, RangeObserver
from monoquant.ranges.histogram import HistogramObserver
from monoquant.ranges.minmax import MinMaxObserver
from monoquant.ranges.moving_average import MovingAverageObserver

__all__ = [
    "BUILT_IN_OBSERVERS",
    "ActivationRange",
    "AutoObserver",
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageObserver",
    "ObserverKind",
    "RangeObserver",
]

BUILT_IN_OBSERVERS: tuple[ObserverKind, ...] = (
    ObserverKind("minmax", MinMaxObserver),
    ObserverKind("moving_average", MovingAverageObserver),
    ObserverKind("histogram", HistogramObserver),
    ObserverKind("auto", AutoObserver),
)
