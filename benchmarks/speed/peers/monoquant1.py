"""mono-quant 1.1, monoquant's predecessor. `bits=4` of its calls makes INT8, so its INT4 layer is used by name.

Its groups are 128 *rows*: a scale holds for 128 whole rows.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from mono_quant.modules.linear import quantize_linear_module_int4
from torch import Tensor, nn

from speed.ways import GROUP, Way, replace_layers

VERSION = f"mono-quant {version('mono-quant')}"


def quantize(model: nn.Module) -> nn.Module:
    """Replace every layer."""
    return replace_layers(model, pack)


def pack(linear: nn.Linear) -> nn.Module:
    """One layer, asymmetric: its symmetric codes use half of the range."""
    packed: nn.Module = quantize_linear_module_int4(linear, GROUP, symmetric=False)
    return packed


def dequantized(packed: Any) -> Tensor:
    """What the weight stands for."""
    weight: Tensor = packed.weight
    return weight


WAYS = [Way("mono-quant 1.1 INT4", 4.0, quantize=quantize, weight=dequantized)]
