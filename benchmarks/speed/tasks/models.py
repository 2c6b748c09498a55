"""A real model, run as every way of a library quantizes it, in turn with the float one."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

from speed.subjects import SUBJECTS, Subject
from speed.tasks.kernels import BASELINE, PATIENCE, reason
from speed.timing import repeats_for, seconds
from speed.ways import Way


class Task:
    """Runs the models of one library.

    Args:
        ways: Of the library.
    """

    def __init__(self, ways: Sequence[Way]) -> None:
        self._ways = [way for way in ways if way.models]
        self._calls: dict[str, dict[str, tuple[Callable[[], object], int]]] = {}
        self._spent: dict[tuple[str, str], list[float]] = {}

    def prepare(self, subject: str) -> dict[str, Any]:
        """Build the float model, and quantize it by every way.

        Args:
            subject: Its name.

        Returns:
            What each way loses; or why it failed.
        """
        self._calls, self._spent = {}, {}
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

    def _add(self, name: str, calls: Any) -> None:
        for call in calls.values():
            call()
        self._calls[name] = {workload: (call, repeats_for(call)) for workload, call in calls.items()}

    def round(self, workload: int) -> dict[str, Any]:
        """Seconds of one workload for the float model and each way, in turn; without those too slow for more.

        Args:
            workload: Its index.
        """
        found = {}
        for name, calls in self._calls.items():
            label = list(calls)[workload]
            call, repeats = calls[label]
            spent = self._spent.setdefault((name, label), [])
            if name == BASELINE or len(spent) < 2 or sum(spent) < PATIENCE:
                found[name] = seconds(call, repeats)
                spent.append(found[name] * repeats)
        return found


def _can(way: Way, subject: str) -> bool:
    return way.quantize is not None if way.run is None else subject in way.subjects
