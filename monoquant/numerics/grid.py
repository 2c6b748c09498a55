"""Grids that codes count on: a scale and zero_point per group, held in float for searching."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from monoquant.numerics.affine import GroupCodes
from monoquant.values import Scheme


@attrs.frozen(eq=False)
class Grid:
    """Scales and zero_points of a matrix, the scales already rounded to the dtype they are stored in.

    Args:
        scale: float32 ``[rows, groups]``, finite, not zero.
        zero_point: float32 ``[rows, groups]``, whole numbers in the range of the codes.
    """

    scale: Tensor
    zero_point: Tensor

    def with_codes(self, codes: Tensor, scheme: Scheme) -> GroupCodes:
        """Codes on this grid, as they are packed.

        Args:
            codes: uint8 ``[rows, columns]``.
            scheme: Whose scale dtype the scales are rounded to.
        """
        return GroupCodes(codes, self.scale.to(scheme.scale_dtype), self.zero_point.to(torch.uint8))


def storable(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Round scales to the dtype they are stored in; never zero, never infinite.

    Args:
        scale: float32, any shape.
        dtype: torch.float16, torch.bfloat16 or torch.float32.

    Returns:
        float32, same shape.
    """
    limits = torch.finfo(dtype)
    rounded = scale.clamp(-limits.max, limits.max).to(dtype).to(scale.dtype)
    return torch.where(rounded == 0, torch.full_like(rounded, limits.smallest_normal), rounded)


def nearest_codes(values: Tensor, scale: Tensor, zero_point: Tensor, max_code: int) -> Tensor:
    """Codes nearest to values, as floats.

    Args:
        values: Any shape.
        scale: Broadcasts against it; so does ``zero_point``.
        zero_point: Whole numbers.
        max_code: 15 or 255.
    """
    return (values / scale).round_().add_(zero_point).clamp_(0, max_code)
