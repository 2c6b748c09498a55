"""hqq: half-quadratic quantization without data."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version

import torch
from case import Case, Outcome, body, nominal_bits
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from subjects import SUBJECTS, Subject
from torch import nn

VERSION = f"hqq {version('hqq')}"


def quantize(group_size: int, _subject: Subject, model: nn.Module) -> Outcome:
    """Replace every layer; groups run along the outputs, which is its better axis, and the zero point is a float."""
    bits = nominal_bits(model, group_size, zero_bits=16)
    config = BaseQuantizeConfig(nbits=4, group_size=group_size, axis=0)
    for name, layer in list(body(model)):
        packed = HQQLinear(layer, config, compute_dtype=torch.float32, device="cpu", del_orig=True)
        model.set_submodule(name, packed)
    return Outcome(model, bits)


CASES = [Case(f"HQQ g{size} axis=0, no data", name, partial(quantize, size)) for name in SUBJECTS for size in (128, 64)]
