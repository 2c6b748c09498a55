"""Rounding to nearest with torch alone: a few passes over chunks that fit a cache, into the same scratch each time."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from monoquant.kernels.base import Codes, RoundingKernel
from monoquant.numerics.affine import group_parameters, working_dtype
from monoquant.numerics.grouping import group_count, row_chunks
from monoquant.numerics.metrics import Energy, energy_of
from monoquant.numerics.packing import merged_pairs, pack_nibbles
from monoquant.values import PACKABLE_DTYPES, Scheme

_SIGN = 128
_WHOLE = {torch.float32: (1.5 * 2**23, torch.int32), torch.float64: (1.5 * 2**52, torch.int64)}
"""A number added to which small whole numbers are the low bits of the sum, and the integers to read these as."""


class PortableRounding(RoundingKernel):
    """Rounds on any device, with temporaries of a few MiB."""

    name: ClassVar[str] = "portable-rounding"
    preference: ClassVar[int] = 0

    def obstacle(self, dtype: torch.dtype, device: torch.device, scheme: Scheme) -> str | None:
        return None if dtype in PACKABLE_DTYPES else f"it rounds {', '.join(map(str, PACKABLE_DTYPES))}, not {dtype}"

    def pack(self, values: Tensor, scheme: Scheme, codes: Codes, *, measured: bool) -> Energy | None:
        chunks = list(row_chunks(*values.shape))
        rounder = _Rounder(chunks[0].stop, values, scheme, codes)
        meter = _Meter(chunks[0].stop, values) if measured else None
        energy = Energy()
        for rows in chunks:
            rounder.round(rows)
            if meter is not None:
                energy += meter.measure(values[rows], rounder.dequantized())
        return energy if measured else None


class _Meter:
    """Scratch to do what :func:`monoquant.numerics.metrics.measure` does.

    Args:
        rows: At most so many are measured at once.
        values: What will be measured.
    """

    def __init__(self, rows: int, values: Tensor) -> None:
        columns = values.shape[1]
        self._exact, self._noise = (values.new_empty(rows, columns, dtype=torch.float64) for _ in range(2))
        self._stored = values.new_empty(rows, columns)

    def measure(self, values: Tensor, dequantized: Tensor) -> Energy:
        """Energies of some rows.

        Args:
            values: The rows.
            dequantized: float32, what they stand for before that is cast to their dtype.
        """
        size = len(values)
        exact, noise = self._exact[:size].copy_(values), self._noise[:size]
        is_exact = values.dtype in (torch.float32, torch.float64)
        noise.copy_(dequantized if is_exact else self._stored[:size].copy_(dequantized))
        return energy_of(exact, noise.sub_(exact))


class _Rounder:
    """Scratch for some rows of one matrix.

    Args:
        rows: At most so many are rounded at once.
        values: ``[n, columns]``.
        scheme: Bits, group size, symmetry and scale dtype.
        codes: Where to.
    """

    def __init__(self, rows: int, values: Tensor, scheme: Scheme, codes: Codes) -> None:
        self._values, self._scheme, self._codes = values, scheme, codes
        self._columns = values.shape[1]
        width = scheme.width(self._columns)
        groups = group_count(self._columns, width)
        dtype = working_dtype(values.dtype)
        # A sum with the codes that are stored: those of 8 bits are signed.
        magic, self._integers = _WHOLE[dtype]
        self._lowest = magic if codes.is_int4 else magic - _SIGN
        padded = groups * width
        self._floats = values.new_empty(rows, groups, width, dtype=dtype)
        self._is_copied = values.dtype != dtype or padded != self._columns or values.stride(1) != 1
        if padded != self._columns:
            self._floats.view(rows, padded)[:, self._columns :] = 0
        self._low, self._high = (values.new_empty(rows, groups, 1, dtype=dtype) for _ in range(2))
        if codes.is_int4:
            pairs = codes.qweight.shape[1]
            self._bytes = values.new_zeros(rows, 2 * pairs, dtype=torch.uint8)
            self._merged = values.new_empty(rows, pairs, dtype=torch.int16)
        self._scale = self._offset = self._low
        self._done = self._floats

    def round(self, rows: slice) -> None:
        """Round some rows, and pack them.

        Args:
            rows: Begins at an even row.
        """
        size = rows.stop - rows.start
        self._done = floats = self._floats[:size]
        groups = self._grouped(rows, floats)
        low = torch.amin(groups, -1, keepdim=True, out=self._low[:size])
        high = torch.amax(groups, -1, keepdim=True, out=self._high[:size])
        self._scale, zero_point = group_parameters(low, high, self._scheme)
        self._offset = zero_point + self._lowest
        torch.div(groups, self._scale.to(floats.dtype), out=floats).round_().add_(self._offset)
        floats.clamp_(self._lowest, self._lowest + self._scheme.max_code)
        self._store(rows, floats.view(self._integers).flatten(1)[:, : self._columns])
        self._codes.scale[rows] = self._scale.squeeze(-1)
        self._store_zero_points(rows, zero_point)

    def dequantized(self) -> Tensor:
        """What the rows that were rounded last stand for, in float32; uses up the scratch."""
        exact = self._done.sub_(self._offset).to(torch.float32).mul_(self._scale.to(torch.float32))
        return exact.flatten(1)[:, : self._columns]

    def _grouped(self, rows: slice, floats: Tensor) -> Tensor:
        values = self._values[rows]
        if not self._is_copied:
            return values.as_strided(floats.shape, (values.stride(0), floats.shape[2], 1))
        floats.flatten(1)[:, : self._columns] = values
        if floats[0].numel() != self._columns:
            floats.flatten(1)[:, self._columns :] = 0
        return floats

    def _store(self, rows: slice, integers: Tensor) -> None:
        """Store the low bits of integers."""
        target = self._codes.qweight[rows]
        if not self._codes.is_int4:
            target.copy_(integers)
            return
        size = len(integers)
        self._bytes[:size, : self._columns].copy_(integers)
        target.copy_(merged_pairs(self._bytes[:size].view(torch.int16), self._merged[:size]))

    def _store_zero_points(self, rows: slice, zero_point: Tensor) -> None:
        stored = self._codes.zero_point
        if stored is None:
            return
        whole = zero_point.squeeze(-1).clamp_(0, self._scheme.max_code)
        if not self._codes.is_int4:
            stored[rows] = (whole - _SIGN).to(torch.int8)
            return
        first = rows.start * whole.shape[1] // 2
        nibbles = pack_nibbles(whole.to(torch.uint8).flatten())
        stored[first : first + len(nibbles)] = nibbles
