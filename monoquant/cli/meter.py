"""How far a command is: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import attrs
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Look = Callable[[], tuple[float, float]]
"""What is done, and what there is to do; asked in another thread, several times a second."""

_EVERY = 0.1
_PATIENCE = 2.0
_BETWEEN_LINES = 10.0


@attrs.define(eq=False)
class Tally:
    """What a function that does something tells of its progress, for a stage to look at."""

    _seen: tuple[float, float] = (0, 0)

    def count(self, done: float, total: float) -> None:
        """What such functions are given to call.

        Args:
            done: What is done.
            total: What there is to do.
        """
        self._seen = done, total

    def look(self) -> tuple[float, float]:
        """What was told last; nothing of nothing at first."""
        return self._seen


@attrs.define(eq=False)
class _Stage:
    """Something that takes a while."""

    what: str
    look: Look | None
    begun: float = attrs.field(factory=time.monotonic)
    told: float | None = None

    @property
    def progress(self) -> tuple[float, float] | None:
        if self.look is None:
            return None
        done, total = self.look()
        return (min(done, total), total) if total > 0 else None

    def line(self, now: float) -> str:
        found = self.progress
        share = "" if found is None else f" {found[0] / found[1]:.0%}"
        return f"{self.what}:{share} after {self._times(found, now)}"

    def bar(self, now: float) -> RenderableType:
        found = self.progress
        grid = Table.grid(padding=(0, 1))
        done, total = found or (0.0, None)
        share = "" if found is None else f"{done / found[1]:4.0%}"
        bar = ProgressBar(total=total, completed=done, width=30, pulse=found is None, animation_time=now)
        grid.add_row(self.what, bar, share, self._times(found, now))
        return grid

    def _times(self, found: tuple[float, float] | None, now: float) -> str:
        passed = now - self.begun
        if found is None or not 0 < found[0] < found[1]:  # what comes after the last byte, nobody knows
            return clock(passed)
        done, total = found
        return f"{clock(passed)}, about {clock(passed / done * (total - done))} left"


def clock(seconds: float) -> str:
    """A time for people, such as ``"8 s"`` or ``"2 min 05 s"``.

    Args:
        seconds: >= 0.
    """
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02} s"


class Meter:
    """Shows the innermost of the stages that a command is in.

    Args:
        console: Where to.
        is_shown: Whether to show anything.
    """

    def __init__(self, console: Console, *, is_shown: bool = True) -> None:
        self._console, self._is_shown = console, is_shown
        self._stages: list[_Stage] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._live: Live | None = None
        self._is_paused = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Show stages while the block runs."""
        if not self._is_shown:
            yield
            return
        worker = threading.Thread(target=self._work, name="monoquant-meter", daemon=True)
        if self._console.is_terminal:
            # The streams of the process are not a display's to replace.
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        worker.start()
        try:
            yield
        finally:
            self._ended.set()
            worker.join()
            if self._live is not None:
                self._live.stop()

    @contextmanager
    def stage(self, what: str, look: Look | None = None) -> Iterator[None]:
        """Say what the block does.

        Args:
            what: For a person, such as ``"writing model.safetensors"``.
            look: How far it is; default: nobody knows.
        """
        self.enter(what, look)
        try:
            yield
        finally:
            self.leave()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Show nothing while the block runs."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    def enter(self, what: str, look: Look | None = None) -> None:
        """Begin a stage, which :meth:`leave` ends; arguments as of :meth:`stage`."""
        with self._lock:
            self._stages.append(_Stage(what, look))

    def leave(self) -> None:
        """End the innermost stage."""
        with self._lock:
            self._stages.pop()

    def _work(self) -> None:
        while not self._ended.wait(_EVERY):
            if self._is_paused:
                continue
            # A terminal that went away costs what was to be shown, and not the command.
            with self._lock, suppress(OSError):
                if self._live is not None:
                    shown = self._stages[-1].bar(time.monotonic()) if self._stages else Text()
                    self._live.update(shown, refresh=True)
                elif self._stages:
                    self._write(self._stages[-1], time.monotonic())

    def _write(self, stage: _Stage, now: float) -> None:
        due = stage.begun + _PATIENCE if stage.told is None else stage.told + _BETWEEN_LINES
        if now >= due:
            stage.told = now
            self._console.print(Text(f"monoquant: {stage.line(now)}"), soft_wrap=True)
