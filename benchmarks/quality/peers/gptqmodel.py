"""GPTQModel: GPTQ of causal language models only. It knows no BERT, and the case for MiniLM shows it say so."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from case import Case, Outcome, body
from common.models import minilm
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from subjects import Subject
from torch import nn

from peers import saved

VERSION = f"gptqmodel {version('gptqmodel')}"


def quantize(group_size: int, subject: Subject, model: nn.Module) -> Outcome:
    """Quantize, save, load, and put the dequantized weights into the float model: its CPU kernel takes no float32."""
    config = QuantizeConfig(bits=4, group_size=group_size, device="cpu", sym=False)
    batches = subject.calibration(8)
    rows = [{"input_ids": ids.tolist(), "attention_mask": [1] * len(ids)} for batch in batches for ids in batch]
    with saved.folder(model) as path, tempfile.TemporaryDirectory() as packed:
        work = GPTQModel.load(str(path), config, dtype=torch.float32)
        start = time.process_time()
        work.quantize(rows, batch_size=8)
        seconds = time.process_time() - start
        work.save(packed)
        found = GPTQModel.load(packed, backend=BACKEND.TORCH, device="cpu", dtype=torch.float16).model
        return Outcome(model, _take_weights(model, found), seconds)


def refused(subject: Subject, model: Any) -> Outcome:
    """Load a model of a kind that it does not know."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        minilm.tokenizer().save_pretrained(folder)
        GPTQModel.load(folder, QuantizeConfig(bits=4, group_size=128, device="cpu", sym=False), dtype=torch.float32)
    raise NotImplementedError(f"GPTQModel loads {subject.name} now: quantize it as SmolLM2")


@torch.no_grad()
def _take_weights(model: nn.Module, packed: Any) -> float:
    """Copy what the packed layers dequantize to; the bits per weight of their buffers, `g_idx` included."""
    size = weights = 0
    for name, layer in body(model):
        other = packed.get_submodule(name)
        layer.weight.copy_(other.dequantize_weight().T)
        size += sum(buffer.numel() * buffer.element_size() for buffer in other.buffers())
        weights += layer.weight.numel()
    return 8 * size / weights


CASES = [
    Case("GPTQ sym=False g128", "minilm", refused),
    *(Case(f"GPTQ sym=False g{size}, defaults", "smollm2", partial(quantize, size)) for size in (128, 64)),
]
