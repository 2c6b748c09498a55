"""NNCF: compress_weights. It refuses groups of 128 in 576 columns, so SmolLM2 gets groups of 64."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

import nncf
from case import Case, Outcome, nominal_bits
from subjects import Subject
from torch import nn

VERSION = f"nncf {version('nncf')}"
FLOAT = [".*embed.*", ".*lm_head.*"]
WAYS: Mapping[str, dict[str, bool]] = {
    "data-free": {},
    "scale_estimation": {"scale_estimation": True},
    "awq + scale_estimation": {"awq": True, "scale_estimation": True},
}


def quantize(group_size: int, options: dict[str, bool], subject: Subject, model: nn.Module) -> Outcome:
    """Compress a model; samples go in one by one."""
    data = [inputs(batch) for batch in subject.calibration(1)]
    bits = nominal_bits(model, group_size, zero_bits=4)
    compressed = nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode.INT4_ASYM,
        group_size=group_size,
        ratio=1.0,
        all_layers=False,
        ignored_scope=nncf.IgnoredScope(patterns=FLOAT, validate=False),
        dataset=nncf.Dataset(data),
        subset_size=len(data),
        **options,
    )
    return Outcome(compressed, bits)


def inputs(batch: Any) -> dict[str, Any]:
    """What a model takes."""
    return batch if isinstance(batch, dict) else {"input_ids": batch, "use_cache": False}


CASES = [
    Case(f"INT4_ASYM {way} g{size}", name, partial(quantize, size, options))
    for name, size in (("minilm", 128), ("smollm2", 64))
    for way, options in WAYS.items()
]
