"""Whether a kernel computes here what it should, found by trying before it is used."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from monoquant.kernels.base import EXACT, Codes, Kernel, ProductKernel, RoundingKernel, product_of
from monoquant.kernels.portable import dequantized
from monoquant.numerics.affine import GroupCodes, round_to_nearest
from monoquant.numerics.metrics import measure
from monoquant.numerics.packing import pack_nibbles
from monoquant.values import Scheme

_MATRICES = (
    (70, 200, Scheme()),
    (33, 96, Scheme(4, 32, symmetric=True, scale_dtype=torch.float32)),
    (5, 131, Scheme(4, 64, scale_dtype=torch.bfloat16)),
    (64, 256, Scheme(4, None)),
    (9, 50, Scheme(8, 16)),
)
_INPUT_ROWS = (1, 6, 40)


@functools.cache  # a fact about this machine
def disagreement(kernel: Kernel) -> str | None:
    """Try a kernel on small odd matrices.

    Args:
        kernel: Any kernel; what it says it cannot run is not tried.

    Returns:
        How it differs from what it should compute, or what it raised; None if all is well.
    """
    try:
        with torch.no_grad():
            return next(filter(None, (_of_one(kernel, *matrix) for matrix in _MATRICES)), None)
    except Exception as error:
        return f"it raised {type(error).__name__}: {error}"


def _of_one(kernel: Kernel, rows: int, columns: int, scheme: Scheme) -> str | None:
    generator = torch.Generator("cpu").manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator, device="cpu", dtype=torch.float32)
    expected = packed(round_to_nearest(weight, scheme), scheme)
    if isinstance(kernel, RoundingKernel):
        cpu = torch.device("cpu")
        return None if kernel.obstacle(weight.dtype, cpu, scheme) else _of_rounding(kernel, weight, scheme, expected)
    if not isinstance(kernel, ProductKernel) or kernel.obstacle(product_of(expected, scheme, weight.dtype)):
        return None
    inputs = torch.randn(max(_INPUT_ROWS), columns, generator=generator, device="cpu", dtype=torch.float32)
    bias = torch.randn(rows, generator=generator, device="cpu", dtype=torch.float32)
    return _of_product(kernel, expected, scheme, inputs, bias)


def _of_product(kernel: ProductKernel, codes: Codes, scheme: Scheme, inputs: Tensor, bias: Tensor) -> str | None:
    what = f"the product of a {codes.rows} x {codes.columns} matrix in {scheme}"
    derived = kernel.derive(codes, product_of(codes, scheme, inputs.dtype))
    expected = inputs.double() @ dequantized(codes).double().t() + bias
    for count in _INPUT_ROWS:
        found = kernel.multiply(inputs[:count], codes, derived, bias).double()
        if found.shape != (count, codes.rows):
            return f"{what} has shape {tuple(found.shape)}"
        error = float((found - expected[:count]).norm() / expected[:count].norm())
        if not error <= max(kernel.relative_error, EXACT):
            allowed = max(kernel.relative_error, EXACT)
            return f"{what} has a relative error of {error:.1e}, more than {allowed:g}"
    broken = inputs[:3].clone()
    broken[1, 0] = math.nan
    finite = torch.isfinite(kernel.multiply(broken, codes, derived, bias)).all(1)
    if finite.tolist() != [True, False, True]:
        return f"{what} hides a nan of an input row, or spreads it to others"
    return None


def _of_rounding(kernel: RoundingKernel, weight: Tensor, scheme: Scheme, expected: Codes) -> str | None:
    zero_point = None if expected.zero_point is None else torch.full_like(expected.zero_point, 1)
    qweight, scale = torch.full_like(expected.qweight, 1), torch.full_like(expected.scale, 1)
    found = Codes(qweight, scale, zero_point, expected.columns, expected.group_size)
    energy = kernel.pack(weight, scheme, found, measured=True)
    names = ("qweight", "scale", "zero_point")
    differs = [name for name in names if _differ(getattr(found, name), getattr(expected, name))]
    what = f"packing {tuple(weight.shape)} to {scheme}"
    if differs:
        return f"{what} gives another {' and '.join(differs)}"
    lost = measure(weight, dequantized(expected))
    if energy is None or not math.isclose(energy.noise, lost.noise, rel_tol=1e-3):
        return f"{what} measures {energy}, where {lost} is right"
    return None


def _differ(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and not torch.equal(one, other)


def packed(codes: GroupCodes, scheme: Scheme) -> Codes:
    """Store codes canonically.

    Args:
        codes: Of a matrix.
        scheme: Its scheme.
    """
    columns = codes.codes.shape[1]
    width = scheme.width(columns)
    if scheme.bits == 8:
        signed = [(one ^ 128).view(torch.int8) for one in (codes.codes, codes.zero_point)]
        return Codes(signed[0], codes.scale, None if scheme.symmetric else signed[1], columns, width)
    zero_point = None if scheme.symmetric else pack_nibbles(codes.zero_point.flatten())
    return Codes(pack_nibbles(codes.codes), codes.scale, zero_point, columns, width)
