"""torch.set_default_dtype and torch.set_default_device are about new tensors of the caller, not about a product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant.container import write_container
from monoquant.kernels import portable
from monoquant.kernels.base import ProductKernel, product_of
from monoquant.kernels.portable import Portable, multiply_tiles
from monoquant.kernels.torch_bf16 import TorchBf16
from monoquant.values import Scheme
from tests.kernels.matrices import normal, packed

DEFAULTS = [torch.float64, torch.bfloat16, torch.device("meta")]


@contextmanager
def defaults(other: torch.dtype | torch.device) -> Iterator[None]:
    """Defaults that are none of those of a float32 model on a CPU."""
    if isinstance(other, torch.device):
        with other:
            yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(other)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("other", DEFAULTS)
@pytest.mark.parametrize("kernel", [Portable(), TorchBf16()])
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("count", [3, 40])
def test_products(
    kernel: ProductKernel,
    scale_dtype: torch.dtype,
    count: int,
    other: torch.dtype | torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kernel derives and multiplies the same, in tiles too."""
    matrix, inputs = packed(70, 192, Scheme(4, 64, scale_dtype=scale_dtype)), normal(count, 192, seed=1)
    product = product_of(matrix.codes, matrix.scheme, inputs.dtype)
    if kernel.obstacle(product) is not None:
        pytest.skip("not for this machine")
    monkeypatch.setattr(portable, "TILE_ELEMENTS", 5 * matrix.columns)
    expected = kernel.multiply(inputs, matrix.codes, kernel.derive(matrix.codes, product), None)
    fast = multiply_tiles(inputs, matrix.codes, None, centred=False)
    with defaults(other):
        found = kernel.multiply(inputs, matrix.codes, kernel.derive(matrix.codes, product), None)
        found_fast = multiply_tiles(inputs, matrix.codes, None, centred=False)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert torch.equal(found_fast, fast)


@pytest.mark.parametrize("other", DEFAULTS)
def test_quantizing_a_file(other: torch.dtype | torch.device, tmp_path: Path) -> None:
    """Blocks of a file are float32 on the CPU whatever is default."""
    write_container(tmp_path / "float.safetensors", nn.Linear(256, 40).state_dict(), {})
    mq.quantize_file(
        tmp_path / "float.safetensors", tmp_path / "one.safetensors", group_size=64, accuracy_warning="ignore"
    )
    with defaults(other):
        mq.quantize_file(
            tmp_path / "float.safetensors", tmp_path / "two.safetensors", group_size=64, accuracy_warning="ignore"
        )
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
