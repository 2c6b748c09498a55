"""Group-wise affine INT4 and INT8: choose scale and zero_point, round to codes, and back.

``w = (q - zero_point) * scale`` with q in 0..2**bits-1. Scales are rounded *away from zero* to their storage dtype, so
that a group's range always fits its codes: every value is reproduced to within half a scale, without clipping.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from monoquant.numerics.grouping import from_groups, to_groups
from monoquant.values import Scheme


@attrs.frozen(eq=False)
class GroupCodes:
    """Integer codes of a matrix with the parameters that give them meaning.

    Args:
        codes: uint8 ``[rows, columns]``, values 0..15 or 0..255.
        scale: ``[rows, groups]`` in the scheme's scale dtype; non-zero, negative only when symmetric.
        zero_point: uint8 ``[rows, groups]`` in the range of the codes; its middle everywhere when symmetric.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor


def round_away_from_zero(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast to a narrower float dtype without ever getting smaller in magnitude.

    Args:
        value: float32 or float64, any shape, finite.
        dtype: torch.float16, torch.bfloat16 or torch.float32.

    Returns:
        ``value`` in ``dtype``; inf where the magnitude does not fit.
    """
    cast = value.to(dtype)
    too_small = cast.to(value.dtype).abs_() < value.abs()
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    # IEEE floats of one sign are ordered like their bit patterns: the next larger magnitude is one bit pattern up.
    return cast.view(integer).add(too_small).view(dtype)


def round_to_nearest(weight: Tensor, scheme: Scheme) -> GroupCodes:
    """Quantize each group to the nearest codes of its own range.

    Asymmetric: the range from min(w, 0) to max(w, 0) is spread over all codes, so zero is exact. Symmetric: the value
    of largest magnitude becomes the lowest code (the scale takes its sign, as in llama.cpp's Q4_0), unless the other
    side would clip.

    Args:
        weight: ``[rows, columns]``, any real float dtype, finite, columns >= 1.
        scheme: Group size, symmetry and scale dtype.

    Returns:
        Codes with ``abs(w - dequantize(codes)) <= abs(scale) / 2`` for every element, up to float rounding.
    """
    working = weight.to(working_dtype(weight.dtype))
    groups = to_groups(working, scheme.width(weight.shape[1]))
    scale, zero_point = group_parameters(groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True), scheme)
    codes = (groups / scale.to(working.dtype)).round_().add_(zero_point).clamp_(0, scheme.max_code).to(torch.uint8)
    return GroupCodes(
        codes=from_groups(codes, weight.shape[1]),
        scale=scale.squeeze(-1),
        zero_point=zero_point.squeeze(-1).clamp_(0, scheme.max_code).to(torch.uint8),
    )


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which weights are rounded: float32, or float64 for float64.

    Args:
        dtype: Of the weights.
    """
    return dtype if dtype == torch.float64 else torch.float32


def group_parameters(low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Scales and zero_points that spread the ranges of groups over all codes.

    Args:
        low: Least value of each group, any shape, float32 or float64, finite.
        high: Largest value of each group; same shape and dtype.
        scheme: Symmetry, bits and scale dtype.

    Returns:
        Scales in the scheme's dtype, not zero; whole numbers in the dtype of ``low``.
    """
    dtype = low.dtype
    # In double precision, so that no division rounds a scale down before it is rounded up.
    low, high = low.clamp_max(0).double(), high.clamp_min(0).double()
    exact_scale = _symmetric_scale(low, high, scheme) if scheme.symmetric else _asymmetric_scale(low, high, scheme)
    scale = round_away_from_zero(exact_scale, scheme.scale_dtype)
    scale.masked_fill_(scale == 0, 1)
    step = scale.to(dtype)
    zero_point = torch.full_like(step, scheme.middle_code) if scheme.symmetric else (-low / step).round_().to(dtype)
    return scale, zero_point


def _asymmetric_scale(low: Tensor, high: Tensor, scheme: Scheme) -> Tensor:
    return (high / scheme.max_code).sub_(low / scheme.max_code)


def _symmetric_scale(low: Tensor, high: Tensor, scheme: Scheme) -> Tensor:
    negative_leads = -low >= high
    larger = torch.where(negative_leads, -low, high)
    smaller = torch.where(negative_leads, high, -low)
    magnitude = torch.maximum(larger / scheme.middle_code, smaller / (scheme.middle_code - 0.5))
    return torch.where(negative_leads, magnitude, -magnitude)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor | int, group_size: int) -> Tensor:
    """Float values of codes: ``(q - zero_point) * scale``, computed in float32.

    Args:
        codes: ``[rows, columns]``, uint8 or int8.
        scale: ``[rows, groups]``, float16, bfloat16 or float32.
        zero_point: ``[rows, groups]`` in the codes' dtype, or one for all.
        group_size: Features per group.

    Returns:
        float32 ``[rows, columns]``.
    """
    columns = codes.shape[1]
    values = to_groups(codes, group_size).to(torch.float32)
    if isinstance(zero_point, Tensor):
        values.sub_(zero_point.to(torch.float32).unsqueeze(-1))
    elif zero_point:
        values.sub_(zero_point)
    values.mul_(scale.to(torch.float32).unsqueeze(-1))
    return from_groups(values, columns)
