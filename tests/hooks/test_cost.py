"""What plugins cost: how often hooks are called, and for how long."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from monoquant.hooks import specs

MOST_CALLS = 1500
PASSES = 8
"""Of a calibrated INT4 run: selection, calibration, INT4, INT8, two of 16 bits, validation, the quality gate."""
RUN = {
    "monoquant_register_skip_rules",
    "monoquant_register_warning_checks",
    "monoquant_register_module_adapters",
    "monoquant_register_algorithms",
    "monoquant_register_observers",
    "monoquant_register_passes",
    "monoquant_register_kernels",
}


class Counting:
    """Implements every hook, and counts."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()


def _counted(name: str) -> Any:
    def hook(self: Counting) -> Any:
        self.calls[name] += 1
        return [] if name.startswith("monoquant_register_") else None

    return mq.hookimpl(hook)


for _name in specs.hook_names():
    setattr(Counting, _name, _counted(_name))


class Encoder(nn.Module):
    """As many layers as MiniLM has, and narrow ones."""

    def __init__(self, layers: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 32)
        kinds = (
            ("query", 32, 32),
            ("key", 32, 32),
            ("value", 32, 32),
            ("dense", 32, 32),
            ("up", 32, 64),
            ("down", 64, 32),
        )
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(inner, outer) for name, inner, outer in kinds}) for _ in range(layers)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            mixed = block["dense"](
                block["value"](x) * (block["query"](x) * block["key"](x)).mean(-1, keepdim=True).tanh()
            )
            x = x + mixed + block["down"](block["up"](x).relu())
        return x


@pytest.mark.parametrize("layers", [1, 6])
def test_each_hook_is_called_once_per_run(layers: int) -> None:
    """However many layers there are: register hooks once, watching ones once per pass, and none in a forward."""
    plugin = Counting()
    manager = mq.PluginManager([plugin], discover=False)
    assert not plugin.calls
    data = [torch.randint(0, 100, (64, 8))]
    result = mq.quantize(Encoder(layers), plugins=manager, calibration_data=data, accuracy_warning="ignore")
    watched = dict.fromkeys(["monoquant_before_pass", "monoquant_after_pass"], PASSES)
    assert plugin.calls == {**dict.fromkeys(RUN, 1), **watched}
    before = plugin.calls.copy()
    result.model(data[0])
    assert plugin.calls == before


def test_hooks_cost_a_thousand_calls() -> None:
    """All of one run together, some .25 ms: counted in calls of Python functions, which no busy machine changes."""
    manager = mq.PluginManager([Counting()], discover=False)
    manager.registry(mq.Scheme())  # tries kernels that it sees for the first time
    calls = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        registry = manager.registry(mq.Scheme())
        for watcher in registry.watchers:
            for _pass in range(8):
                watcher.value.before(None, None)
                watcher.value.after(None, None, None)
    finally:
        sys.setprofile(None)
    assert 0 < calls < MOST_CALLS
