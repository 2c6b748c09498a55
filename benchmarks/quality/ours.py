"""monoquant's cases, through its public API alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from case import Case, Outcome
from common.models import minilm, smollm2, texts
from subjects import Subject
from torch import nn

import monoquant as mq

VERSION = f"monoquant {mq.__version__}"
FEW_TOKENS = 64
WINDOWS = {"all": 48, "most": 36, "few": 12}
SIZE = 8
Data = Literal["all", "most", "few", "random"]
Quality = Literal["fast", "balanced", "best"]


def float_case(_subject: Subject, model: nn.Module) -> Outcome:
    """The model as it is: what the others are measured against."""
    return Outcome(model, 32.0)


FAST_SECONDS: dict[tuple[str, Data | None, int], float] = {}
"""CPU seconds of calls that see data and fit nothing to it, by model, data and group size; the latest of each."""


@dataclass(frozen=True)
class Setting:
    """Options of one call of quantize.

    Fitting is timed as the difference of two calls: this one, and the same with `quality="fast"` and the same data.
    It thus includes what statistics cost beyond running the model; what a budget weighs counts as well.
    """

    quality: Quality
    group_size: int = 128
    data: Data | None = "all"
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, subject: Subject, model: nn.Module) -> Outcome:
        """Quantize; before that, if codes are to be fitted and nobody has done it yet, quantize fast for the timing."""
        data = None if self.data is None else calibration(subject.name, self.data)
        key = (subject.name, self.data, self.group_size)
        fits = data is not None and self != self.fastest
        if fits and key not in FAST_SECONDS:
            self.fastest(subject, subject.build())
        start = time.process_time()
        result = self.quantize(model, data)
        seconds = time.process_time() - start
        if self == self.fastest:
            FAST_SECONDS[key] = seconds
        fitting = seconds - FAST_SECONDS[key] if fits else None
        critical = sum(finding.severity is mq.Severity.CRITICAL for finding in result.report.findings)
        return Outcome(result.model, real_bits(result.model), seconds, fitting, critical)

    @property
    def fastest(self) -> Setting:
        """The same call without fitting."""
        return Setting("fast", self.group_size, self.data)

    def quantize(self, model: nn.Module, data: Sequence[Any] | None) -> mq.QuantResult:
        """The call."""
        options = dict(self.options)
        if data is not None:
            options |= {"calibration_data": data, "num_calibration_samples": samples(data)}
            options |= {} if "algorithm" in options else {"quality": self.quality}
        return mq.quantize(model, 4, group_size=self.group_size, plugins=False, accuracy_warning="ignore", **options)


def samples(data: Sequence[Any]) -> int:
    """Sentences or windows."""
    return sum(len(batch["input_ids"]) if isinstance(batch, dict) else len(batch) for batch in data)


def real_bits(model: nn.Module) -> float:
    """Bytes of all buffers of packed weights but `layout`, which says what they mean, times 8, by weights."""
    modules = [module for module in model.modules() if isinstance(module, mq.PackedModule)]
    packed = {id(weight): weight for module in modules for weight in module.packed_weights().values()}.values()
    buffers = [buffer for one in packed for name, buffer in one.named_buffers() if name.rpartition(".")[2] != "layout"]
    size = sum(buffer.numel() * buffer.element_size() for buffer in buffers)
    return 8 * size / sum(one.rows * one.columns for one in packed)


@cache
def calibration(subject: str, data: Data) -> list[Any]:
    """Batches of one kind."""
    return _sentences(data) if subject == "minilm" else _windows(data)


def _sentences(data: Data) -> list[dict[str, Any]]:
    every = texts.calibration_and_held_out()[0]
    if data == "few":
        return _few(every)
    batches = minilm.batches(every)
    return [_random(batch) for batch in batches] if data == "random" else batches


def _few(every: Sequence[str]) -> list[dict[str, Any]]:
    """The first sentences that have `FEW_TOKENS` tokens together."""
    counts = [int(batch["attention_mask"].sum()) for batch in minilm.batches(every[:FEW_TOKENS], 1)]
    needed = next(count for count in range(len(counts) + 1) if sum(counts[:count]) >= FEW_TOKENS)
    return minilm.batches(every[:needed])


def _random(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch of the same shape whose tokens are drawn from the words of the vocabulary."""
    ids = batch["input_ids"]
    generator = torch.Generator().manual_seed(ids.numel())
    return batch | {"input_ids": torch.randint(1000, 30_522, ids.shape, generator=generator)}


def _windows(data: Data) -> list[torch.Tensor]:
    return smollm2.batches(smollm2.windows(texts.calibration_text(), WINDOWS[data], 128), SIZE)


def _minilm() -> Iterator[tuple[str, Setting]]:
    yield "no data g128", Setting("fast", data=None)
    for group_size in (128, 32):
        for quality in ("fast", "balanced", "best"):
            yield f"{quality} g{group_size}", Setting(quality, group_size)  # type: ignore[arg-type]
    yield "gptq g128, all rows alike", Setting("best", options={"algorithm": mq.Gptq(weigh_rows=False)})
    yield f"best g128, the sentences of {FEW_TOKENS} tokens", Setting("best", data="few")
    yield "best g128, random tokens", Setting("best", data="random")


def _smollm2() -> Iterator[tuple[str, Setting]]:
    yield "no data g128", Setting("fast", data=None)
    for quality in ("fast", "balanced", "best"):
        yield f"{quality} g128", Setting(quality)  # type: ignore[arg-type]
    yield "awq g128", Setting("best", options={"algorithm": "awq"})
    yield f"best g128, {WINDOWS['most']} x 128 tokens", Setting("best", data="most")
    yield f"best g32, {WINDOWS['few']} x 128 tokens", Setting("best", 32, "few")
    for bits in (4.25, 4.75):
        yield f"best, {bits} bits", Setting("best", options={"target_bits_per_weight": bits})


CASES = [
    Case("float", "minilm", float_case),
    *(Case(name, "minilm", setting) for name, setting in _minilm()),
    Case("float", "smollm2", float_case),
    *(Case(name, "smollm2", setting) for name, setting in _smollm2()),
]
