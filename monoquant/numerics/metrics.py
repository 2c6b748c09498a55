"""Signal-to-quantization-noise ratio, from energies that add up."""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor


@attrs.frozen
class Energy:
    """Signal and noise energy of a measurement; add two to pool them (decibels are never averaged).

    Args:
        signal: Sum of squares of the float reference.
        noise: Sum of squares of reference minus approximation.
    """

    signal: float = 0.0
    noise: float = 0.0

    def __add__(self, other: Energy) -> Energy:
        return Energy(self.signal + other.signal, self.noise + other.noise)

    def times(self, count: int) -> Energy:
        """The energies of ``count`` equal measurements.

        Args:
            count: >= 0.
        """
        return Energy(self.signal * count, self.noise * count)

    @property
    def sqnr_db(self) -> float:
        """``10 * log10(signal / noise)`` in dB.

        inf for no noise (also where there is no signal), -inf for noise on a zero signal, nan if either energy is nan.
        """
        if math.isnan(self.signal) or math.isnan(self.noise):
            return math.nan
        if self.noise == 0:
            return math.inf
        if self.signal == 0:
            return -math.inf
        return 10 * (math.log10(self.signal) - math.log10(self.noise))


def energy_of(reference: Tensor, noise: Tensor) -> Energy:
    """Energies of a reference and of its error, summed in float64.

    Args:
        reference: Float tensor of any shape and real dtype.
        noise: Reference minus approximation, same shape.

    Returns:
        The two sums of squares.
    """
    return Energy(_sum_of_squares(reference), _sum_of_squares(noise))


def measure(reference: Tensor, approximation: Tensor) -> Energy:
    """Energies of a reference and of the difference to its approximation.

    Args:
        reference: Float tensor of any shape and real dtype.
        approximation: Same shape.

    Returns:
        The two sums of squares, differences and sums taken in float64.
    """
    # A copy, because the last bits of a sum may depend on where in memory the numbers lie.
    exact = reference.to(torch.float64, copy=True)
    return energy_of(exact, approximation.to(torch.float64, copy=True).sub_(exact))


def _sum_of_squares(values: Tensor) -> float:
    flat = values.to(torch.float64).reshape(-1)
    return float(torch.dot(flat, flat))
