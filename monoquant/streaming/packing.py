"""One weight turned into its packed form, some rows at a time, and measured while they are in memory."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable

import attrs
import torch
from torch import Tensor

from monoquant.kernels.base import RoundingKernel
from monoquant.kernels.choice import best_rounding
from monoquant.measurement import Measurement
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.numerics.grouping import block_rows, row_chunks
from monoquant.numerics.metrics import Energy, measure
from monoquant.numerics.packing import packed_size
from monoquant.numerics.reference import gaussian_reference
from monoquant.passes.pack import subnormal
from monoquant.values import AnyScheme, HalfScheme, Scheme

_SETS = 2
"""Sets of buffers, so that one can be written to the disk while the next is being filled."""


@attrs.define
class Facts:
    """What the rows of a weight showed as they went by.

    Args:
        energy: Of the values, and of what was lost.
        subnormal: Scales that have lost precision.
        largest_scale: Largest magnitude of a scale, where all values are finite.
        is_finite: Whether all values are finite.
        is_in_range: Whether all dequantized values are.
        is_as_defined: Whether the first rows hold what rounding to nearest gives.
    """

    energy: Energy = attrs.field(factory=Energy)
    subnormal: int = 0
    largest_scale: float = 0.0
    is_finite: bool = True
    is_in_range: bool = True
    is_as_defined: bool = True


class WeightPacker(abc.ABC):
    """Packs the rows of one weight in order.

    Args:
        rows: Rows of the weight as a matrix.
        columns: Columns of it.
        scheme: The representation.
        dtype: dtype of the weight.

    Attributes:
        facts: What the rows showed so far.
        rows_at_once: At most so many are given at once; always so many but for the last ones.
    """

    def __init__(self, rows: int, columns: int, scheme: AnyScheme, dtype: torch.dtype) -> None:
        self.facts = Facts()
        self.rows_at_once = min(rows, block_rows(columns))
        self._rows, self._columns, self._scheme, self._dtype = rows, columns, scheme, dtype
        self._turn = 0

    def pack(self, values: Tensor) -> list[tuple[str, Tensor]]:
        """Pack the next rows.

        Args:
            values: ``[n, columns]``, contiguous.

        Returns:
            Names of buffers with their next bytes, to be used before the next but one call.
        """
        self._turn = (self._turn + 1) % _SETS
        energy = self._pack(values)
        if not math.isfinite(energy.signal):
            self.facts.is_finite &= bool(torch.isfinite(values).all())
        return self._pieces(len(values))

    def measurement(self) -> Measurement:
        """What all rows together lost."""
        return Measurement(self.facts.energy, gaussian_reference(self._scheme, self._columns).times(self._rows))

    @abc.abstractmethod
    def _pack(self, values: Tensor) -> Energy:
        """Fill the buffers whose turn it is, and note the facts."""

    @abc.abstractmethod
    def _pieces(self, rows: int) -> list[tuple[str, Tensor]]:
        """What was filled."""


class CodesPacker(WeightPacker):
    """Packs to codes of 4 or 8 bits.

    Args:
        rows: Rows of the weight as a matrix.
        columns: Columns of it.
        scheme: The representation.
        dtype: dtype of the weight.
        rounding: Who rounds.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        scheme: Scheme,
        dtype: torch.dtype,
        rounding: RoundingKernel,
    ) -> None:
        super().__init__(rows, columns, scheme, dtype)
        self._rounding, self._codes_scheme = rounding, scheme
        size = (self.rows_at_once, columns)
        self._sets = [PackedMatrix(*size, scheme, dtype=dtype, device="cpu") for _ in range(_SETS)]
        self._is_first = True

    def _pack(self, values: Tensor) -> Energy:
        packed, scheme, facts = self._sets[self._turn], self._codes_scheme, self.facts
        energy = self._rounding.pack(values, scheme, packed.codes_of(slice(0, len(values))), measured=True) or Energy()
        facts.energy += energy
        if self._is_first:
            rows = next(row_chunks(*values.shape))
            facts.is_as_defined = not math.isfinite(energy.signal) or packed.holds_rounded(rows, values[rows])
            self._is_first = False
        scale = packed.scale[: len(values)]
        facts.subnormal += subnormal(scale)
        largest = float(scale.abs().max())
        facts.largest_scale = max(facts.largest_scale, largest)
        if not largest * scheme.max_code < torch.finfo(self._dtype).max / 2:
            facts.is_in_range &= bool(torch.isfinite(packed.dequantized_rows(slice(0, len(values)))).all())
        return energy

    def _pieces(self, rows: int) -> list[tuple[str, Tensor]]:
        packed = self._sets[self._turn]
        found = [("qweight", packed.qweight[:rows]), ("scale", packed.scale[:rows])]
        if packed.zero_point is None:
            return found
        nibbles = packed.scheme.bits == 4
        return [*found, ("zero_point", packed.zero_point[: packed_size(rows * packed.groups) if nibbles else rows])]


class HalfPacker(WeightPacker):
    """Casts to 16 bits of floating point.

    Args:
        rows: Rows of the weight as a matrix.
        columns: Columns of it.
        scheme: The representation.
        dtype: dtype of the weight.
    """

    def __init__(self, rows: int, columns: int, scheme: HalfScheme, dtype: torch.dtype) -> None:
        super().__init__(rows, columns, scheme, dtype)
        size = (self.rows_at_once, columns)
        self._sets = [torch.empty(size, dtype=scheme.dtype, device="cpu") for _ in range(_SETS)]

    def _pack(self, values: Tensor) -> Energy:
        held = self._sets[self._turn][: len(values)].copy_(values)
        chunks = row_chunks(*values.shape)
        energy = sum((measure(values[rows], held[rows].to(self._dtype)) for rows in chunks), Energy())
        self.facts.energy += energy
        self.facts.is_in_range &= bool(torch.isfinite(held).all())
        return energy

    def _pieces(self, rows: int) -> list[tuple[str, Tensor]]:
        return [("values", self._sets[self._turn][:rows])]


def packer_of(
    rows: int, columns: int, scheme: AnyScheme, dtype: torch.dtype, kernels: Iterable[RoundingKernel]
) -> WeightPacker:
    """What packs a weight.

    Args:
        rows: Rows of the weight as a matrix.
        columns: Columns of it.
        scheme: The representation.
        dtype: dtype of the weight.
        kernels: Who may round to codes.
    """
    if isinstance(scheme, HalfScheme):
        return HalfPacker(rows, columns, scheme, dtype)
    rounding = best_rounding(kernels, dtype, torch.device("cpu"), scheme)
    return CodesPacker(rows, columns, scheme, dtype, rounding)
