"""Matrix products of integers: INT8 inputs times INT8 weights, summed exactly in INT32 on every machine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

MIDDLE = 128
"""The unsigned code that stands for zero where inputs are quantized symmetrically."""
MAX_FEATURES = (2**31 - 1) // (255 * 128)
"""So many products of the largest codes still fit a signed 32-bit integer."""

_PROBED_SHAPES = ((1, 64, 16), (8, 64, 16), (40, 192, 48))

Method = Literal["direct", "halves", "float64"]


def quantize_rows(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize each row by its own largest magnitude, so that no row's result depends on the others.

    Args:
        inputs: ``[rows, columns]``, float.

    Returns:
        uint8 codes 1..255 ``[rows, columns]`` around MIDDLE, and float32 scales ``[rows, 1]``; a row that holds nan or
        inf gets a nan scale, so that what is computed from it is nan.
    """
    values = inputs.to(torch.float32)
    largest = values.abs().amax(-1, keepdim=True)
    scale = torch.where(torch.isfinite(largest), largest / (MIDDLE - 1), torch.nan)
    # Rows of zeros, and magnitudes whose scale would underflow, have nothing to resolve.
    step = torch.where(scale < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)
    codes = (values / step).round_().add_(MIDDLE).nan_to_num_(MIDDLE).clamp_(1, 255)
    return codes.to(torch.uint8), step


def quantize_to_range(inputs: Tensor, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize inputs with one scale and zero_point for all; what lies outside of their range is clipped.

    Args:
        inputs: ``[rows, columns]``, float.
        scale: float32 ``[]``, > 0.
        zero_point: int32 ``[]``, 0..255.

    Returns:
        uint8 codes ``[rows, columns]``, and the scale of each row ``[rows, 1]``: ``scale``, or nan for rows that hold
        nan or inf.
    """
    values = inputs.to(torch.float32)
    codes = (values / scale).round_().add_(zero_point).nan_to_num_(0.0).clamp_(0, 255)
    sound = values.isfinite().all(-1, keepdim=True)
    return codes.to(torch.uint8), torch.where(sound, scale, torch.nan)


def integer_product(codes: Tensor, zero_point: Tensor | int, weight_codes: Tensor) -> Tensor:
    """``(codes - zero_point) @ weight_codes.T`` with exact sums, the same bits on every machine.

    Args:
        codes: uint8 ``[rows, columns]``; columns <= MAX_FEATURES.
        zero_point: The code that stands for zero, 0..255.
        weight_codes: int8 ``[out, columns]``.

    Returns:
        int32 ``[rows, out]``.
    """
    # One more row, of ones, sums up the weight codes on the way: what the zero_point contributes.
    with_ones = torch.cat([codes, codes.new_ones(1, codes.shape[1])])
    sums = _METHODS[_method(codes.device)](with_ones, weight_codes)
    return sums[:-1].sub_(sums[-1:] * zero_point)


def _method(device: torch.device) -> Method:
    if device.type != "cpu":
        return "float64"
    # A graph that is compiled or exported may run on another machine than this one.
    return "halves" if torch.compiler.is_compiling() else exact_method()


@functools.cache  # a fact about this machine
def exact_method() -> Method:
    """The fastest way to multiply integers that gives exact sums here, found by trying.

    ``torch._int_mm`` adds products in pairs of 16 bits on x86 machines without VNNI, and saturates silently where
    codes are large; products of 7-bit inputs always fit, so that two of them make an exact one.
    """
    methods: tuple[Method, ...] = ("direct", "halves")
    return next((method for method in methods if _is_exact(_METHODS[method])), "float64")


def _is_exact(product: Callable[[Tensor, Tensor], Tensor]) -> bool:
    for rows, columns, out in _PROBED_SHAPES:
        codes = torch.full((rows, columns), 255, dtype=torch.uint8, device="cpu")
        weight_codes = torch.full((out, columns), 127, dtype=torch.int8, device="cpu")
        weight_codes[1::2] = -128
        if not torch.equal(product(codes, weight_codes), _by_float64(codes, weight_codes)):
            return False
    return True


def _direct(codes: Tensor, weight_codes: Tensor) -> Tensor:
    if weight_codes.shape[1] == 1:
        # A transposed column looks like a row to the kernel, which then reads past its end.
        return codes.to(torch.int32) * weight_codes.to(torch.int32).t()
    return torch._int_mm(codes, weight_codes.t())


def _by_halves(codes: Tensor, weight_codes: Tensor) -> Tensor:
    return _direct(codes >> 1, weight_codes).mul_(2).add_(_direct(codes & 1, weight_codes))


def _by_float64(codes: Tensor, weight_codes: Tensor) -> Tensor:
    return (codes.to(torch.float64) @ weight_codes.to(torch.float64).t()).to(torch.int32)


_METHODS: dict[Method, Callable[[Tensor, Tensor], Tensor]] = {
    "direct": _direct,
    "halves": _by_halves,
    "float64": _by_float64,
}
