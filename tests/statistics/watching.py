"""Inputs and models that ProductWatch is tried on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from monoquant.statistics.collector import RowStatistics

Found = dict[tuple[str, str], list[RowStatistics]]
Collect = Callable[..., Found]
Check = Callable[[RowStatistics, Tensor], None]
FEATURES = 64


def rows(count: int = 40, features: int = FEATURES, seed: int = 0) -> Tensor:
    """Rows with a mean and with correlations, so that no two sets of them have the same moments."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(8, features, generator=generator)
    return torch.randn(count, 8, generator=generator) @ mixing + torch.randn(features, generator=generator)


class OneWeight(nn.Module):
    """A matrix, multiplied as each test says."""

    def __init__(self, multiply: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(shape or (48, FEATURES), generator=torch.Generator().manual_seed(9)))
        self.multiply = multiply

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.matrix)


class TwoLayers(nn.Module):
    """Two Linears that each test calls in its own way."""

    def __init__(self, run: Callable[[nn.Linear, nn.Linear, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(FEATURES, 48), nn.Linear(FEATURES, 32)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self.a, self.b, x)
