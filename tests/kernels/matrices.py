"""Packed matrices of any kind, for the tests of kernels."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.testing.strategies.schemes import schemes
from monoquant.values import Scheme


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(rows: int, columns: int, scheme: Scheme, seed: int = 0) -> PackedMatrix:
    return PackedMatrix.pack(normal(rows, columns, seed=seed), scheme)[0]


def relative_error(found: Tensor, inputs: Tensor, matrix: PackedMatrix, bias: Tensor | None = None) -> float:
    """Norm of the error over the norm that the product has where the signs of its terms are random.

    A product of few numbers may come out near zero by chance, of which any error is a large part.
    """
    rows, weight = inputs.double(), matrix.dequantize().double()
    added = torch.zeros(len(weight)).double() if bias is None else bias.double()
    expected, square = rows @ weight.t() + added.to(weight), rows.square() @ weight.square().t()
    size = (square + added.to(weight).square()).sum().sqrt()
    return float((found.double() - expected).norm() / size.clamp_min(1e-30))


matrices = st.builds(packed, st.integers(1, 70), st.integers(1, 300), schemes(), st.integers(0, 9))
counts = st.sampled_from([0, 1, 3, 15, 16, 17, 130])
