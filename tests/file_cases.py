"""Exporters, reporters and a result for tests of files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import monoquant as mq


def quantized() -> mq.QuantResult:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    return mq.quantize(model, plugins=False, accuracy_warning="ignore")


class Own(mq.Exporter):
    """Writes a word."""

    name = "own"
    suffixes = (".own",)

    def __init__(self, word: str = "own") -> None:
        self._word = word

    def write(self, result: mq.QuantResult, path: Path) -> None:
        path.write_text(self._word)


def manager(exporters: list[mq.Exporter] = [], reporters: list[mq.Reporter] = []) -> mq.PluginManager:  # noqa: B006
    class Plugin:
        __version__ = "2.0"

        @mq.hookimpl
        def monoquant_register_exporters(self) -> list[mq.Exporter]:
            return exporters

        @mq.hookimpl
        def monoquant_register_reporters(self) -> list[mq.Reporter]:
            return reporters

    return mq.PluginManager([Plugin()], discover=False)
