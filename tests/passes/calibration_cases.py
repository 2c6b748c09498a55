"""Models and data for tests of CalibrationPass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monoquant as mq


class Log:
    """What calls saw; no plain list in the model, since the pass restores those."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.modes: list[tuple[bool, bool]] = []


class Recorder(nn.Module):
    """Remembers the inputs and the mode that each call saw."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.log = Log()

    @property
    def seen(self) -> list[Any]:
        return self.log.seen

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        self.log.seen.append((x, scale))
        self.log.modes.append((self.training, torch.is_grad_enabled()))
        return self.linear(x if scale is None else x * scale)


either = pytest.mark.parametrize("algorithm", ["round_to_nearest", "gptq"])


def calibrate(
    data: Any, model: nn.Module | None = None, algorithm: str = "round_to_nearest", **options: Any
) -> tuple[nn.Module, mq.QuantResult]:
    """Run a pipeline with calibration; the model given is the one that sees the data."""
    model = Recorder() if model is None else model
    pack = mq.Int4PackPass(algorithm=algorithm)
    passes = [mq.SkipSelectionPass(), mq.CalibrationPass(data, **options), pack, mq.ValidationPass()]
    return model, mq.Quantizer(passes).run(model)


def batches(count: int = 4, size: int = 5) -> list[Tensor]:
    """Numbered batches, so that order and content are seen."""
    return [torch.full((size, 32), float(index + 1)) for index in range(count)]
