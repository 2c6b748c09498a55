"""The lines that move: one for each pass that works now."""

from __future__ import annotations

import contextlib
import os

import attrs
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


@attrs.frozen(eq=False)
class Line:
    """A line that moves.

    Args:
        progress: What draws it.
        task: Which of its lines it is.
    """

    progress: Progress
    task: TaskID


class RunningPasses:
    """Lines at the bottom of the terminal, drawn anew until no pass works any more; then they are gone.

    Not safe for threads: callers take turns.
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def console(self) -> Console:
        """Stderr as it is now; while lines move, the console that keeps what is printed above them."""
        return Console(stderr=True) if self._progress is None else self._progress.console

    def add(self, console: Console, name: str) -> Line | None:
        """Show a pass that works.

        Args:
            console: What :meth:`console` returned.
            name: Of the pass, as shown.

        Returns:
            What :meth:`remove` takes; None where nothing may move: on terminals that cannot, and in CI, whose logs keep
            every frame.
        """
        if not console.is_interactive or os.environ.get("CI"):
            return None
        if self._progress is None:
            self._progress = Progress(
                SpinnerColumn("line"),  # plain ASCII, which every terminal has
                TextColumn("{task.description}", markup=False),
                TimeElapsedColumn(),
                console=console,
                transient=True,
                # The streams of the process are not a watcher's to replace.
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._progress.start()
        return Line(self._progress, self._progress.add_task(name, total=None))

    def remove(self, line: Line) -> None:
        """A pass is done, or has failed.

        Args:
            line: What :meth:`add` returned.
        """
        if line.progress is not self._progress:
            return  # it was given up
        self._progress.remove_task(line.task)
        if not self._progress.task_ids:
            self._progress.stop()
            self._progress = None

    def give_up(self) -> None:
        """The terminal is gone: forget all lines, so that later ones begin anew on whatever is there then."""
        abandoned, self._progress = self._progress, None
        if abandoned is not None:
            with contextlib.suppress(OSError):  # it would bring back the cursor of what is gone
                abandoned.stop()
