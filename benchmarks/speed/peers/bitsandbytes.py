"""bitsandbytes: nf4 in blocks of 64, its default. On CPUs without AVX512-BF16 every product dequantizes first."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn

from speed.ways import Way, replace_layers

VERSION = f"bitsandbytes {version('bitsandbytes')}"


def quantize(dtype: torch.dtype, model: nn.Module) -> nn.Module:
    """Replace every layer."""
    return replace_layers(model.to(dtype), partial(pack, dtype))


def pack(dtype: torch.dtype, linear: nn.Linear) -> nn.Module:
    """One layer."""
    bias = linear.bias is not None
    options = {"compute_dtype": dtype, "compress_statistics": False, "quant_type": "nf4", "device": "meta"}
    packed: nn.Module = Linear4bit(linear.in_features, linear.out_features, bias, **options)
    weight = Params4bit(linear.weight.data, requires_grad=False, compress_statistics=False, quant_type="nf4")
    packed.weight = weight.to("cpu")
    packed.bias = linear.bias
    return packed


def dequantized(packed: Any) -> Tensor:
    """What the weight stands for."""
    weight: Tensor = dequantize_4bit(packed.weight.data, packed.weight.quant_state).float()
    return weight


WAYS = [
    Way("bitsandbytes nf4 fp32", 4.5, quantize=partial(quantize, torch.float32), weight=dequantized),
    Way(
        "bitsandbytes nf4 bf16",
        4.5,
        ("bfloat16",),
        quantize=partial(quantize, torch.bfloat16),
        weight=dequantized,
        models=False,
        quantization=False,
    ),
]
