"""A real model, run as every way of a library quantizes it, in turn with the float one."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

from speed.subjects import SUBJECTS, Subject
from speed.tasks.kernels import reason
from speed.timing import Calls, Clock
from speed.turns import BASELINE, Turns
from speed.ways import Way

PATIENCE = 8.0
"""Seconds that one way may take for one workload."""


class Task:
    """Runs the models of one library.

    Args:
        ways: Of the library.
        clock: Tells seconds.
    """

    def __init__(self, ways: Sequence[Way], clock: Clock) -> None:
        self._ways = [way for way in ways if way.models]
        self._turns: dict[str, Turns] = {}
        self._clock = clock

    def prepare(self, subject: str) -> dict[str, Any]:
        """Build the float model, and quantize it by every way.

        Args:
            subject: Its name.

        Returns:
            What each way loses; or why it failed.
        """
        self._turns = {}
        gc.collect()
        about = SUBJECTS[subject]()
        self._add(BASELINE, about.calls(about.build()))
        return {way.name: self._prepared(way, about) for way in self._ways if _can(way, subject)}

    def _prepared(self, way: Way, about: Subject) -> dict[str, Any]:
        try:
            if way.run is not None:
                runner = way.run(about)
                self._add(way.name, runner.calls)
                return {"loss": runner.loss, "loss name": about.loss_name}
            if way.quantize is None:
                return {"failure": "it quantizes no modules"}
            model = way.quantize(about.build())
            loss = about.loss(model)
            self._add(way.name, about.calls(model))
        except Exception as error:  # a library may fail in any way, and that is a result
            return {"failure": reason(error)}
        return {"loss": loss, "loss name": about.loss_name}

    def _add(self, name: str, calls: Calls) -> None:
        for workload, call in calls.items():
            self._turns.setdefault(workload, Turns(self._clock, PATIENCE)).add(name, call)

    def round(self, workload: int) -> list[dict[str, float]]:
        """Seconds of one workload for the float model and each way, for each turn.

        Args:
            workload: Its index.
        """
        return list(self._turns.values())[workload].round()


def _can(way: Way, subject: str) -> bool:
    return way.quantize is not None if way.run is None else subject in way.subjects
