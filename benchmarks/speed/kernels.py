"""Time of a packed layer's product as a ratio to the float one, monoquant beside its peers.

Run ``python benchmarks/speed/kernels.py``; README.md one folder up says what is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

import _path  # noqa: F401
import torch

from speed import launch, render, timing

SHAPES = [(384, 1536), (768, 3072), (4096, 4096), (4096, 11008)]
QUICK_SHAPES = [(256, 512)]
BF16_SHAPES = [(768, 3072), (4096, 4096)]
"""The others take too long: float layers in bfloat16 are slow without units for it."""
BATCHES = {"float32": [1, 8, 64, 512], "bfloat16": [1, 4, 8, 64, 512]}
QUICK_BATCHES = [1, 8]
FLOAT_BYTES = {"float32": 4, "bfloat16": 2}
Row = dict[str, Any]


def measured(
    group: launch.Workers, shape: tuple[int, int], baseline: str, arguments: argparse.Namespace
) -> Iterator[Row]:
    """The rows of one layer: one for each way and batch size."""
    columns, rows = shape
    launch.say(f"{columns} -> {rows}, float layer in {baseline}")
    ways = group.ask("prepare", columns=columns, rows=rows, baseline=baseline)
    for library, known in ways.items():
        yield from (_row(shape, baseline, library, way, about) for way, about in known.items() if "failure" in about)
    for batch in QUICK_BATCHES if arguments.quick else BATCHES[baseline]:
        started = group.ask("start", batch=batch)
        times = [group.ask("round", turn=turn) for turn in range(arguments.rounds)]
        for library, errors in started.items():
            for way, error in errors.items():
                about = ways[library][way] | error
                yield _row(shape, baseline, library, way, about, batch=batch) | launch.samples(times, library, way)


def _row(shape: tuple[int, int], baseline: str, library: str, way: str, about: Row, **others: Any) -> Row:
    return {"shape": list(shape), "baseline": baseline, "library": library, "way": way, **about, **others}


class Floors:
    """The least seconds that a product can take on this machine, by what was measured before the run.

    Attributes:
        rates: Multiplications per second, of floats and of integers.
        reads: Bytes per second, by bytes of the packed weight.
    """

    def __init__(self) -> None:
        self.rates = {False: timing.float_rate(), True: timing.integer_rate()}
        self.reads: dict[tuple[int, int], float] = {}

    def seconds(self, row: Row) -> float:
        """The larger of two times: to read the packed weight, and to multiply."""
        columns, rows = row["shape"]
        size = int(columns * rows * row["bits"] / 8)
        between = columns * rows * FLOAT_BYTES[row["baseline"]]
        if (size, between) not in self.reads:
            self.reads[size, between] = timing.read_rate(size, between)
        return max(size / self.reads[size, between], row["batch"] * columns * rows / self.rates[row["integer"]])

    def facts(self) -> Row:
        """What was measured, for the file; `other` is the bytes that are read between two reads."""
        reads = [
            {"bytes": size, "in turn with bytes": other, "per second": rate}
            for (size, other), rate in self.reads.items()
        ]
        return {"float products/s": self.rates[False], "integer products/s": self.rates[True], "reads": reads}


def _shapes_for(baseline: str, arguments: argparse.Namespace) -> list[tuple[int, int]]:
    if arguments.shapes is not None:
        shapes: list[tuple[int, int]] = arguments.shapes
        return shapes
    return SHAPES if baseline == "float32" else BF16_SHAPES


def _shapes(text: str) -> list[tuple[int, int]]:
    shapes = [tuple(map(int, shape.split("x"))) for shape in text.split(",")]
    return [(columns, rows) for columns, rows in shapes]


def main() -> None:
    """Measure what the command line says, and print the tables."""
    parser = launch.parser(__doc__, rounds=7)
    parser.add_argument("--shapes", type=_shapes, help="such as 768x3072,4096x4096")
    parser.add_argument("--dtypes", default=list(BATCHES), type=partial(launch.names, BATCHES), help="of float layers")
    arguments = parser.parse_args()
    arguments.rounds = 2 if arguments.quick else arguments.rounds
    torch.set_num_threads(arguments.threads)
    floors = Floors()
    rows: list[Row] = []
    with launch.workers("kernels", arguments) as group:
        for baseline in arguments.dtypes:
            for shape in QUICK_SHAPES if arguments.quick else _shapes_for(baseline, arguments):
                rows += measured(group, shape, baseline, arguments)
        for row in rows:
            if row.get("seconds"):
                row["floor"] = floors.seconds(row)
        found = launch.results("kernels", arguments, group, rows) | {"floors": floors.facts()}
    launch.keep(found, arguments.json)
    print(render.text(found))


if __name__ == "__main__":
    main()
