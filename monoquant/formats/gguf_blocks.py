"""Blocks of 32 weights, as GGUF's Q4_0 and Q8_0 have them.

A block is a float16 scale d, and then the codes q. Q4_0: 16 bytes, whose low nibbles are weights 0 to 15 and whose high
nibbles are weights 16 to 31; a weight is d * (q - 8). Q8_0: 32 signed bytes; a weight is d * q.
"""

from __future__ import annotations

import torch
from torch import Tensor

from monoquant.numerics.affine import GroupCodes
from monoquant.numerics.grouping import to_groups

BLOCK = 32
"""Weights in a block."""
_HALF = BLOCK // 2
_SCALE_BYTES = 2
_SIGN = 128


def to_blocks(codes: GroupCodes, bits: int) -> Tensor:
    """Rows of codes as rows of blocks.

    Args:
        codes: uint8 codes ``[rows, columns]``, symmetric, with float16 scales of groups of 32.
        bits: 4 or 8.

    Returns:
        uint8 ``[rows, columns / 32 * 18]`` for 4 bits, ``* 34`` for 8.
    """
    groups = to_groups(codes.codes, BLOCK)
    packed = groups[..., :_HALF] | groups[..., _HALF:] << 4 if bits == 4 else groups ^ _SIGN
    rows, count = codes.scale.shape
    scale = codes.scale.contiguous().view(torch.uint8).view(rows, count, _SCALE_BYTES)
    return torch.cat([scale, packed], dim=-1).flatten(1)


def read_blocks(blocks: Tensor, bits: int) -> Tensor:
    """Weights in rows of blocks, by the definition and not by undoing :func:`to_blocks`.

    Args:
        blocks: uint8 ``[rows, bytes]``.
        bits: 4 or 8.

    Returns:
        float32 ``[rows, columns]``.
    """
    place = torch.arange(BLOCK)
    size = _SCALE_BYTES + BLOCK * bits // 8
    parts = blocks.int().view(len(blocks), -1, size)
    low, high = parts[..., 0], parts[..., 1]  # little-endian on every machine
    scale = (low + (high << 8)).to(torch.uint16).view(torch.float16).float()
    if bits == 4:
        codes = parts[..., _SCALE_BYTES + place % _HALF].bitwise_right_shift(place // _HALF * 4).bitwise_and(15) - 8
    else:
        codes = (parts[..., _SCALE_BYTES + place] + _SIGN) % (2 * _SIGN) - _SIGN
    weights: Tensor = (scale.unsqueeze(-1) * codes).flatten(1)
    return weights
