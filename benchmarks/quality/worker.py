"""Measure one library's cases on one model in this interpreter, and append a JSON line for each to a file.

`run.py` starts this, with the Python of the environment that has the library.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import time
import traceback
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
from case import Case, Outcome
from subjects import SUBJECTS, Subject

REASON = 200
"""Characters of an error that are told."""


def measured(case: Case, subject: Subject, rounds: int) -> dict[str, Any]:
    """The row of a case: medians of the seconds, the loss of the last round; or why there is none."""
    try:
        times, fits = [], []
        for _ in range(rounds):
            model = subject.build()
            gc.collect()
            start = time.process_time()
            outcome = case.quantize(subject, model)
            times.append(time.process_time() - start if outcome.seconds is None else outcome.seconds)
            fits.append(outcome.fit_seconds)
        return row(case, subject, outcome, times, fits)
    except Exception as error:  # a peer may fail in any way, and that is a result
        traceback.print_exc()
        return {"failure": f"{type(error).__name__}: {' '.join(str(error).split())}"[:REASON]}


def row(case: Case, subject: Subject, outcome: Outcome, times: list[float], fits: list[float | None]) -> dict[str, Any]:
    """Figures by column."""
    known = [fit for fit in fits if fit is not None]
    return {
        "bits": outcome.bits,
        **subject.measure(outcome.model),
        "seconds": None if case.name == "float" else median(times),
        "fit seconds": median(known) if known else None,
        "critical": outcome.critical,
    }


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", help="ours, or a module of peers")
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--windows", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--only", default="", help="a regular expression that names of cases must contain")
    parser.add_argument("--results", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    subject = SUBJECTS[arguments.subject](arguments.windows)
    library = import_module(arguments.library if arguments.library == "ours" else f"peers.{arguments.library}")
    for case in library.CASES:
        if case.subject == subject.name and re.search(arguments.only, case.name):
            figures = measured(case, subject, arguments.rounds)
            with arguments.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"library": library.VERSION, "case": case.name, **figures}) + "\n")
            gc.collect()


if __name__ == "__main__":
    main()
