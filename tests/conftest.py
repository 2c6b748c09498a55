"""Models and helpers that many tests share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

# Machines differ and are busy: how long an example takes says nothing about whether it is right.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


class Block(nn.Module):
    """A residual block with a norm and two Linears, 96 -> 200 -> 96: ragged at groups of 64 and 128."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(96)
        self.up = nn.Linear(96, 200)
        self.down = nn.Linear(200, 96, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Small(nn.Module):
    """Embedding, two blocks, a running buffer, and a head that the default rules keep in float."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 96)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.bn = nn.BatchNorm1d(96)
        self.lm_head = nn.Linear(96, 50)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.bn(x.mean(1)))


def build_small(seed: int = 0) -> Small:
    """A Small with Gaussian Linear weights, as trained ones are rather than uniform."""
    generator = torch.Generator().manual_seed(seed)
    model = Small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that an exception must not change: tensors, flags, classes, hooks."""
    modules = dict(model.named_modules())
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in modules.items()}
    return {
        "tensors": {name: tensor.detach().clone() for name, tensor in model.state_dict(keep_vars=True).items()},
        "identities": {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()},
        "training": {name: module.training for name, module in modules.items()},
        "classes": {name: type(module) for name, module in modules.items()},
        "hooks": hooks,
    }


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    """Fail if a model differs from its snapshot in any way."""
    now = snapshot(model)
    for aspect in ("identities", "training", "classes", "hooks"):
        assert now[aspect] == before[aspect], aspect
    for name, tensor in before["tensors"].items():
        assert torch.equal(now["tensors"][name], tensor), name


@pytest.fixture
def small() -> Small:
    """A small model in training mode with one frozen flag, so that restoring flags is seen."""
    model = build_small()
    model.blocks[1].eval()
    return model


@pytest.fixture
def tokens() -> list[Tensor]:
    """Ten batches of 12 token sequences."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 50, (12, 7), generator=generator) for _ in range(10)]


@pytest.fixture
def unchanged() -> Callable[[nn.Module], Callable[[], None]]:
    """Take a snapshot now, get a function that asserts that nothing has changed since."""

    def take(model: nn.Module) -> Callable[[], None]:
        before = snapshot(model)
        return lambda: assert_unchanged(model, before)

    return take


@pytest.fixture
def fresh_small() -> Callable[[], Small]:
    """Build another Small with other weights, as someone who loads a file would."""
    return lambda: build_small(seed=99)


@pytest.fixture
def clone() -> Callable[[nn.Module], nn.Module]:
    """Deep copy a model."""
    return copy.deepcopy
