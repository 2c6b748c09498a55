"""Measuring outputs by repeating calls that calibration saw."""

from __future__ import annotations

import torch
from torch import nn

import monoquant as mq


class Caching(nn.Module):
    """Appends to the list that it is given, as a cache of keys and values is filled."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn_weight = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor, seen: list[torch.Tensor]) -> torch.Tensor:
        seen.append(x @ self.rnn_weight)
        return torch.stack(seen).sum(0)


def test_what_a_call_writes_to_its_arguments_does_not_disturb_the_measurement() -> None:
    """Float and packed module each get arguments of their own."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.caching = Caching()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.caching(x, [])

    report = mq.quantize(Model(), bits=8, calibration_data=[torch.randn(60, 8)], accuracy_warning="ignore").report
    assert 35 < report.layers[0].output_sqnr_db < 60


def test_a_call_that_cannot_be_repeated_is_told_and_not_measured() -> None:
    """The run goes on: the weights are measured, and the finding says why the output is not."""

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(8, 8))
            self.rate = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.matrix * self.rate

    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reads = Reads()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.reads.rate = 2.0
            try:
                return self.reads(x)
            finally:
                self.reads.rate = None

    report = mq.quantize(Owner(), bits=8, calibration_data=[torch.randn(60, 8)], accuracy_warning="ignore").report
    assert report.layers[0].output_sqnr_db is None
    assert report.layers[0].weight_sqnr_db > 30
    (finding,) = [finding for finding in report.findings if finding.code == "output-not-measured"]
    assert "'reads' is not measured: its calls cannot be repeated (TypeError" in finding.message


def test_a_forward_that_belongs_to_the_object_is_told_and_not_repeated() -> None:
    """Its closure would run the float module in the packed one's place, and show no damage at all."""
    model = nn.Sequential(nn.Conv1d(8, 8, 3))
    real = model[0].forward
    model[0].forward = lambda x: real(x)
    report = mq.quantize(
        model, bits=8, calibration_data=[torch.randn(60, 8, 5)], accuracy_warning="ignore", inplace=True
    ).report
    assert report.layers[0].output_sqnr_db is None
    (finding,) = [finding for finding in report.findings if finding.code == "output-not-measured"]
    assert "its forward belongs to the object" in finding.message
