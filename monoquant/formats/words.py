"""Codes in 32-bit words, as other tools pack them: little end first."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from monoquant.modules.packed_matrix import PackedMatrix

_BYTES = 4
"""Of a word."""


def to_words(packed: Tensor) -> Tensor:
    """Bytes of codes as words, the first one in the lowest bits.

    Args:
        packed: uint8 ``[n, bytes]``; a row that fills no whole word is padded with zeros.

    Returns:
        int32 ``[n, ceil(bytes / 4)]``.
    """
    padded = functional.pad(packed, (0, -packed.shape[1] % _BYTES))
    # One dimension: a single column counts as contiguous whatever its strides are, and cannot be viewed then.
    return padded.reshape(-1).view(torch.int32).view(padded.shape[0], -1)


def packed_words(matrix: PackedMatrix) -> Tensor:
    """Unsigned codes in words, the first one in the lowest bits.

    Args:
        matrix: A packed weight.

    Returns:
        int32 ``[rows, ceil(columns * bits / 32)]``.
    """
    return to_words(_unsigned(matrix))


def _unsigned(matrix: PackedMatrix) -> Tensor:
    return matrix.qweight if matrix.scheme.bits == 4 else matrix.qweight.view(torch.uint8) ^ matrix.scheme.middle_code


def unpacked(words: Tensor, bits: int) -> Tensor:
    """Codes in words, read one shift at a time: another way than they were packed.

    Args:
        words: int32 ``[n, words]``.
        bits: Of a code: 4 or 8.

    Returns:
        int32 ``[n, words * 32 / bits]``, unsigned.
    """
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return words.unsqueeze(-1).bitwise_right_shift(shifts).bitwise_and((1 << bits) - 1).flatten(1)
