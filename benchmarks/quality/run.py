"""What INT4 loses on two real models, and what it costs to get there: monoquant's cases, then its peers'.

Run ``python benchmarks/quality/run.py``; README.md beside this file says what is measured and how long it takes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import _path  # noqa: F401
import torch
from case import body
from common.environments import prepare, python_of, worker_settings
from peers import PEERS
from subjects import SUBJECTS

HERE = Path(__file__).parent
LIMIT = 3600
"""Seconds of wall clock that one library may take for one model."""
GPTQMODEL_SETTINGS = {"GPTQMODEL_CPU_WORKERS": "2"}
"""With fewer, GPTQModel does not start."""
MEBIBYTE = 1 << 20
NOTES = """\
bits: per weight, scales and zero points included; real bytes for monoquant and gptqmodel, other peers as in files, with
      16-bit scales (their float32 models hold float32 ones). MiB: of the weights at so many bits.
CPU-s: of the whole call, calibration included. fit CPU-s: what it takes longer than quality="fast" with the same data.
CRITICAL: findings that would fail a build, with default thresholds."""
Row = dict[str, Any]


def rows(library: str, subject: str, arguments: argparse.Namespace) -> Iterator[Row]:
    """The rows of one library on one model; where something fails, a row that says why."""
    shown = library if library == "ours" else PEERS[library].distribution
    print(f"{subject}: {shown} ...", file=sys.stderr, flush=True)
    try:
        python = Path(sys.executable)
        if library != "ours":
            python = python_of(arguments.environments, library, PEERS[library])
        yield from _worked(python, library, subject, arguments)
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        yield {"library": shown, "case": "-", "failure": f"{type(error).__name__}: {error}"[:300]}


def _worked(python: Path, library: str, subject: str, arguments: argparse.Namespace) -> Iterator[Row]:
    results, log = _files(arguments.environments, library, subject)
    command = [str(python.absolute()), str(HERE / "worker.py"), library, subject, "--results", str(results)]
    command += ["--windows", str(arguments.windows), "--rounds", str(arguments.rounds), "--only", arguments.only]
    ended = ""
    with tempfile.TemporaryDirectory() as scratch, log.open("w", encoding="utf-8") as output:
        try:
            done = subprocess.run(  # noqa: S603
                command,
                stdout=output,
                stderr=output,
                cwd=scratch,
                env=os.environ | worker_settings() | GPTQMODEL_SETTINGS,
                timeout=LIMIT,
                check=False,
            )
            ended = f"ended with {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            ended = f"stopped after {LIMIT} s"
    yield from map(json.loads, results.read_text(encoding="utf-8").splitlines())
    if ended:
        yield {"library": library, "case": "-", "failure": f"{ended}; see {log}"}


def _files(folder: Path, library: str, subject: str) -> tuple[Path, Path]:
    """Empty files for the results and for all that a library prints."""
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    results, log = logs / f"{library}-{subject}.jsonl", logs / f"{library}-{subject}.txt"
    results.write_text("", encoding="utf-8")
    return results.absolute(), log.absolute()


def print_table(subject: str, arguments: argparse.Namespace) -> None:
    """Run everybody on one model, and print what came out, the float model first."""
    about = SUBJECTS[subject](arguments.windows)
    weights = [layer.weight.numel() for _, layer in body(about.build())]
    found = [row for library in arguments.libraries for row in rows(library, subject, arguments)]
    measures = [name for row in found for name in row if name in about.columns]
    columns = list(dict.fromkeys(measures))
    print(f"\n{about.title}")
    print(f"{sum(weights):,} weights in {len(weights)} matrices; {_floors(sum(weights))}\n")
    head = [f"{'library':<24} {'case':<38} {'bits':>6} {'MiB':>6}", *(f"{name:>11}" for name in columns)]
    print(*head, f"{'CPU-s':>7} {'fit CPU-s':>9} {'CRITICAL':>8}")
    for row in found:
        print(_line(row, columns, sum(weights)))


def _floors(weights: int) -> str:
    sizes = {bits: f"{weights * bits / 8 / MEBIBYTE:.1f} MiB" for bits in (32, 4, 4.15625)}
    return f"float32 {sizes[32]}; 4 bits and nothing else {sizes[4]}; with 20 bits per 128 weights {sizes[4.15625]}"


def _line(row: Mapping[str, Any], columns: list[str], weights: int) -> str:
    head = f"{row['library']:<24} {row['case']:<38}"
    if "failure" in row:
        return f"{head} failed: {row['failure']}"
    cells = [f"{row['bits']:>6.3f} {weights * row['bits'] / 8 / MEBIBYTE:>6.1f}"]
    cells += [f"{row[name]:>11.4f}" for name in columns]
    cells += [_cell(row["seconds"], "7.1f"), _cell(row["fit seconds"], "9.1f"), _cell(row["critical"], "8d")]
    return " ".join([head, *cells])


def _cell(value: float | None, form: str) -> str:
    return f"{'-':>{form.partition('.')[0].rstrip('d')}}" if value is None else f"{value:>{form}}"


def _names(known: Mapping[str, Any], text: str) -> list[str]:
    names = [name for name in text.split(",") if name and name != "none"]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def main() -> None:
    """Print a table per model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(SUBJECTS), type=lambda text: _names(SUBJECTS, text))
    parser.add_argument("--peers", default=",".join(PEERS), type=lambda text: _names(PEERS, text), help="or none")
    parser.add_argument("--windows", type=int, default=32, help="of 128 tokens, to measure the language model on")
    parser.add_argument("--rounds", type=int, default=1, help="CPU seconds are medians of so many runs")
    parser.add_argument("--only", default="", help="a regular expression: only cases whose name it is found in")
    parser.add_argument("--environments", type=Path, default=Path(".peers"), help="where peers are installed")
    arguments = parser.parse_args()
    arguments.libraries = ["ours", *arguments.peers]
    prepare(arguments.environments)
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}, one thread, {arguments.rounds} round(s)")
    for subject in arguments.models:
        print_table(subject, arguments)
    print(f"\n{NOTES}")


if __name__ == "__main__":
    main()
