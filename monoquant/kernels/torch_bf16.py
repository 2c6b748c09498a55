"""torch's own packed INT4 product on x86 CPUs, which rounds inputs and scales to bfloat16."""

from __future__ import annotations

import platform
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from monoquant.kernels.base import Codes, Product, ProductKernel
from monoquant.kernels.portable import multiply_tiles, zero_points
from monoquant.numerics.packing import unpack_nibbles

_GROUP_SIZES = (32, 64, 128, 256)
_BLOCK = 64
"""The operator's layout is made of blocks of so many rows, or of half as many; its rows must be a multiple of 16."""
_FEWER_INPUTS = 16
"""It dequantizes anew for every four input rows, so that from here on tiles are faster."""


class TorchBf16(ProductKernel):
    """``aten::_weight_int4pack_mm_for_cpu`` for up to 15 input rows, tiles in float32 for more.

    The operator's layout depends on the CPU's instruction set and says nothing of it, so it is derived on each machine.
    """

    name: ClassVar[str] = "torch-bf16"
    relative_error: ClassVar[float] = 1e-2
    preference: ClassVar[int] = 5

    def obstacle(self, product: Product) -> str | None:
        if product.device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
            return "it is for x86 CPUs"
        if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
            return "without AVX2 it is slower than float"
        if product.scheme.bits != 4 or product.dtype == torch.float64:
            return "it is for 4 bits and dtypes up to float32"
        if product.group_size not in _GROUP_SIZES:
            return f"groups of {product.group_size} are none of {', '.join(map(str, _GROUP_SIZES))}"
        return None

    def derive(self, codes: Codes, product: Product) -> tuple[Tensor, ...]:
        # Filled in place: small results kept between large temporaries would fragment the heap by tens of MiB.
        packed = codes.qweight.new_empty(_rounded_up(codes.rows), _padded_columns(codes) // 2)
        for start in range(0, codes.rows, _BLOCK):
            packed[start : start + _BLOCK] = _packed(codes, slice(start, start + _BLOCK))
        scale = _by_group(codes.scale.float())
        # The operator's zero is the value of code 8.
        middle = _by_group(
            (8 - torch.as_tensor(zero_points(codes), device=codes.scale.device).float()) * codes.scale.float()
        )
        return packed, torch.stack([scale, middle], dim=-1).to(torch.bfloat16)

    def multiply(self, inputs: Tensor, codes: Codes, derived: tuple[Tensor, ...], bias: Tensor | None) -> Tensor:
        if not 0 < inputs.shape[0] < _FEWER_INPUTS:
            return multiply_tiles(inputs.float(), codes, bias, centred=False).to(inputs.dtype)
        packed, parameters = derived
        missing = _padded_columns(codes) - codes.columns
        rounded = (functional.pad(inputs, (0, missing)) if missing else inputs).to(torch.bfloat16)
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(rounded, packed, codes.group_size, parameters)
        output: Tensor = product if product.shape[1] == codes.rows else product[:, : codes.rows].contiguous()
        if output.dtype != inputs.dtype:
            output = output.to(inputs.dtype)
        return output if bias is None else output.add_(bias.to(inputs.dtype))


def _rounded_up(rows: int) -> int:
    return rows + -rows % _BLOCK


def _padded_columns(codes: Codes) -> int:
    return codes.scale.shape[1] * codes.group_size


def _packed(codes: Codes, rows: slice) -> Tensor:
    values = unpack_nibbles(codes.qweight[rows], codes.columns).to(torch.int32)
    padding = (0, _padded_columns(codes) - codes.columns, 0, _BLOCK - len(values))
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(functional.pad(values, padding), 1)
    return packed


def _by_group(parameters: Tensor) -> Tensor:
    return functional.pad(parameters, (0, 0, 0, -len(parameters) % _BLOCK)).t()
