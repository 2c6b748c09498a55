"""The mean range of recent updates."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from monoquant.errors import ConfigError
from monoquant.ranges.base import RangeObserver


def _check_constant(constant: Any) -> float:
    if isinstance(constant, bool) or not isinstance(constant, int | float) or not 0 < constant <= 1:
        raise ConfigError(f"constant={constant!r}: give a number above 0 and up to 1, such as 0.01")
    return float(constant)


class MovingAverageObserver(RangeObserver):
    """Takes the exponentially weighted mean of each update's smallest and largest value as the range.

    Of n updates the i-th weighs ``c * (1 - c)**(n - i)``, divided by ``1 - (1 - c)**n`` so that the weights add up to
    one (the bias correction of Adam, Kingma & Ba 2015). torch.ao's ``MovingAverageMinMaxObserver`` starts from the
    first update instead, which then weighs ``(1 - c)**(n - 1)``: with c = 0.01 more than all others together until
    the 70th. Here no update is special, which is why merging equals having seen all updates in one place. Tensors of
    all sizes weigh the same; what only few updates show is mostly clipped.

    Args:
        constant: Weight c of the newest update, ``0 < c <= 1``, default 0.01. 1 forgets all but the last update; near
            0 all updates weigh the same.
        channel_axis: None (default) for one range, or the dimension whose every index gets one.

    Raises:
        ConfigError: For a constant out of bounds.
    """

    _updates: int
    _weight: float  # sum of (1 - c)**(n - i) over the updates: the common factor c cancels out of the mean
    _means: Tensor  # float64 [2, channels]: of the smallest, and of the largest values

    def __init__(self, constant: float = 0.01, *, channel_axis: int | None = None) -> None:
        super().__init__(channel_axis=channel_axis)
        self.constant = _check_constant(constant)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "constant": self.constant}

    def _reset(self, channels: int) -> None:
        self._updates, self._weight = 0, 0.0
        self._means = torch.zeros(2, channels, device="cpu", dtype=torch.float64)

    def _observe(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        self._append(1, 1.0, torch.stack([low, high]))

    def _absorb(self, other: Self) -> None:
        if other._updates:
            self._append(other._updates, other._weight, other._means)

    def _append(self, updates: int, weight: float, means: Tensor) -> None:
        self._updates += updates
        faded = (1 - self.constant) ** updates * self._weight
        self._weight = faded + weight
        share = weight / self._weight
        self._means = (1 - share) * self._means + share * means

    def _limits(self) -> tuple[Tensor, Tensor]:
        return self._means[0], self._means[1]
