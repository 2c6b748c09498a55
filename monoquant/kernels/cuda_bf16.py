"""torch's own packed INT4 product on NVIDIA GPUs, which rounds inputs and scales to bfloat16."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from monoquant.kernels.base import Codes, Product, ProductKernel
from monoquant.kernels.portable import dequantized, zero_points
from monoquant.numerics.packing import unpack_nibbles

_GROUP_SIZES = (32, 64, 128, 256)
_FEWER_INPUTS = 192
"""The operator is made for few input rows; from here on it is faster to dequantize and to multiply in bfloat16."""
_ROWS, _COLUMNS = 8, 128
"""Multiples of these fill the operator's tiles, with eight steps of sixteen columns in each."""
_STEPS = 8


class CudaBf16(ProductKernel):
    """``aten::_weight_int4pack_mm`` for up to 191 input rows, a dequantized product in bfloat16 for more."""

    name: ClassVar[str] = "cuda-bf16"
    relative_error: ClassVar[float] = 2e-2
    preference: ClassVar[int] = 5

    def obstacle(self, product: Product) -> str | None:
        if product.device.type != "cuda" or torch.version.cuda is None:
            return "it is for NVIDIA GPUs"
        if torch.cuda.get_device_capability(product.device) < (8, 0):
            return "the GPU is older than compute capability 8.0"
        if product.scheme.bits != 4 or product.dtype == torch.float64:
            return "it is for 4 bits and dtypes up to float32"
        if product.group_size not in _GROUP_SIZES:
            return f"groups of {product.group_size} are none of {', '.join(map(str, _GROUP_SIZES))}"
        return None

    def derive(self, codes: Codes, product: Product) -> tuple[Tensor, ...]:
        values = unpack_nibbles(codes.qweight, codes.columns)
        values = functional.pad(values, (0, _padded(codes) - codes.columns, 0, -codes.rows % _ROWS))
        packed = torch.ops.aten._convert_weight_to_int4pack((values[:, ::2] << 4) | values[:, 1::2], _STEPS)
        scale = codes.scale.float()
        middle = (8 - torch.as_tensor(zero_points(codes), device=scale.device).float()) * scale
        return packed, torch.stack([_by_group(scale, codes), _by_group(middle, codes)], dim=-1).to(torch.bfloat16)

    def multiply(self, inputs: Tensor, codes: Codes, derived: tuple[Tensor, ...], bias: Tensor | None) -> Tensor:
        rounded = inputs.to(torch.bfloat16)
        if not 0 < inputs.shape[0] < _FEWER_INPUTS:
            added = None if bias is None else bias.to(torch.bfloat16)
            return functional.linear(rounded, dequantized(codes).to(torch.bfloat16), added).to(inputs.dtype)
        packed, parameters = derived
        missing = _padded(codes) - codes.columns
        padded = functional.pad(rounded, (0, missing)) if missing else rounded
        product = torch.ops.aten._weight_int4pack_mm(padded, packed, codes.group_size, parameters)
        output: Tensor = product if product.shape[1] == codes.rows else product[:, : codes.rows].contiguous()
        output = output.to(inputs.dtype)
        return output if bias is None else output.add_(bias.to(inputs.dtype))


def _padded(codes: Codes) -> int:
    width = max(codes.group_size, _COLUMNS)
    return -(-codes.columns // width) * width


def _by_group(parameters: Tensor, codes: Codes) -> Tensor:
    groups = _padded(codes) // codes.group_size
    return functional.pad(parameters, (0, groups - parameters.shape[1], 0, -codes.rows % _ROWS)).t()
