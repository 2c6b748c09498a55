"""torch's own packed product on NVIDIA GPUs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monoquant.kernels.base import Product, product_of
from monoquant.kernels.cuda_bf16 import CudaBf16
from monoquant.values import Scheme
from tests.kernels.matrices import normal, packed, relative_error

KERNEL = CudaBf16()
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")


@needs_gpu
@given(
    rows=st.integers(1, 150),
    columns=st.integers(32, 700),
    group_size=st.sampled_from([32, 64, 128, 256]),
    symmetric=st.booleans(),
    count=st.sampled_from([0, 1, 5, 191, 192, 300]),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_matrix(
    rows: int, columns: int, group_size: int, symmetric: bool, count: int, bias: bool, dtype: torch.dtype
) -> None:
    """Ragged groups and sizes that fill no tile of the operator are padded; the error is that of bfloat16."""
    matrix = packed(rows, max(columns, group_size), Scheme(4, group_size, symmetric)).to("cuda")
    product = product_of(matrix.codes, matrix.scheme, dtype)
    assert KERNEL.obstacle(product) is None
    inputs = normal(count, matrix.columns, seed=1, dtype=dtype).cuda()
    added = normal(rows, seed=2).cuda() if bias else None
    output = KERNEL.multiply(inputs, matrix.codes, KERNEL.derive(matrix.codes, product), added)
    assert output.shape == (count, rows)
    assert output.dtype == dtype
    assert relative_error(output, inputs, matrix, added) < KERNEL.relative_error


@needs_gpu
def test_codes_are_read_in_their_places() -> None:
    """Each weight alone."""
    matrix = packed(70, 256, Scheme(4, 64)).to("cuda")
    derived = KERNEL.derive(matrix.codes, product_of(matrix.codes, matrix.scheme, torch.float32))
    unit = torch.eye(256, device="cuda")
    found = torch.cat([KERNEL.multiply(rows, matrix.codes, derived, None) for rows in unit.split(8)])
    torch.testing.assert_close(found.t(), matrix.dequantize(), rtol=0.02, atol=0.02)


def test_it_is_for_gpus() -> None:
    """On a CPU another kernel is chosen."""
    assert "NVIDIA" in str(KERNEL.obstacle(Product(16, 128, Scheme(), torch.device("cpu"), torch.float32)))


@pytest.mark.parametrize(
    ("scheme", "columns", "dtype", "capability", "reason"),
    [
        (Scheme(), 128, torch.float32, (7, 5), "older"),
        (Scheme(8), 128, torch.float32, (9, 0), "4 bits"),
        (Scheme(), 128, torch.float64, (9, 0), "4 bits"),
        (Scheme(), 96, torch.float32, (9, 0), "groups of 96"),
        (Scheme(), 128, torch.bfloat16, (8, 0), "None"),
    ],
)
def test_what_it_cannot_multiply(
    scheme: Scheme,
    columns: int,
    dtype: torch.dtype,
    capability: tuple[int, int],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each reason is told; what the GPU is is asked of torch."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert reason in str(KERNEL.obstacle(Product(16, columns, scheme, torch.device("cuda"), dtype)))
