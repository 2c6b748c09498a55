"""Time of real models in INT4 as a ratio to float32, monoquant beside its peers.

Run ``python benchmarks/speed/models.py``; README.md one folder up says what is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

import _path  # noqa: F401

from speed import launch, render

WORKLOADS: dict[str, dict[str, int]] = {
    "minilm": {"1 x 32 tokens": 1, "32 x 64 tokens": 1},
    "smollm2": {"prefill of 128 tokens": 1, "decode, per token": 16},
}
"""What a worker times, in its order, and how many tokens one after the other that is."""
Row = dict[str, Any]


def measured(group: launch.Workers, subject: str, arguments: argparse.Namespace) -> Iterator[Row]:
    """The rows of one model: one for each way and workload."""
    launch.say(f"{subject}: quantizing")
    ways = group.ask("prepare", subject=subject)
    for library, known in ways.items():
        yield from ({"library": library, "way": way, **about} for way, about in known.items() if "failure" in about)
    for index, (workload, units) in enumerate(WORKLOADS[subject].items()):
        launch.say(f"{subject}: {workload}")
        times = [group.ask("round", turn=turn, workload=index) for turn in range(arguments.rounds)]
        for library, known in ways.items():
            for way, about in known.items():
                samples = launch.samples(times, library, way, units)
                yield {"subject": subject, "workload": workload, "library": library, "way": way, **about, **samples}


def main() -> None:
    """Measure what the command line says, and print the tables."""
    parser = launch.parser(__doc__, rounds=7)
    parser.add_argument("--models", default=list(WORKLOADS), type=partial(launch.names, WORKLOADS))
    arguments = parser.parse_args()
    arguments.rounds = 2 if arguments.quick else arguments.rounds
    with launch.workers("models", arguments) as group:
        rows = [row for subject in arguments.models for row in measured(group, subject, arguments)]
        found = launch.results("models", arguments, group, rows)
    launch.keep(found, arguments.json)
    print(render.text(found))


if __name__ == "__main__":
    main()
