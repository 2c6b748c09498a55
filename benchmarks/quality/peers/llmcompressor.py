"""llm-compressor: GPTQ in the order of importance, as it is by default. SmolLM2 gets groups of 64: it refuses 128."""

from __future__ import annotations

import time
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from case import Case, Outcome, nominal_bits
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from subjects import Subject
from torch import nn
from torch.utils.data import DataLoader

from peers import saved

VERSION = f"llmcompressor {version('llmcompressor')}"
BATCH = {"minilm": 32, "smollm2": 8}


def quantize(modifier: Any, group_size: int, pipeline: str, subject: Subject, model: nn.Module) -> Outcome:
    """Quantize in place; a language model is loaded from a folder first, where its processor is looked for."""
    if subject.name == "minilm":
        return _by_recipe(modifier, group_size, pipeline, subject, model, None)
    with saved.folder(model) as path:
        return _by_recipe(modifier, group_size, pipeline, subject, saved.loaded(path, model), saved.tokenizer())


def _by_recipe(
    modifier: Any, group_size: int, pipeline: str, subject: Subject, model: nn.Module, processor: Any
) -> Outcome:
    bits = nominal_bits(model, group_size, zero_bits=4)
    weights = QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=group_size)
    scheme = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    rows = [inputs(batch) for batch in subject.calibration(BATCH[subject.name])]
    start = time.process_time()
    oneshot(
        model=model,
        dataset=DataLoader(rows, batch_size=None),
        recipe=modifier(config_groups=scheme, ignore=["lm_head"]),
        processor=processor,
        num_calibration_samples=len(rows),
        pipeline=pipeline,
    )
    return Outcome(model, bits, time.process_time() - start)


def inputs(batch: Any) -> dict[str, Any]:
    """What a model takes."""
    return batch if isinstance(batch, dict) else {"input_ids": batch, "attention_mask": torch.ones_like(batch)}


CASES = [
    Case("round to nearest g128", "minilm", partial(quantize, QuantizationModifier, 128, "independent")),
    Case("GPTQ g128, pipeline=basic", "minilm", partial(quantize, GPTQModifier, 128, "basic")),
    Case("round to nearest g64", "smollm2", partial(quantize, QuantizationModifier, 64, "independent")),
    Case("GPTQ g64, pipeline=sequential", "smollm2", partial(quantize, GPTQModifier, 64, "sequential")),
]
