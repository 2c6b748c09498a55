"""What GPTQ folders, as gptqmodel 7.6 reads them, cannot hold."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from monoquant.formats.packed_linears import group_size_of, inexact
from monoquant.modules.packed_matrix import PackedMatrix

_DTYPES = (torch.float16, torch.bfloat16)
_GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)
_MULTIPLE = 32
"""Of features, which all kernels of readers want; it also fills whole words."""


def obstacles(matrix: PackedMatrix, dtype: torch.dtype) -> Iterator[str]:
    """Why a weight cannot be held, each with what to do.

    Args:
        matrix: Of a Linear.
        dtype: The model's.
    """
    yield from _of_shape(matrix)
    if dtype not in _DTYPES:
        yield (
            f"its dtype is {dtype}, and readers compute in float16 or bfloat16; quantize model.half(), or call "
            "result.model.half() first, and see what that costs"
        )
        return
    rounded = list(inexact(matrix, dtype))
    yield from rounded
    if not rounded and not _scales_fit(matrix):
        yield (
            "its scales are too small or too large for float16, in which they are stored; quantize model.half(), or "
            "skip it by modules_to_not_convert"
        )


def _scales_fit(matrix: PackedMatrix) -> bool:
    scale = matrix.scale
    return scale.is_meta or torch.equal(scale.to(torch.float16).double(), scale.double())


def _of_shape(matrix: PackedMatrix) -> Iterator[str]:
    sizes = {"input": matrix.columns, "output": matrix.rows}
    odd = " and ".join(f"{size} {what}" for what, size in sizes.items() if size % _MULTIPLE)
    if odd:
        yield f"its {odd} features are no multiple of {_MULTIPLE}, as readers need; skip it by modules_to_not_convert"
    size = group_size_of(matrix)
    if size not in (None, matrix.columns, *_GROUP_SIZES):
        listed = ", ".join(map(str, _GROUP_SIZES))
        yield f"group_size={size}, which readers do not know; quantize with one of {listed}"
