"""Two 4-bit codes in a byte: the even index in the low nibble, the odd one in the high nibble."""

from __future__ import annotations

import torch
from torch import Tensor


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
    if codes.shape[-1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack_nibbles(packed: Tensor, count: int) -> Tensor:
    """Undo :func:`pack_nibbles`.

    Args:
        packed: uint8 ``[..., ceil(count / 2)]``.
        count: Number of codes along the last dimension.

    Returns:
        uint8 ``[..., count]``, values 0..15.
    """
    codes = torch.stack((packed & 15, packed >> 4), dim=-1)
    return codes.flatten(-2)[..., :count]
