"""Two 4-bit codes in a byte: the even index in the low nibble, the odd one in the high nibble."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

_LOW_BYTE_FIRST = sys.byteorder == "little"


def packed_size(count: int) -> int:
    """Bytes that ``count`` codes take.

    Args:
        count: Number of 4-bit codes, >= 0.

    Returns:
        ``ceil(count / 2)``.
    """
    return (count + 1) // 2


def pack_nibbles(codes: Tensor) -> Tensor:
    """Pack 4-bit codes along the last dimension.

    Args:
        codes: uint8 ``[..., n]``, values 0..15.

    Returns:
        uint8 ``[..., ceil(n / 2)]``; an odd last byte has a zero high nibble.
    """
    if not codes.numel():
        return codes[..., : packed_size(codes.shape[-1])]
    if codes.shape[-1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    # A copy, because tensors of one row or column may count as contiguous whatever their strides.
    in_order = codes.clone(memory_format=torch.contiguous_format)
    return merged_pairs(in_order.view(torch.int16)).to(torch.uint8)


def merged_pairs(pairs: Tensor, out: Tensor | None = None) -> Tensor:
    """Two codes of a byte each moved into the low byte; what the high one then holds means nothing.

    Strided bytes are slow, 16-bit numbers side by side are not.

    Args:
        pairs: int16, each the bytes of two codes of 0..15, the even one first in memory.
        out: int16 of that shape to write to; default: a new tensor.
    """
    if not _LOW_BYTE_FIRST:
        return torch.bitwise_right_shift(pairs, 8, out=out).bitwise_or_(pairs << 4)
    return torch.bitwise_right_shift(pairs, 4, out=out).bitwise_or_(pairs)


def unpack_nibbles(packed: Tensor, count: int) -> Tensor:
    """Undo :func:`pack_nibbles`.

    Args:
        packed: uint8 ``[..., ceil(count / 2)]``.
        count: Number of codes along the last dimension.

    Returns:
        uint8 ``[..., count]``, values 0..15.
    """
    if not packed.numel():
        return packed.new_empty(*packed.shape[:-1], count)
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # TorchScript has no views of another dtype
        return torch.stack([packed & 0x0F, packed >> 4], dim=-1).flatten(-2)[..., :count]
    both = packed.to(torch.int16, memory_format=torch.contiguous_format)
    first, second = (both, both << 4) if _LOW_BYTE_FIRST else (both << 8, both >> 4)
    return ((first | second) & 0x0F0F).view(torch.uint8)[..., :count]
