"""The range of everything that was seen."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from monoquant.ranges.base import RangeObserver


class MinMaxObserver(RangeObserver):
    """Takes the smallest and the largest value as the range (torch.ao's ``MinMaxObserver``).

    Nothing is ever clipped, so a single outlier decides how coarse the codes get. Exact, and independent of the order
    of the data.

    Args:
        channel_axis: None (default) for one range, or the dimension whose every index gets one.
    """

    _low: Tensor
    _high: Tensor

    def _reset(self, channels: int) -> None:
        self._low = torch.full([channels], math.inf, device="cpu", dtype=torch.float64)
        self._high = torch.full([channels], -math.inf, device="cpu", dtype=torch.float64)

    def _observe(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        self._low = torch.minimum(self._low, low)
        self._high = torch.maximum(self._high, high)

    def _absorb(self, other: Self) -> None:
        self._low = torch.minimum(self._low, other._low)
        self._high = torch.maximum(self._high, other._high)

    def _limits(self) -> tuple[Tensor, Tensor]:
        return self._low, self._high
