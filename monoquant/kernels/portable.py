"""The kernel that runs everywhere: tiles of the matrix are dequantized and multiplied in floating point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from monoquant.kernels.base import Codes, Product, ProductKernel
from monoquant.numerics.affine import dequantize
from monoquant.numerics.grouping import select_rows
from monoquant.numerics.packing import unpack_nibbles

TILE_ELEMENTS = 1 << 20
"""Weights that are dequantized at a time: few enough for a cache, enough for a matrix product to run at full speed."""
_FEW_INPUTS = 128
"""With fewer input rows, products of tiles are faster the other way around."""
_IN_FLOAT32 = (torch.float32, torch.bfloat16, torch.float16)


class Portable(ProductKernel):
    """As exact as a product with the dequantized matrix, on any device and for any shape.

    On a CPU the sums are float32 ones also for 16-bit inputs: CPUs without units for bfloat16 are many times slower in
    it. Two codes at a time are unpacked by torch's FBGEMM operator where groups begin at a byte.
    """

    name: ClassVar[str] = "portable"
    relative_error: ClassVar[float] = 0.0
    preference: ClassVar[int] = 0

    def obstacle(self, product: Product) -> str | None:
        return None

    def multiply(self, inputs: Tensor, codes: Codes, derived: tuple[Tensor, ...], bias: Tensor | None) -> Tensor:
        if inputs.device.type != "cpu" or inputs.dtype not in _IN_FLOAT32:
            weight = dequantized(codes).to(inputs.dtype)
            return functional.linear(inputs, weight, None if bias is None else bias.to(inputs.dtype))
        return multiply_tiles(inputs.float(), codes, bias).to(inputs.dtype)


def multiply_tiles(inputs: Tensor, codes: Codes, bias: Tensor | None, *, centred: bool = True) -> Tensor:
    """A product on a CPU that never holds more than a tile of the dequantized matrix.

    Args:
        inputs: float32 ``[n, columns]``.
        codes: The packed matrix.
        bias: ``[rows]``, or None.
        centred: True (default) subtracts zero points from the codes. False subtracts what they add to the product,
            which is faster, and loses digits where inputs have a large mean.

    Returns:
        float32 ``[n, rows]``.
    """
    is_one_tile = codes.rows * codes.columns <= TILE_ELEMENTS
    centred = centred or codes.zero_point is None or not _begins_at_bytes(codes) or is_one_tile
    if is_one_tile:
        ((_, weight),) = _tiles(codes, centred=True)
        return functional.linear(inputs, weight, None if bias is None else bias.float())
    start = inputs.new_zeros(codes.rows) if bias is None else bias.float()
    if centred:
        output = start.expand(len(inputs), -1)
    else:
        output = torch.addmm(start, _group_sums(inputs, codes), _offsets(codes, slice(None)).t(), alpha=-1)
    tiles = _tiles(codes, centred=centred)
    if len(inputs) <= _FEW_INPUTS:
        columns, flipped = inputs.t().contiguous(), inputs.new_empty(codes.rows, len(inputs))
        for rows, tile in tiles:
            torch.addmm(output.t()[rows], tile, columns, out=flipped[rows])
        return flipped.t().contiguous()
    result = output.contiguous()
    for rows, tile in tiles:
        result[:, rows].addmm_(inputs, tile.t())
    return result


def dequantized(codes: Codes, rows: slice | Tensor = slice(None)) -> Tensor:
    """Rows of a packed matrix in floating point.

    Args:
        codes: The packed matrix, on any device.
        rows: A slice, or int32 or int64 indices ``[n]``; default: all of them.

    Returns:
        float32 ``[n, columns]``.
    """
    if isinstance(rows, slice) and _runs_fbgemm(codes):
        first, end, _ = rows.indices(codes.rows)
        return _Unpacking(codes, end - first).rows(slice(first, end), centred=True)
    stored = select_rows(codes.qweight, rows)
    unpacked = unpack_nibbles(stored, codes.columns) if codes.is_int4 else stored
    return dequantize(unpacked, select_rows(codes.scale, rows), zero_points(codes, rows), codes.group_size)


def zero_points(codes: Codes, rows: slice | Tensor = slice(None)) -> Tensor | int:
    """Zero points in the terms of the stored codes.

    Args:
        codes: The packed matrix.
        rows: A slice, or int32 or int64 indices ``[n]``; default: all of them.

    Returns:
        ``[n, groups]`` in the dtype of the stored codes; one number for all when symmetric.
    """
    if codes.zero_point is None:
        return 8 if codes.is_int4 else 0
    if not codes.is_int4:
        return select_rows(codes.zero_point, rows)
    groups = codes.scale.shape[1]
    return select_rows(unpack_nibbles(codes.zero_point, codes.rows * groups).view(codes.rows, groups), rows)


def _offsets(codes: Codes, rows: slice) -> Tensor:
    """What zero points stand for: float32 ``[n, groups]``, ``zero_point * scale``."""
    return codes.scale[rows].float() * zero_points(codes, rows)


def _group_sums(inputs: Tensor, codes: Codes) -> Tensor:
    missing = codes.scale.shape[1] * codes.group_size - codes.columns
    return functional.pad(inputs, (0, missing)).view(len(inputs), codes.scale.shape[1], codes.group_size).sum(-1)


def _tiles(codes: Codes, *, centred: bool) -> Iterator[tuple[slice, Tensor]]:
    """Consecutive rows of the matrix, dequantized; one tile at a time is valid."""
    step = max(1, TILE_ELEMENTS // codes.columns)
    ranges = [slice(start, min(start + step, codes.rows)) for start in range(0, codes.rows, step)]
    if not _begins_at_bytes(codes):
        yield from ((rows, dequantized(codes, rows)) for rows in ranges)
        return
    unpacking = _Unpacking(codes, min(step, codes.rows))
    for rows in ranges:
        yield rows, unpacking.rows(rows, centred=centred)


def _runs_fbgemm(codes: Codes) -> bool:
    """Whether to unpack by an operator that graphs, other devices and other kinds of tensors do not have."""
    plain = type(codes.qweight) is Tensor and codes.qweight.is_cpu and _begins_at_bytes(codes)
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return plain and not traced and not torch._C._are_functorch_transforms_active()


def _begins_at_bytes(codes: Codes) -> bool:
    return codes.is_int4 and codes.group_size % 2 == 0


class _Unpacking:
    """Feeds FBGEMM's operator, which takes groups of bytes that end in a float16 scale and a float16 minimum."""

    def __init__(self, codes: Codes, most_rows: int) -> None:
        self._codes, half = codes, codes.group_size // 2
        self._fed = codes.qweight.new_zeros(most_rows, codes.scale.shape[1], half + 4)
        self._bytes, self._scale = self._fed[:, :, :half], self._fed[:, :, half : half + 2]
        # Other dtypes would not fit float16 without a loss: their groups are unpacked as they are, and scaled here.
        self._scales_itself = codes.scale.dtype == torch.float16
        if not self._scales_itself:
            self._scale.copy_(codes.scale.new_ones(1, dtype=torch.float16).view(torch.uint8))

    def rows(self, rows: slice, *, centred: bool) -> Tensor:
        codes, count = self._codes, rows.stop - rows.start
        half = codes.group_size // 2
        whole, rest = divmod(codes.qweight.shape[1], half)
        stored = codes.qweight[rows]
        self._bytes[:count, :whole].copy_(stored[:, : whole * half].view(count, whole, half))
        if rest:
            self._bytes[:count, whole, :rest].copy_(stored[:, -rest:])
        if self._scales_itself:
            self._scale[:count].copy_(codes.scale[rows].contiguous().unsqueeze(-1).view(torch.uint8))
        flat = torch.ops.quantized.embedding_bag_4bit_unpack(self._fed[:count].flatten(0, 1))
        values: Tensor = flat.view(count, codes.scale.shape[1], codes.group_size)
        if centred:
            offsets = _offsets(codes, rows) if self._scales_itself else zero_points(codes, rows)
            values.sub_(offsets.unsqueeze(-1) if isinstance(offsets, Tensor) else offsets)
        if not self._scales_itself:
            values.mul_(codes.scale[rows].float().unsqueeze(-1))
        return values.flatten(1)[:, : codes.columns]
