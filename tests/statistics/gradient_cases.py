"""Models and questions for tests of squared gradients."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from monoquant.statistics.gradients import GradientProbe


class Chain(nn.Module):
    """Two Linears with something between and something around the answer."""

    def __init__(self, between: nn.Module | None = None, wrap: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.a, self.between, self.b = nn.Linear(6, 5), between or nn.Identity(), nn.Linear(5, 4)
        self.wrap = wrap
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.b(self.between(self.a(x))))


def inputs(rows: int, seed: int = 5) -> Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))


def probed(model: nn.Module, x: Tensor, *names: str, times: int = 1) -> GradientProbe:
    probe = GradientProbe({name: model.get_submodule(name) for name in names or ("a", "b")})
    for _ in range(times):
        probe.probe(lambda: model(x))
    return probe


def energy(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().sum())


def with_logits(y: Tensor) -> Any:
    return SimpleNamespace(loss=None, logits=y)


one, other, whole = torch.ones(2), torch.zeros(3), torch.arange(2)
