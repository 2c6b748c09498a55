"""torchao: round to nearest. Its GPTQ wants CUDA; its AWQ and HQQ had not done MiniLM after minutes of CPU time.

SmolLM2 gets groups of 64: it refuses 128 in 576 columns.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version

import torch
from case import Case, Outcome, nominal_bits
from subjects import Subject
from torch import nn
from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_
from torchao.quantization.quant_primitives import MappingType

VERSION = f"torchao {version('torchao')}"


def quantize(group_size: int, _subject: Subject, model: nn.Module) -> Outcome:
    """Quantize in place."""
    bits = nominal_bits(model, group_size, zero_bits=4)
    granularity, mapping = PerGroup(group_size), MappingType.ASYMMETRIC
    config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=granularity, mapping_type=mapping)
    quantize_(model, config, filter_fn=is_body)
    return Outcome(model, bits)


def is_body(module: nn.Module, name: str) -> bool:
    """Whether everybody quantizes this module."""
    return isinstance(module, nn.Linear) and not name.endswith("lm_head")


CASES = [
    Case(f"IntxWeightOnly int4 asymmetric g{size}", name, partial(quantize, size))
    for name, size in (("minilm", 128), ("smollm2", 64))
]
