"""hqq: 4 bits in groups of 128 along the inputs; every product dequantizes the weight first.

Layers to multiply with are made without its optimizer, which takes a minute per 45 million weights and changes no
time; quantization is timed with it, on a part of the weights.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from torch import Tensor, nn

from speed.ways import GROUP, Way, replace_layers

VERSION = f"hqq {version('hqq')}"


def quantize(optimize: bool, dtype: torch.dtype, model: nn.Module) -> nn.Module:
    """Replace every layer."""
    config = BaseQuantizeConfig(nbits=4, group_size=GROUP, axis=1)
    config["weight_quant_params"]["optimize"] = optimize
    pack = partial(HQQLinear, quant_config=config, compute_dtype=dtype, device="cpu", del_orig=True)
    return replace_layers(model.to(dtype), pack)


def dequantized(packed: Any) -> Tensor:
    """What the weight stands for."""
    weight: Tensor = packed.dequantize().float()
    return weight


PLAIN = partial(quantize, False, torch.float32)
WAYS = [
    Way("hqq 4 bit fp32", 4.5, quantize=PLAIN, weight=dequantized, quantization=False),
    Way(
        "hqq 4 bit bf16",
        4.25,
        ("bfloat16",),
        quantize=partial(quantize, False, torch.bfloat16),
        weight=dequantized,
        models=False,
        quantization=False,
    ),
    Way("hqq 4 bit, optimized", 4.5, (), quantize=partial(quantize, True, torch.float32), part=1 / 88, models=False),
]
