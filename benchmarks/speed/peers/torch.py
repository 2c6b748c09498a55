"""torch itself: float models in bfloat16, and the dynamic INT8 of torch.ao, which has other weights than INT4."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from speed.ways import Way, is_body

VERSION = f"torch {torch.__version__}"


def to_bfloat16(model: nn.Module) -> nn.Module:
    """A copy whose weights are rounded, as its activations are."""
    return copy.deepcopy(model).to(torch.bfloat16)


def to_int8(model: nn.Module) -> nn.Module:
    """Quantize weights per tensor, and activations when they come."""
    layers = {name for name, module in model.named_modules() if is_body(module, name)}
    quantized: nn.Module = torch.ao.quantization.quantize_dynamic(model, layers, torch.qint8)
    return quantized


def int8_weight(packed: nn.Module) -> Tensor:
    """What the packed weight stands for."""
    weight: Tensor = packed.weight().dequantize()  # type: ignore[operator]
    return weight


def own_weight(linear: nn.Linear) -> Tensor:
    """The weight as it is."""
    return linear.weight.float()


WAYS = [
    Way("torch bf16", 16, ("bfloat16",), quantize=to_bfloat16, weight=own_weight, quantization=False),
    Way("torch.ao dynamic int8", 8, integer=True, quantize=to_int8, weight=int8_weight, quantization=False),
]
