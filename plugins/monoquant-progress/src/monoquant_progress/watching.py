"""The two hooks around passes, and what is remembered between them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from weakref import WeakKeyDictionary

import attrs
import monoquant
from rich.text import Text

from monoquant_progress.display import Line, RunningPasses


@attrs.frozen
class _Begun:
    """A pass that works.

    Args:
        thread: That it works in.
        at: When it began, in seconds of a clock that only goes forward.
        packed: How many layers were packed by then.
        depth: How many other passes this thread is in the middle of: a pass may quantize something itself.
        line: Its line on the terminal; None where nothing moves.
    """

    thread: int
    at: float
    packed: int
    depth: int
    line: Line | None


class PassProgress:
    """Tells on stderr of every pass: while it works, with a clock, and when it is done, with what it did.

    Where stderr is no terminal nothing is written. Any number of runs may work at once, in threads or one within the
    other; each working pass has its own line.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = RunningPasses()
        # By context, because a run has one and two runs have two; weakly, because it holds the whole model.
        self._begun: WeakKeyDictionary[monoquant.QuantContext, _Begun] = WeakKeyDictionary()

    @contextlib.contextmanager
    def _shown(self) -> Iterator[None]:
        """One thread at a time; and a terminal that was closed costs what was to be shown, but not the run."""
        with self._lock:
            try:
                yield
            except OSError:
                self._running.give_up()

    @monoquant.hookimpl
    def monoquant_before_pass(self, pass_: monoquant.Pass, context: monoquant.QuantContext) -> None:
        """Show that a pass works."""
        with self._shown():
            console = self._running.console()
            if not console.is_terminal:
                return
            thread = threading.get_ident()
            depth = sum(other.thread == thread for other in self._begun.values())
            # CalibrationPass(progress=True) writes on the line that would move.
            moves = getattr(pass_, "progress", False) is False
            line = self._running.add(console, _indented(pass_, depth)) if moves else None
            self._begun[context] = _Begun(thread, time.perf_counter(), len(context.packed), depth, line)

    @monoquant.hookimpl
    def monoquant_after_pass(
        self, pass_: monoquant.Pass, context: monoquant.QuantContext, error: BaseException | None
    ) -> None:
        """Show what it did, or that it failed."""
        with self._shown():
            if context not in self._begun:
                return  # stderr was no terminal when it began
            begun = self._begun.pop(context)
            console = self._running.console()
            if begun.line is not None:
                self._running.remove(begun.line)
            console.print(_line(pass_, context, begun, error), soft_wrap=True)


def _indented(pass_: monoquant.Pass, depth: int) -> str:
    return "  " * depth + type(pass_).__name__


def _line(pass_: monoquant.Pass, context: monoquant.QuantContext, begun: _Begun, error: BaseException | None) -> Text:
    packed, found = len(context.packed) - begun.packed, len(context.findings)
    parts = [] if error is None else [Text(f"failed: {type(error).__name__}", "bold red")]
    parts += [Text(f"{_counted(packed, 'layer')} packed")] if packed else []
    parts += [Text(f"{_counted(found, 'finding')} so far")] if found else []
    name, seconds = _indented(pass_, begun.depth), time.perf_counter() - begun.at
    line = Text.assemble((f"{name:<22}", "bold"), (f"{seconds:8.1f} s  ", "cyan"), Text(", ").join(parts))
    line.rstrip()
    return line


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
