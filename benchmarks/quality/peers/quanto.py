"""optimum-quanto: qint4 without data; groups of 128, or of the 96 that it chooses for 576 columns."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version

from case import Case, Outcome
from optimum.quanto import HqqOptimizer, freeze, qint4, quantize
from subjects import SUBJECTS, Subject
from torch import nn

VERSION = f"optimum-quanto {version('optimum-quanto')}"
SHIFTED = 32
"""Bits of a group's 16-bit scale and shift."""


def by_optimizer(optimizer: object, _subject: Subject, model: nn.Module) -> Outcome:
    """Quantize in place, with its own default optimizer if None is given."""
    quantize(model, weights=qint4, exclude="*lm_head", optimizer=optimizer)
    freeze(model)
    weights = [module.weight for module in model.modules() if type(module).__name__ == "QLinear"]
    bits = sum((4 + SHIFTED / weight._group_size) * weight.numel() for weight in weights)
    return Outcome(model, bits / sum(weight.numel() for weight in weights))


CASES = [
    Case(f"qint4 {name}, no data", subject, partial(by_optimizer, optimizer))
    for subject in SUBJECTS
    for name, optimizer in (("MaxOptimizer (default)", None), ("HqqOptimizer", HqqOptimizer()))
]
