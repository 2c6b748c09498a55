"""monoquant's files, through its public API alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import monoquant as mq
from speed.ours import OPTIONS, kernel_options, plugin_version

FileWay = Callable[[Path, Path], object]


def write(way: str, model: nn.Module, path: Path) -> None:
    """Quantize a model and write it."""
    mq.save(mq.quantize(model, 4, inplace=True, **OPTIONS, **kernel_options(way)), path)


def read(way: str, path: Path, model: nn.Module) -> nn.Module:
    """Load a file into a float model, with the kernels of a way."""
    loaded = mq.load(path, model, plugins=kernel_options(way)["plugins"])
    if hasattr(mq, "choose_kernels"):
        mq.choose_kernels(loaded, **kernel_options(way))
    return loaded


def in_memory(plugins: bool, source: Path, target: Path) -> None:
    """Load, quantize and save."""
    mq.save(mq.quantize(source, 4, plugins=plugins, **OPTIONS), target, plugins=plugins)


def streamed(plugins: bool, source: Path, target: Path) -> None:
    """Quantize from file to file."""
    quantize_file: Any = mq.quantize_file  # type: ignore[attr-defined]
    quantize_file(source, target, 4, plugins=plugins, **OPTIONS)


def _file_ways() -> dict[str, FileWay]:
    calls: dict[str, Callable[[bool, Path, Path], None]] = {"load, quantize and save": in_memory}
    if hasattr(mq, "quantize_file"):
        calls["quantize_file"] = streamed
    choices = {"portable": False} | ({"native": True} if plugin_version() else {})
    return {
        f"monoquant {choice}: {name}": partial(call, plugins)
        for choice, plugins in choices.items()
        for name, call in calls.items()
    }


FILE_WAYS = _file_ways()
