"""auto-round: rounding learned by signed gradient descent, 50 iterations; 200 are its default, and take four times it.

It leaves inputs shorter than its `seqlen` out, so that MiniLM's sentences are put end to end in windows of 128.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from auto_round import AutoRound
from case import Case, Outcome, nominal_bits
from common.models import minilm
from subjects import SUBJECTS, Subject
from torch import Tensor, nn
from torch.utils.data import DataLoader

from peers import saved

VERSION = f"auto-round {version('auto-round')}"
LENGTH = 128
SIZE = 8


def quantize(group_size: int, iterations: int, subject: Subject, model: nn.Module) -> Outcome:
    """Learn the rounding of every block, one after the other."""
    bits = nominal_bits(model, group_size, zero_bits=4)
    batches = windows(subject)
    rows = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in batches]
    rounder = AutoRound(
        model,
        tokenizer=tokenizer(subject),
        scheme="W4A16",
        bits=4,
        group_size=group_size,
        sym=False,
        iters=iterations,
        nsamples=sum(map(len, batches)),
        seqlen=LENGTH,
        batch_size=SIZE,
        dataset=DataLoader(rows, batch_size=None),
        device_map="cpu",
        amp=False,
        enable_torch_compile=False,
    )
    quantized, _ = rounder.quantize()
    return Outcome(quantized, bits)


def windows(subject: Subject) -> list[Tensor]:
    """Calibration data as windows of one length."""
    if subject.name != "minilm":
        return subject.calibration(SIZE)
    ids = torch.cat([batch["input_ids"][0] for batch in subject.calibration(1)])
    return list(ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH).split(SIZE))


def tokenizer(subject: Subject) -> Any:
    """The tokenizer of a subject, which AutoRound asks for."""
    return minilm.tokenizer() if subject.name == "minilm" else saved.tokenizer()


CASES = [Case("W4A16 sym=False g128, 50 iterations", name, partial(quantize, 128, 50)) for name in SUBJECTS]
