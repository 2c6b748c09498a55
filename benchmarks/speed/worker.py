"""Measure one library in this interpreter: answers requests, a line of JSON each, until there are no more.

The launchers start this with the Python of the environment that has the library. What a library prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from importlib import import_module
from typing import Any, TextIO

import torch

from speed.timing import CLOCKS


def serve(task: Any, requests: TextIO, answers: TextIO) -> None:
    """Answer each request with what the method of its name returns, or with the error."""
    for line in requests:
        request = json.loads(line)
        try:
            answer = {"answer": getattr(task, request["method"])(**request["arguments"])}
        except Exception as error:  # a library may fail in any way, and that is a result
            traceback.print_exc()
            answer = {"failure": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Serve the library, task, number of threads and clock that the command line names."""
    library_name, task_name, threads, clock = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    path = f"speed.{library_name}" if library_name == "ours" else f"speed.peers.{library_name}"
    library = import_module(path)
    task = import_module(f"speed.tasks.{task_name}").Task(library.WAYS, CLOCKS[clock])
    answers.write(json.dumps({"answer": library.VERSION}) + "\n")
    answers.flush()
    with torch.no_grad():
        serve(task, sys.stdin, answers)


if __name__ == "__main__":
    main()
