"""Matrix products of integers: INT8 inputs times INT8 weights, summed exactly in INT32 on every machine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

MAX_FEATURES = (2**31 - 1) // (255 * 128)
"""So many products of the largest codes, less those of the farthest zero_point, still fit a signed 32-bit integer."""

_SIGN = 128
_PROBED_SHAPES = ((1, 64, 16), (8, 64, 16), (40, 192, 48))

Method = Literal["direct", "halves", "float64"]


def quantize_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize each row by its own largest magnitude, so that no row's result depends on the others.

    Args:
        values: float32 ``[rows, columns]``.

    Returns:
        int8 codes -127..127 ``[rows, columns]``, and float32 scales ``[rows, 1]``; a row that holds nan or inf gets a
        nan scale, so that what is computed from it is nan, whatever its codes are.
    """
    # Of rows of zeros, and of magnitudes whose scale would underflow, nothing is resolved.
    step = values.abs().amax(-1, keepdim=True).div_(127).clamp_min_(torch.finfo(torch.float32).tiny)
    codes = values.div(step).round_().to(torch.int8)
    return codes, step.lerp(step, 1.0)  # step + (step - step), and inf - inf is nan


def quantize_to_range(values: Tensor, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize inputs with one scale and zero_point for all; what lies outside of their range is clipped.

    Args:
        values: float32 ``[rows, columns]``.
        scale: float32 ``[]``, > 0.
        zero_point: int32 ``[]``, the code of zero, -128..127.

    Returns:
        int8 codes ``[rows, columns]``, and the scale of each row ``[rows, 1]``: ``scale``, or nan for rows that hold
        nan or inf.
    """
    codes = values.div(scale).round_().add_(zero_point).clamp_(-128, 127).to(torch.int8)
    return codes, values.abs().amax(-1, keepdim=True).mul_(0).add_(scale)  # inf * 0 is nan


def integer_product(codes: Tensor, weight_codes: Tensor) -> Tensor:
    """``codes @ weight_codes.T`` with exact sums, the same bits on every machine.

    Args:
        codes: int8 ``[rows, columns]``; columns <= MAX_FEATURES.
        weight_codes: int8 ``[out, columns]``.

    Returns:
        int32 ``[rows, out]``.
    """
    if codes.shape[1] == 1:
        # A transposed column looks like a row to torch's kernel, which then reads past its end.
        return codes.to(torch.int32) * weight_codes.to(torch.int32).t()
    return _METHODS[_method(codes.device)](codes, weight_codes)


def _method(device: torch.device) -> Method:
    if device.type != "cpu":
        return "float64"
    # A graph that is compiled, exported or traced may run on another machine than this one.
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return "halves" if traced else exact_method()


@functools.cache  # a fact about this machine
def exact_method() -> Method:
    """The fastest way to multiply integers that gives exact sums here, found by trying.

    ``torch._int_mm`` adds products in pairs of 16 bits on x86 machines without VNNI, and saturates silently where
    codes are large; products of unsigned 7-bit codes always fit, so that two of them make an exact one.
    """
    methods: tuple[Method, ...] = ("direct", "halves")
    return next((method for method in methods if _is_exact(_METHODS[method])), "float64")


def _is_exact(product: Callable[[Tensor, Tensor], Tensor]) -> bool:
    for rows, columns, out in _PROBED_SHAPES:
        codes = torch.full((rows, columns), 127, dtype=torch.int8, device="cpu")
        codes[1::3] = -128
        weight_codes = torch.full((out, columns), 127, dtype=torch.int8, device="cpu")
        weight_codes[1::2] = -128
        if not torch.equal(product(codes, weight_codes), _by_float64(codes, weight_codes)):
            return False
    return True


def _direct(codes: Tensor, weight_codes: Tensor) -> Tensor:
    return torch._int_mm(codes, weight_codes.t())


def _by_halves(codes: Tensor, weight_codes: Tensor) -> Tensor:
    # As u = codes + 128, in seven bits and one; a row of ones sums up the weight codes, for what the 128 adds.
    # All in one product, because the kernel prepares the weight anew for each.
    count, columns = codes.shape
    unsigned = codes.to(torch.uint8) ^ _SIGN
    sums = torch._int_mm(torch.cat([unsigned >> 1, unsigned & 1, unsigned.new_ones(1, columns)]), weight_codes.t())
    return sums[count : 2 * count].add(sums[:count], alpha=2).sub_(sums[-1:] * _SIGN)


def _by_float64(codes: Tensor, weight_codes: Tensor) -> Tensor:
    return (codes.to(torch.float64) @ weight_codes.to(torch.float64).t()).to(torch.int32)


_METHODS: dict[Method, Callable[[Tensor, Tensor], Tensor]] = {
    "direct": _direct,
    "halves": _by_halves,
    "float64": _by_float64,
}
