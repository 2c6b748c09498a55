"""A stack of Linear layers, quantized by every way of a library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from speed.resident import measured
from speed.stack import Stack
from speed.tasks.kernels import reason
from speed.timing import Clock
from speed.ways import Way


class _Timed:
    """A call whose result is returned and whose seconds are remembered."""

    def __init__(self, call: Callable[[], object], clock: Clock) -> None:
        self._call, self._clock = call, clock
        self.seconds = 0.0

    def __call__(self) -> object:
        start = self._clock()
        result = self._call()
        self.seconds = self._clock() - start
        return result


class Task:
    """Times the quantizers of one library.

    Args:
        ways: Of the library.
        clock: Tells seconds.
    """

    def __init__(self, ways: Sequence[Way], clock: Clock) -> None:
        self._clock = clock
        self._ways = {way.name: way for way in ways if way.quantization and way.quantize is not None}

    def prepare(self, weights: int) -> dict[str, Any]:
        """Make the values of a layer.

        Args:
            weights: Of the whole stack.

        Returns:
            For each way the share of them that it is timed on.
        """
        self._stack = Stack(weights)
        return {name: {"part": way.part} for name, way in self._ways.items()}

    def measure(self, way: str) -> dict[str, Any]:
        """Build a stack and quantize it.

        Args:
            way: Its name.

        Returns:
            Seconds of the whole stack, estimated if a part was timed, and MiB above the float model at the peak; or
            why it failed.
        """
        quantize = self._ways[way].quantize
        if quantize is None:
            return {"failure": "it quantizes no modules"}
        stack = self._stack.build(self._ways[way].part)
        call = _Timed(partial(quantize, stack), self._clock)
        try:
            usage = measured(call)
        except Exception as error:  # a library may fail in any way, and that is a result
            return {"failure": reason(error)}
        return {"seconds": call.seconds / self._ways[way].part, "extra MiB": usage.peak}
