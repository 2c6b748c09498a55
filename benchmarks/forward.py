"""Time of a packed layer's forward relative to fp32, interleaved in one process.

Run ``python benchmarks/forward.py``; medians of ``--rounds`` rounds, one thread unless ``--threads`` says otherwise.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

import monoquant as mq

SHAPES = [(768, 3072), (4096, 4096)]
BATCHES = [1, 8, 64, 512]


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def copy_bandwidth() -> float:
    """Bytes per second that a copy reads and writes, the median of seven."""
    source = torch.empty(1 << 26, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.numel() / median(seconds(lambda: target.copy_(source)) for _ in range(7))


def compare(linear: nn.Linear, packed: nn.Module, inputs: Tensor, rounds: int) -> tuple[float, float]:
    """Median seconds of fp32 and of INT4, taken in turn."""
    pairs = [(seconds(lambda: linear(inputs)), seconds(lambda: packed(inputs))) for _ in range(rounds + 1)][1:]
    return median(first for first, _ in pairs), median(second for _, second in pairs)


def main() -> None:
    """Print one row per shape and batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bandwidth = copy_bandwidth()
    print(f"copy: {bandwidth / 1e9:.1f} GB/s; torch {torch.__version__}, {arguments.threads} thread(s)")
    print(f"{'in x out':>12} {'M':>4} {'fp32 ms':>9} {'int4 ms':>9} {'int4/fp32':>10} {'floor ms (read int4)':>22}")
    with torch.no_grad():
        for columns, rows in SHAPES:
            linear = nn.Linear(columns, rows)
            result = mq.quantize(linear, accuracy_warning="ignore", plugins=False)
            floor = result.report.quantized_bytes / (bandwidth / 2)
            for batch in BATCHES:
                fp32, int4 = compare(linear, result.model, torch.randn(batch, columns), arguments.rounds)
                cells = f"{fp32 * 1e3:>9.2f} {int4 * 1e3:>9.2f} {int4 / fp32:>10.1f} {floor * 1e3:>22.2f}"
                print(f"{columns:>5} x {rows:<4} {batch:>4} {cells}")


if __name__ == "__main__":
    main()
