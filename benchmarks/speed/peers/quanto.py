"""optimum-quanto: qint4 in groups of 128; torch's int4 kernel multiplies in bfloat16, else a dequantized weight."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from optimum.quanto import freeze, qint4
from optimum.quanto import quantize as mark
from torch import Tensor, nn

from speed.ways import Way

VERSION = f"optimum-quanto {version('optimum-quanto')}"


def quantize(dtype: torch.dtype, model: nn.Module) -> nn.Module:
    """Quantize in place, after the model is in `dtype`."""
    model = model.to(dtype)
    mark(model, weights=qint4, exclude="*lm_head")
    freeze(model)
    return model


def dequantized(packed: nn.Module) -> Tensor:
    """What the weight stands for."""
    weight: Any = packed.weight
    found: Tensor = weight.dequantize().float()
    return found


WAYS = [
    Way("quanto qint4 fp32", 4.5, quantize=partial(quantize, torch.float32), weight=dequantized),
    Way(
        "quanto qint4 bf16",
        4.25,
        ("bfloat16",),
        quantize=partial(quantize, torch.bfloat16),
        weight=dequantized,
        quantization=False,
    ),
]
