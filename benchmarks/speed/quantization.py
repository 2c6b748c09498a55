"""Seconds and memory to quantize a stack of Linear layers to INT4, monoquant beside its peers.

Run ``python benchmarks/speed/quantization.py``; README.md one folder up says what is measured.
"""

from __future__ import annotations

import argparse
from typing import Any

import _path  # noqa: F401
import torch

from speed import launch, render, timing

WEIGHTS = 11 * 4096 * 11008
QUICK_WEIGHTS = 4096 * 2048
FLOAT_BYTES = 4
Row = dict[str, Any]


def measured(group: launch.Workers, arguments: argparse.Namespace) -> list[Row]:
    """One row for each way, with what every round found."""
    ways = group.ask("prepare", weights=arguments.weights)
    rows = {
        (library, way): {"library": library, "way": way, "seconds": [], "extra MiB": [], **about}
        for library, known in ways.items()
        for way, about in known.items()
    }
    for turn in range(arguments.rounds):
        launch.say(f"round {turn + 1}")
        for (library, way), row in rows.items():
            if "failure" not in row:
                _extend(row, group.ask_one(library, "measure", way=way))
    return list(rows.values())


def _extend(row: Row, answer: Row) -> None:
    if "failure" in answer:
        row["failure"] = answer["failure"]
        return
    for name in ("seconds", "extra MiB"):
        row[name].append(answer[name])


def main() -> None:
    """Measure what the command line says, and print the table."""
    parser = launch.parser(__doc__, rounds=3)
    parser.add_argument("--weights", type=int, default=WEIGHTS, help="of all layers together")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.weights = 2, min(QUICK_WEIGHTS, arguments.weights)
    torch.set_num_threads(arguments.threads)
    floor = arguments.weights * FLOAT_BYTES / timing.copy_rate()
    with launch.workers("quantization", arguments) as group:
        rows = measured(group, arguments)
        found = launch.results("quantization", arguments, group, rows) | {"floor": floor}
    launch.keep(found, arguments.json)
    print(render.text(found))


if __name__ == "__main__":
    main()
