"""Worker processes, one per library, and rounds that rotate over them."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from common.environments import chosen, prepare, python_of, worker_settings

from speed import machine
from speed.peers import PEERS
from speed.timing import CLOCKS
from speed.turns import BASELINE

LIMIT = 900
"""Seconds that a worker may take for one request."""
HERE = "torch"
"""Baselines that need nothing but torch; they run where monoquant does."""


class WorkerError(RuntimeError):
    """A worker could not start, failed, or ended."""


class Asked(Protocol):
    """What knows the versions of libraries, and why some failed."""

    versions: dict[str, str]
    failures: dict[str, str]


class Worker:
    """A process that measures one library.

    Args:
        library: Its name.
        task: What it measures.
        python: The interpreter that has it.
        logs: Folder for all that the library prints.
        threads: Of each call.
        clock: A name of `timing.CLOCKS`.
    """

    def __init__(self, library: str, task: str, python: Path, logs: Path, threads: int, clock: str) -> None:
        self._log = logs / f"speed-{library}-{task}.txt"
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [str(python.absolute()), "-m", "speed.worker", library, task, str(threads), clock],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=logs,
                env=os.environ | worker_settings(threads),
                text=True,
            )
        self.version: str = self._answer()

    def ask(self, method: str, **arguments: Any) -> Any:
        """What a method of the task returns.

        Raises:
            WorkerError: When it fails.
        """
        if self._process.stdin is None:
            raise WorkerError("the worker takes no requests")
        try:
            self._process.stdin.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise WorkerError(f"ended; see {self._log}") from error
        return self._answer()

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _answer(self) -> Any:
        if self._process.stdout is None:
            raise WorkerError("the worker gives no answers")
        timer = threading.Timer(LIMIT, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            raise WorkerError(f"ended with {self._process.wait()}; see {self._log}")
        answer = json.loads(line)
        if "failure" in answer:
            raise WorkerError(answer["failure"])
        return answer["answer"]


class Workers:
    """The workers that still run, in an order that rotates by one with every round.

    Args:
        running: By library.
        failures: Why others do not, by library; grows.
    """

    def __init__(self, running: dict[str, Worker], failures: dict[str, str]) -> None:
        self._running, self.failures = running, failures
        self.versions = {library: worker.version for library, worker in running.items()}

    def ask(self, method: str, turn: int = 0, **arguments: Any) -> dict[str, Any]:
        """Ask them all, one after the other. One that fails is not asked again.

        Args:
            method: Of the task.
            turn: How far the order is rotated.
            arguments: Of the method.

        Returns:
            Answers by library.
        """
        names = list(self._running)
        first = turn % max(1, len(names))
        answers = {name: self.ask_one(name, method, **arguments) for name in [*names[first:], *names[:first]]}
        return {name: answer for name, answer in answers.items() if name in self._running}

    def ask_one(self, name: str, method: str, **arguments: Any) -> Any:
        """Ask one of them.

        Args:
            name: Of the library.
            method: Of the task.
            arguments: Of the method.

        Returns:
            The answer; `{"failure": ...}` if there is none, or was none before.
        """
        if name not in self._running:
            return {"failure": self.failures[name]}
        try:
            return self._running[name].ask(method, **arguments)
        except WorkerError as error:
            shown = ", ".join(f"{key}={value}" for key, value in arguments.items())
            self.failures[name] = f"{method}({shown}): {error}"
            say(f"{name}: {self.failures[name]}")
            self._running.pop(name).close()
            return {"failure": self.failures[name]}

    def close(self) -> None:
        """End all processes."""
        for worker in self._running.values():
            worker.close()


@contextmanager
def workers(task: str, arguments: argparse.Namespace) -> Iterator[Workers]:
    """Workers for monoquant, torch alone, and the chosen peers; environments that are missing are made first."""
    running: dict[str, Worker] = {}
    failures: dict[str, str] = {}
    for library in ["ours", HERE, *arguments.peers]:
        say(f"starting {library}")
        try:
            running[library] = start(library, task, arguments)
        except (RuntimeError, OSError) as error:
            failures[library] = f"{type(error).__name__}: {error}"[:300]
            say(f"{library}: {failures[library]}")
    group = Workers(running, failures)
    try:
        yield group
    finally:
        group.close()


def start(library: str, task: str, arguments: argparse.Namespace) -> Worker:
    """A worker; its environment is made first if it is missing.

    Raises:
        RuntimeError: When the environment cannot be made, or the worker does not start.
    """
    prepare(arguments.environments)
    logs = (arguments.environments / "logs").absolute()
    logs.mkdir(exist_ok=True)
    recipe = PEERS.get(library)
    python = Path(sys.executable) if recipe is None else python_of(arguments.environments, library, recipe)
    return Worker(library, task, python, logs, arguments.threads, arguments.clock)


def parser(description: str, rounds: int) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--clock", default="wall", choices=CLOCKS, help="cpu: where other things run, with one thread")
    options.add_argument("--rounds", type=int, default=rounds)
    options.add_argument(
        "--peers", default=list(PEERS), type=partial(names, PEERS), help="all, none, or names with commas"
    )
    options.add_argument("--json", type=Path, help="write all samples there, for render.py")
    options.add_argument("--quick", action="store_true", help="small shapes and two rounds: does it run?")
    options.add_argument("--environments", type=Path, default=Path(".peers"), help="where peers are installed")
    return options


def names(known: Mapping[str, object], text: str) -> list[str]:
    """The names in a list with commas; `all` and `none` stand for what they say."""
    try:
        return list(known) if text == "all" else chosen(known, text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def samples(times: Sequence[Mapping[str, Any]], library: str, way: str, units: int = 1) -> dict[str, list[float]]:
    """Seconds of a way and of the float one right before it, from the turns that have both.

    Args:
        times: Answers by library, one for each round.
        library: Whose.
        way: Its name.
        units: By which seconds are divided.
    """
    turns = [turn for answers in times for turn in answers.get(library, []) if way in turn]
    return {
        "seconds": [turn[way] / units for turn in turns],
        "float seconds": [turn[BASELINE] / units for turn in turns],
    }


def results(
    kind: str, arguments: argparse.Namespace, group: Asked, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """All that a run found, as it is written to a file."""
    shown = {name: value for name, value in vars(arguments).items() if name not in ("json", "environments", "folder")}
    return {
        "kind": kind,
        "machine": machine.facts(arguments.threads),
        "arguments": shown,
        "versions": group.versions,
        "failures": group.failures,
        "rows": list(rows),
    }


def keep(found: Mapping[str, Any], path: Path | None) -> None:
    """Write results to a file, if one is wanted."""
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        say(f"written: {path}")


def say(text: str) -> None:
    """Tell how far it is, where the tables are not."""
    print(text, file=sys.stderr, flush=True)
