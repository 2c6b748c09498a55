"""Seconds of calls taken in turn, and the rates that nothing on this machine can beat."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

SHORTEST = 1e-3
"""Calls are repeated until they take so many seconds together."""
LAST_LEVEL = 1 << 26
"""Bytes that no cache keeps while they are read."""

Calls = Mapping[str, Callable[[], object]]
Clock = Callable[[], float]


CLOCKS: Mapping[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Seconds on the wall; or of this process's threads together, which others on the machine hardly change."""


def seconds(call: Callable[[], object], repeats: int = 1, clock: Clock = time.perf_counter) -> float:
    """Seconds of one call, the mean over some in a row."""
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def fastest(calls: Calls, rounds: int) -> dict[str, float]:
    """The least wall-clock seconds that each call took, all of them taken in turn in every round."""
    for call in calls.values():
        call()
    repeats = {name: max(1, int(SHORTEST / seconds(call))) for name, call in calls.items()}
    times = [{name: seconds(call, repeats[name]) for name, call in calls.items()} for _ in range(rounds)]
    return {name: min(round_[name] for round_ in times) for name in calls}


def read_rate(size: int, between: int) -> float:
    """Bytes per second at which a buffer is read, in turn with another one, as a packed weight is with the float one.

    Args:
        size: Bytes of the buffer.
        between: Bytes of the other one: together they may be more than a cache holds.
    """
    buffer, other = torch.zeros(size // 4), torch.zeros(between // 4)
    return size / fastest({"read": buffer.sum, "other": other.sum}, 15)["read"]


def copy_rate() -> float:
    """Bytes per second that a copy of much memory reads; it writes as many."""
    source = torch.zeros(LAST_LEVEL)
    return source.nbytes / fastest({"copy": partial(torch.empty_like(source).copy_, source)}, 15)["copy"]


def float_rate() -> float:
    """Multiplications per second of a product of float32 matrices."""
    left, right = torch.ones(1024, 1024), torch.ones(1024, 1024)
    return 1024**3 / fastest({"product": partial(torch.mm, left, right)}, 15)["product"]


def integer_rate() -> float:
    """Multiplications per second of int8, the best of torch's products and not less than of float32."""
    calls = {"_int_mm": _int_mm(), "fbgemm": _fbgemm()}
    times = fastest({name: call for name, call in calls.items() if call is not None}, 5)
    return max([float_rate(), *(512 * 2048 * 2048 / time_ for time_ in times.values())])


def _int_mm() -> Callable[[], Tensor]:
    codes, weights = torch.ones(512, 2048, dtype=torch.int8), torch.ones(2048, 2048, dtype=torch.int8)
    return partial(torch._int_mm, codes, weights.t())


def _fbgemm() -> Callable[[], Any] | None:
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return None
    quantized = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(torch.nn.Linear(2048, 2048, bias=False)))
    return partial(quantized, torch.ones(512, 2048))
