"""What a quantized stack of layers keeps in memory, and what it takes to load it or to quantize a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from speed.resident import measured
from speed.stack import COLUMNS, Stack
from speed.tasks.kernels import reason
from speed.timing import Clock, seconds
from speed.ways import Way, model_dtype

CHUNK = 1 << 24
SMALL = 256 * COLUMNS


class Task:
    """Measures the memory of one library; one request for each process, so that none sees what another left behind.

    Args:
        ways: Of the library.
        clock: Tells seconds.
    """

    def __init__(self, ways: Sequence[Way], clock: Clock) -> None:
        self._clock = clock
        self._ways = {way.name: way for way in ways if way.models and way.quantize is not None}

    def ways(self) -> dict[str, float]:
        """Bits per weight of each way."""
        return {name: way.bits for name, way in self._ways.items()}

    def resident(self, way: str, weights: int) -> dict[str, Any]:
        """Quantize a stack, call each layer once, and tell what is kept."""
        stack, chosen = Stack(weights), self._ways[way]
        try:
            # What a library loads when it is first used is not what it keeps of a stack.
            _called(_quantized(chosen, Stack(SMALL).build()), chosen)
            return asdict(measured(lambda: _called(_quantized(chosen, stack.build()), chosen)))
        except Exception as error:  # a library may fail in any way, and that is a result
            return {"failure": reason(error)}

    def keep(self, way: str, weights: int, path: str) -> None:
        """Write a quantized stack to a file."""
        self._files().write(way, Stack(weights).build(), Path(path))

    def load(self, way: str, weights: int, path: str) -> dict[str, Any]:
        """Load it into a stack that holds nothing."""
        stack = Stack(weights).build().to("meta")
        read_through(path)
        return asdict(measured(lambda: self._files().read(way, Path(path), stack)))

    def write_source(self, path: str, weights: int) -> None:
        """Write a file of float weights."""
        tensors = Stack(weights).build().state_dict()
        save_file({f"layers.{name}": tensor for name, tensor in tensors.items()}, path)

    def file_ways(self) -> list[str]:
        """Ways to turn a file of float weights into one of INT4."""
        return list(self._files().FILE_WAYS)

    def quantize_file(self, way: str, source: str, target: str, rounds: int) -> dict[str, Any]:
        """Turn a file into another: memory of the first time, seconds of every time. The file is read before."""
        call = partial(self._files().FILE_WAYS[way], Path(source), Path(target))
        read_through(source)
        usage = measured(call)
        return {"peak": usage.peak, "seconds": [seconds(call, clock=self._clock) for _ in range(rounds)]}

    @staticmethod
    def _files() -> Any:
        """Monoquant's files; no peer has one that holds as much."""
        return import_module("speed.our_files")


def read_through(path: str) -> None:
    """Read a file, so that it is in the system's cache."""
    with Path(path).open("rb", buffering=0) as file:
        while file.read(CHUNK):
            pass


def _quantized(way: Way, stack: nn.Module) -> Any:
    if way.quantize is None:
        raise RuntimeError(f"{way.name} quantizes no modules")
    return way.quantize(stack)


def _called(stack: Any, way: Way) -> Any:
    """The same stack, after each of its layers was called: some pack when they are first needed."""
    inputs = torch.ones(1, COLUMNS, dtype=model_dtype(way.dtypes[0]))
    for layer in stack:
        layer(inputs)
    return stack
