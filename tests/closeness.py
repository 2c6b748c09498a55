"""How far results may be apart that differ in nothing but the order of float32 sums."""

from __future__ import annotations

import torch
from torch import Tensor

ORDER_OF_SUMS = 1e-6
"""Of the sizes of all terms; some sixteen roundings of float32, where sums of some hundred terms need but a few."""


def assert_product(found: Tensor, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """Fail unless each number is that of ``inputs @ weight.T + bias``, summed in float32 and rounded to its dtype once.

    What does not fit the dtype is inf, as it is everywhere in torch.

    Args:
        found: What was computed, ``[..., rows]``.
        inputs: ``[..., columns]``.
        weight: ``[rows, columns]``, in float32 or a dtype that it fits in.
        bias: ``[rows]``, or None.
    """
    assert (found.shape, found.dtype) == ((*inputs.shape[:-1], len(weight)), inputs.dtype)
    rows, matrix = inputs.detach().double(), weight.detach().double()
    added = matrix.new_zeros(len(matrix)) if bias is None else bias.detach().double()
    expected, size = rows @ matrix.t() + added, rows.abs() @ matrix.abs().t() + added.abs()
    sums = 1e-15 if inputs.dtype == torch.float64 else ORDER_OF_SUMS
    kind = torch.finfo(inputs.dtype)
    error = found.detach().double().clamp(-kind.max, kind.max) - expected.clamp(-kind.max, kind.max)
    excess = error.abs() - kind.eps / 2 * expected.abs() - sums * size
    smallest = max(kind.tiny * kind.eps, torch.finfo(torch.float32).tiny)
    assert (excess <= smallest).all(), f"{float(excess.max()):.1e} more than allowed, of {float(size.max()):.1e}"


def assert_same_sums(found: Tensor, expected: Tensor) -> None:
    """Fail unless outputs of some layers on end are the same but for the order of float32 sums.

    Args:
        found: float32, of any shape.
        expected: The same.
    """
    assert (found.shape, found.dtype, expected.dtype) == (expected.shape, torch.float32, torch.float32)
    size = float(expected.detach().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * size)
