"""Memory that INT4 keeps and takes: of a quantized stack, of loading it, and of turning a file into another.

Run ``python benchmarks/speed/memory.py``; README.md one folder up says what is measured.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _path  # noqa: F401
import torch

from speed import launch, render, timing

WEIGHTS = 11 * 4096 * 11008
QUICK_WEIGHTS = 4096 * 2048
Row = dict[str, Any]


class Fresh:
    """Asks each question in a new process.

    Args:
        arguments: Of the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self.versions: dict[str, str] = {}
        self.failures: dict[str, str] = {}

    def ask(self, library: str, method: str, **arguments: Any) -> Any:
        """What a method of the task returns; `{"failure": ...}` if it fails."""
        launch.say(f"{library}: {method} {arguments.get('way', '')}")
        try:
            worker = launch.start(library, "memory", self._arguments)
        except (RuntimeError, OSError) as error:
            self.failures[library] = str(error)[:300]
            return {"failure": self.failures[library]}
        self.versions[library] = worker.version
        try:
            return worker.ask(method, **arguments)
        except launch.WorkerError as error:
            return {"failure": str(error)}
        finally:
            worker.close()


def residents(fresh: Fresh, arguments: argparse.Namespace) -> Iterator[Row]:
    """What each way keeps of a stack."""
    for library in ["ours", launch.HERE, *arguments.peers]:
        ways = fresh.ask(library, "ways")
        for way, bits in ways.items() if "failure" not in ways else ():
            found = fresh.ask(library, "resident", way=way, weights=arguments.weights)
            yield {"table": "resident", "library": library, "way": way, "bits": bits, **found}


def loads(fresh: Fresh, arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """What loading monoquant's file takes."""
    for way in fresh.ask("ours", "ways"):
        path = str(folder / "stack.safetensors")
        fresh.ask("ours", "keep", way=way, weights=arguments.weights, path=path)
        found = fresh.ask("ours", "load", way=way, weights=arguments.weights, path=path)
        yield {"table": "load", "way": way, "file MiB": Path(path).stat().st_size / (1 << 20), **found}


def files(fresh: Fresh, arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """What it takes to turn a file of float weights into one of INT4."""
    source, target = folder / "float.safetensors", folder / "int4.safetensors"
    fresh.ask("ours", "write_source", path=str(source), weights=arguments.weights)
    for way in fresh.ask("ours", "file_ways"):
        options = {"source": str(source), "target": str(target), "rounds": arguments.rounds}
        found = fresh.ask("ours", "quantize_file", way=way, **options)
        yield {"table": "files", "way": way, "bytes": source.stat().st_size, **found}


def main() -> None:
    """Measure what the command line says, and print the tables."""
    parser = launch.parser(__doc__, rounds=3)
    parser.add_argument("--weights", type=int, default=WEIGHTS, help="of all layers together")
    parser.add_argument("--folder", type=Path, help="where to write files, of 3 GB by default")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.weights = 2, min(QUICK_WEIGHTS, arguments.weights)
    torch.set_num_threads(arguments.threads)
    copying, fresh = timing.copy_rate(), Fresh(arguments)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        rows = [*residents(fresh, arguments), *loads(fresh, arguments, folder), *files(fresh, arguments, folder)]
    found = launch.results("memory", arguments, fresh, rows) | {"copy bytes/s": copying}
    launch.keep(found, arguments.json)
    print(render.text(found))


if __name__ == "__main__":
    main()
