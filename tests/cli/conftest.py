"""A folder with a small float model, its factory, and data; nothing is installed beside monoquant."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn

from monoquant.cli import main
from monoquant.container import write_container

FACTORY = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.LayerNorm(128), nn.Linear(128, 64))

def batches():
    return [torch.randn(16, 64, generator=torch.Generator().manual_seed(i)) for i in range(8)]

def broken():
    raise RuntimeError("no such checkpoint")
"""


def model() -> nn.Module:
    """The model of the factory."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.LayerNorm(128), nn.Linear(128, 64))


@attrs.frozen
class Told:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Its JSON."""
        found: dict[str, Any] = json.loads(self.out)
        return found


Run = Callable[..., Told]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in a folder with ``float.safetensors``, ``data.safetensors`` and the module ``recipe_factory``."""
    write_container(tmp_path / "float.safetensors", model().state_dict(), {})
    data = torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
    write_container(tmp_path / "data.safetensors", {"input": data}, {})
    (tmp_path / "recipe_factory.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("monoquant.hooks.loading.installed", list)

    def call(*arguments: str) -> Told:
        code = main(list(arguments))
        shown = capsys.readouterr()
        return Told(code, shown.out, shown.err)

    return call
