"""torchao: weights in int4, by the two configurations for CPUs that its prototypes have, and by the stable one.

With activations in float32 torch's kernel takes 10 to 80 times the time of a float product, minutes in all, so that
only quantization is timed with them. The stable `Int4WeightOnlyConfig` has no format for CPUs, and
`IntxWeightOnlyConfig` packs nothing: a byte holds one value.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torchao.prototype.quantization.int4 import Int8DynamicActivationInt4WeightConfig
from torchao.prototype.quantization.int4.inference_workflow import PrototypeInt4WeightOnlyConfig
from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_
from torchao.quantization.quant_primitives import MappingType

from speed.ways import GROUP, Way, is_body

VERSION = f"torchao {version('torchao')}"


def quantize(config: Any, model: nn.Module) -> nn.Module:
    """Quantize in place."""
    quantize_(model, config, filter_fn=is_body)
    return model


def weight_only(dtype: torch.dtype, model: nn.Module) -> nn.Module:
    """Quantize a model of some dtype; torch's own int4 kernel multiplies."""
    return quantize(PrototypeInt4WeightOnlyConfig(GROUP, set_inductor_config=False), model.to(dtype))


def dequantized(packed: nn.Linear) -> Tensor:
    """What the weight stands for."""
    weight: Any = packed.weight
    found: Tensor = weight.dequantize().float()
    return found


INTEGER = Int8DynamicActivationInt4WeightConfig(GROUP, set_inductor_config=False)
INTX = IntxWeightOnlyConfig(torch.int4, PerGroup(GROUP), MappingType.ASYMMETRIC)
WAYS = [
    Way("torchao int4 opaque fp32", 4.5, (), quantize=partial(weight_only, torch.float32), models=False),
    Way(
        "torchao int4 opaque bf16",
        4.25,
        ("bfloat16",),
        quantize=partial(weight_only, torch.bfloat16),
        quantization=False,
    ),
    Way("torchao int8 x int4", 4.5, integer=True, quantize=partial(quantize, INTEGER)),
    Way("torchao intx int4", 8.3125, quantize=partial(quantize, INTX), weight=dequantized),
]
