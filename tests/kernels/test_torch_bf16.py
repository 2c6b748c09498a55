"""torch's own packed product on x86."""

from __future__ import annotations

import platform

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monoquant.kernels.base import Product, product_of
from monoquant.kernels.torch_bf16 import TorchBf16
from monoquant.values import Scheme
from tests.kernels.matrices import counts, normal, packed, relative_error

KERNEL = TorchBf16()
CPU = torch.device("cpu")

runs_here = pytest.mark.skipif(
    KERNEL.obstacle(Product(16, 128, Scheme(), CPU, torch.float32)) is not None,
    reason="no x86 CPU with AVX2",
)


@runs_here
@given(
    rows=st.integers(1, 150),
    columns=st.integers(32, 400),
    group_size=st.sampled_from([32, 64, 128, 256]),
    symmetric=st.booleans(),
    count=counts,
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_matrix(
    rows: int, columns: int, group_size: int, symmetric: bool, count: int, bias: bool, dtype: torch.dtype
) -> None:
    """Ragged groups and rows that fill no block of the operator are padded; the error is that of bfloat16."""
    matrix = packed(rows, max(columns, group_size), Scheme(4, group_size, symmetric))
    product = product_of(matrix.codes, matrix.scheme, dtype)
    assert KERNEL.obstacle(product) is None
    inputs = normal(count, matrix.columns, seed=1, dtype=dtype)
    added = normal(rows, seed=2) if bias else None
    output = KERNEL.multiply(inputs, matrix.codes, KERNEL.derive(matrix.codes, product), added)
    assert output.shape == (count, rows)
    assert output.dtype == dtype
    assert relative_error(output, inputs, matrix, added) < KERNEL.relative_error


@runs_here
def test_codes_are_read_in_their_places() -> None:
    """Each weight alone: a wrong order of nibbles, rows or groups would show in one output of a unit vector."""
    matrix = packed(70, 256, Scheme(4, 64))
    derived = KERNEL.derive(matrix.codes, product_of(matrix.codes, matrix.scheme, torch.float32))
    found = torch.cat([KERNEL.multiply(rows, matrix.codes, derived, None) for rows in torch.eye(256).split(8)])
    torch.testing.assert_close(found.t(), matrix.dequantize(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("product", "reason"),
    [
        (Product(16, 128, Scheme(), torch.device("cuda"), torch.float32), "x86"),
        (Product(16, 128, Scheme(8), CPU, torch.float32), "4 bits"),
        (Product(16, 128, Scheme(), CPU, torch.float64), "4 bits"),
        (Product(16, 96, Scheme(), CPU, torch.float32), "groups of 96"),
        (Product(16, 128, Scheme(4, 16), CPU, torch.float32), "groups of 16"),
    ],
)
def test_what_it_cannot_multiply(product: Product, reason: str) -> None:
    """Each reason is told."""
    if platform.machine() not in ("x86_64", "AMD64"):
        reason = "x86"
    assert reason in str(KERNEL.obstacle(product))


def test_machines_that_it_is_not_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other CPUs lay the operator's matrix out in other ways, and old ones are slow."""
    product = Product(16, 128, Scheme(), CPU, torch.float32)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert "AVX2" in str(KERNEL.obstacle(product))
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "x86" in str(KERNEL.obstacle(product))
