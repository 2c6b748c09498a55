"""The range with the least squared quantization error, searched on a histogram whose bins are spaced like floats."""

from __future__ import annotations

import math
from typing import Any, Self

import attrs
import torch
from torch import Tensor
from torch.nn.functional import pad

from monoquant.errors import InputError
from monoquant.numerics.metrics import Energy
from monoquant.ranges.base import ActivationRange, check_bits
from monoquant.ranges.minmax import MinMaxObserver

OCTAVES = 32
BINS_PER_OCTAVE = 32
BINS = OCTAVES * BINS_PER_OCTAVE
# Bins narrower than this share of their values, or of the smallest scale, count as points: their density would drown
# in rounding, or overflow.
_THIN = 2.0**-20
_SHRINK_OCTAVES = 16
_REFINEMENTS = 6
_CANDIDATES_AT_ONCE = 32  # so that temporaries fit a cache
_ELEMENTS_AT_ONCE = 1 << 20


class HistogramObserver(MinMaxObserver):
    """Takes the range whose codes make the least squared error on a histogram of everything that was seen.

    Rare outliers are clipped where that costs less than the coarser codes of all other values would. The aim is that
    of torch.ao's ``HistogramObserver``, the bins are those of HdrHistogram: each sign has 32 octaves below the largest
    magnitude, each octave 32 equal bins; what is smaller counts as zero. A new largest magnitude shifts the octaves
    and pools the lowest ones into zero, never splitting a bin. So the state depends on the set of values alone:
    neither order nor merging changes it.

    A range narrower than min and max is taken only if it gains more than the uncertainty of the mean square of so many
    rounding errors. Values are taken to be spread evenly within their bin: of data on a lattice, such as pixels, it is
    not seen that some codes would be exact. The state takes 16 KiB per channel, ``range()`` some milliseconds per
    channel.

    Args:
        bits: Bits of the codes to search for, 1 to 16, default 8.
        channel_axis: None (default) for one range, or the dimension whose every index gets one. Each channel has
            octaves of its own.

    Raises:
        ConfigError: For bits that are no whole number from 1 to 16.
    """

    # int64 [channels, 2, BINS + 1]: positive, then negative values, in order of magnitude; bin 0 counts as zero.
    _counts: Tensor

    def __init__(self, bits: int = 8, *, channel_axis: int | None = None) -> None:
        super().__init__(channel_axis=channel_axis)
        check_bits(bits)
        self.bits = bits

    def predicted_energy(self, candidate: ActivationRange) -> Energy:
        """Signal, and the noise that codes of a range are expected to add to the values seen.

        The squared error is integrated exactly for values spread evenly within each bin.

        Args:
            candidate: A range of the shape that ``range()`` returns.

        Returns:
            Sums over all values and channels; ``.sqnr_db`` gives dB.

        Raises:
            InputError: If nothing was seen, NaN or Inf was, or the range has another shape.
        """
        self._require_values()
        densities = self._densities()
        if candidate.low.shape != self._shaped(self._low, self._high).low.shape:
            raise InputError(f"A range of shape {list(candidate.low.shape)} for {len(densities)} observed channels.")
        lows, highs = candidate.low.reshape(-1, 1), candidate.high.reshape(-1, 1)
        parts = zip(densities, lows, highs, strict=True)
        noise = [float(density.noise(ActivationRange(low, high), self.bits)) for density, low, high in parts]
        return Energy(math.fsum(density.signal() for density in densities), math.fsum(noise))

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "bits": self.bits}

    def _reset(self, channels: int) -> None:
        super()._reset(channels)
        self._counts = torch.zeros(channels, 2, BINS + 1, device="cpu", dtype=torch.int64)

    def _observe(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        before = self._top()
        super()._observe(rows, low, high)
        counts = _under_new_top(self._counts, self._top() - before)
        # Each chunk costs a pass over all counts, so it has at least as many values as there are counts.
        columns = max(_ELEMENTS_AT_ONCE // len(rows), counts[0].numel())
        for chunk in torch.split(rows, columns, dim=1):
            counts = counts + _counted(chunk, self._top())
        self._counts = counts

    def _absorb(self, other: Self) -> None:
        top, other_top = self._top(), other._top()
        super()._absorb(other)
        mine = _under_new_top(self._counts, self._top() - top)
        self._counts = mine + _under_new_top(other._counts, self._top() - other_top)

    def _top(self) -> Tensor:
        """int32 ``[channels]``: all magnitudes are below ``2**top``, the largest is at least half of that."""
        return torch.frexp(torch.maximum(-self._low, self._high).clamp_min(0)).exponent

    def _densities(self) -> list[_Density]:
        extremes = zip(self._low.tolist(), self._high.tolist(), strict=True)
        return [_density(counts, low, high) for counts, (low, high) in zip(self._counts, extremes, strict=True)]

    def _limits(self) -> tuple[Tensor, Tensor]:
        widest = ActivationRange(self._low, self._high)
        channels = zip(self._densities(), widest.low, widest.high, strict=True)
        shrinks = torch.stack([_best_shrink(density, low, high, self.bits) for density, low, high in channels])
        return widest.low * 2.0 ** -shrinks[:, 0], widest.high * 2.0 ** -shrinks[:, 1]


def _under_new_top(counts: Tensor, octaves_up: Tensor) -> Tensor:
    """Counts after the largest magnitude has grown, ``[channels]`` octaves each."""
    # Channels with nothing but zeros have an arbitrary top, and nothing to shift.
    octaves_up = octaves_up.clamp_min(0)
    if not octaves_up.any():
        return counts
    source = torch.arange(1, BINS + 1, device="cpu") + BINS_PER_OCTAVE * octaves_up[:, None]
    source = source.clamp_max(BINS + 1)[:, None].expand(-1, 2, -1)
    kept = pad(counts, (0, 1)).gather(-1, source)
    pooled = counts.sum(-1, keepdim=True) - kept.sum(-1, keepdim=True)
    return torch.cat([pooled, kept], dim=-1)


def _counted(rows: Tensor, top: Tensor) -> Tensor:
    """Counts of rows ``[channels, n]`` in the layout of the state."""
    mantissa, exponent = torch.frexp(rows.abs())
    # The mantissa is in [0.5, 1), which makes this 1 to BINS_PER_OCTAVE.
    within = (mantissa * (2 * BINS_PER_OCTAVE)).to(exponent.dtype) - (BINS_PER_OCTAVE - 1)
    octave = exponent - 1 - (top.to(exponent)[:, None] - OCTAVES)
    position = (octave * BINS_PER_OCTAVE + within).clamp_min_(0).masked_fill_(mantissa == 0, 0)
    histogram = 2 * torch.arange(len(rows), device=rows.device)[:, None] + (rows < 0)
    index = histogram * (BINS + 1) + position
    counts = torch.bincount(index.reshape(-1), minlength=len(rows) * 2 * (BINS + 1))
    return counts.reshape(len(rows), 2, BINS + 1).cpu()


@attrs.frozen(eq=False)
class _Density:
    """A channel's values other than zeros: spread evenly between edges, and sitting on points. All float64.

    Args:
        edges: ``[e]``, where the density of the values changes.
        jumps: ``[e]``, by how much it falls there. So an integral over all values with the primitive F is
            ``F(edges) @ jumps``.
        points: ``[p]``, values that are known exactly.
        weights: ``[p]``, how often.
        count: How many values edges and points stand for.
    """

    edges: Tensor
    jumps: Tensor
    points: Tensor
    weights: Tensor
    count: int

    def signal(self) -> float:
        """Expected sum of squares."""
        return float(self.edges**3 / 3 @ self.jumps) + float(self.points**2 @ self.weights)

    def noise(self, candidates: ActivationRange, bits: int) -> Tensor:
        """Expected sums of squared errors, float64 ``[n]``, of the codes of n candidates."""
        scale, zero_point = (
            torch.split(each.double()[:, None], _CANDIDATES_AT_ONCE) for each in candidates.affine(bits)
        )
        noise = torch.cat([self._noise(*chunk, 2**bits - 1) for chunk in zip(scale, zero_point, strict=True)])
        return noise.clamp_min(0)  # rounding may leave a little less than nothing

    def _noise(self, scale: Tensor, zero_point: Tensor, max_code: int) -> Tensor:
        steps = self.edges / scale
        whole = steps.round().clamp(-zero_point, max_code - zero_point)
        # Every whole step adds the integral of x**2 from -1/2 to 1/2; a clipped rest may be as long as it likes.
        primitive = whole / 12 + (steps - whole) ** 3 / 3
        steps = self.points / scale
        errors = steps - steps.round().clamp(-zero_point, max_code - zero_point)
        return primitive @ self.jumps * scale[:, 0] ** 3 + errors**2 @ self.weights * scale[:, 0] ** 2


def _density(counts: Tensor, low: float, high: float) -> _Density:
    """The density of one channel's counts ``[2, BINS + 1]``, between its smallest and its largest value."""
    edges = _edges(max(-low, high))
    inside = torch.cat([counts[1, 1:].flip(0), counts.new_zeros(1), counts[0, 1:]]).double()
    count = int(inside.sum())
    # Spread over their bins, the extremes would make clipping look cheaper than it is, so they count as points.
    extremes = sorted({low, high})
    for value in extremes:
        inside[int((edges <= value if value > 0 else edges < value).sum()) - 1] -= 1
    inside[BINS] = 0  # between the smallest bins of both signs is what counts as zero
    edges = edges.clamp(low, high)
    width = edges.diff()
    smallest_scale = torch.finfo(torch.float32).smallest_normal
    thin = width <= _THIN * torch.maximum(edges[1:].abs(), edges[:-1].abs()).clamp_min(smallest_scale)
    density = torch.where(thin, 0.0, inside / width)
    jumps = pad(density, (1, 0)) - pad(density, (0, 1))
    points = thin & (inside > 0)
    return _Density(
        edges=edges[jumps != 0],
        jumps=jumps[jumps != 0],
        points=torch.cat([edges[1:][points], edges.new_tensor(extremes)]),
        weights=torch.cat([inside[points], edges.new_ones(len(extremes))]),
        count=count,
    )


def _edges(magnitude: float) -> Tensor:
    """All ``2 * (BINS + 1)`` edges of bins, ascending; magnitude is the largest."""
    octaves = 2.0 ** torch.arange(1 - OCTAVES, 1, device="cpu", dtype=torch.float64)
    within = 1 + torch.arange(BINS_PER_OCTAVE, device="cpu", dtype=torch.float64) / BINS_PER_OCTAVE
    one_sided = pad((octaves[:, None] * within).reshape(-1), (0, 1), value=2.0)
    one_sided *= math.ldexp(1.0, math.frexp(magnitude)[1] - 1)
    return torch.cat([-one_sided.flip(0), one_sided])


def _best_shrink(density: _Density, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Octaves, float64 ``[2]``, to shrink low and high by: a grid of whole octaves first, then ever finer ones."""
    offsets = torch.arange(_SHRINK_OCTAVES, device="cpu", dtype=torch.float64)
    best = torch.zeros(2, device="cpu", dtype=torch.float64)
    least = widest = density.noise(ActivationRange(low[None], high[None]), bits)[0]
    for level in range(_REFINEMENTS + 1):
        candidates = (best + torch.cartesian_prod(offsets, offsets)).clamp_min(0)
        factors = 2.0**-candidates
        noise = density.noise(ActivationRange(low * factors[:, 0], high * factors[:, 1]), bits)
        # Of equals argmin takes the first one, which is the widest.
        best, least = candidates[noise.argmin()], noise.min()
        offsets = torch.tensor([-1.0, 0.0, 1.0], device="cpu", dtype=torch.float64) / 2 ** (level + 1)
    # The mean square of n rounding errors is known to about 0.9 / sqrt(n) of itself, and here two are compared.
    certain_gain = 2 / math.sqrt(max(density.count, 1))
    # The cubes of float64 values beyond 1e100 overflow: that makes NaN, which is less than nothing.
    return best if least < widest * (1 - certain_gain) else torch.zeros_like(best)
