"""What goes where: results to stdout, as text or as one JSON document; everything else to stderr."""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

import attrs
from rich.console import Console, RenderableType
from rich.text import Text

_WIDE = 10_000
"""Columns where nobody looks at a terminal: lines are as long as they are, so that grep finds them whole."""
DOCUMENT_VERSION = 1
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """A text that does nothing to a terminal: names in files may hold what moves its cursor.

    Args:
        text: Any.
    """
    return text.translate(_CONTROLS)


def _console(stream: TextIO) -> Console:
    width = None if stream.isatty() else _WIDE
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


@attrs.define
class Streams:
    """The two streams of a command.

    Args:
        command: Its name, for the document.
        as_json: Whether stdout gets one JSON document instead of text.
        verbosity: -1 for quiet, 0, or 1 for verbose.
    """

    command: str
    as_json: bool = False
    verbosity: int = 0
    out: Console = attrs.field(init=False)
    err: Console = attrs.field(init=False)
    _document: dict[str, Any] = attrs.field(init=False, factory=dict)
    _shown: list[RenderableType] = attrs.field(init=False, factory=list)

    @out.default
    def _stdout(self) -> Console:
        return _console(sys.stdout)

    @err.default
    def _stderr(self) -> Console:
        return _console(sys.stderr)

    def show(self, shown: RenderableType) -> None:
        """Print a result, unless JSON is wanted; when the command has ended, so that it does not meet a moving bar.

        Args:
            shown: Text or a table.
        """
        if not self.as_json:
            self._shown.append(Text(printable(shown)) if isinstance(shown, str) else shown)

    def flush(self) -> None:
        """Write the results that were to be printed."""
        shown, self._shown = self._shown, []
        for one in shown:
            self.out.print(one, soft_wrap=isinstance(one, Text))

    def write(self, text: str) -> None:
        """Write to stdout at once, as it is; not with ``--json``.

        Args:
            text: With its ends of lines.
        """
        if not self.as_json:
            self._write(text)

    def _write(self, text: str) -> None:
        self.out.file.write(text)
        self.out.file.flush()

    def put(self, **fields: Any) -> None:
        """Add to the JSON document.

        Args:
            fields: JSON-ready values.
        """
        self._document.update(fields)

    def say(self, text: str) -> None:
        """Tell a person something that is no result; not with ``--quiet``.

        Args:
            text: One or more lines.
        """
        if self.verbosity >= 0:
            self._tell(text)

    def detail(self, text: str) -> None:
        """The same, with ``--verbose`` only.

        Args:
            text: One or more lines.
        """
        if self.verbosity > 0:
            self._tell(text)

    def fail(self, text: str) -> None:
        """Tell what went wrong, also with ``--quiet``.

        Args:
            text: One or more lines.
        """
        self._tell(text, "bold red" if self.err.is_terminal else "")

    def _tell(self, text: str, style: str = "") -> None:
        self.err.print(Text(printable(f"monoquant: {text}"), style=style), soft_wrap=True)

    def finish(self, exit_code: int, error: BaseException | None = None, message: str | None = None) -> None:
        """Write the document, if JSON is wanted.

        Args:
            exit_code: Of the command.
            error: What ended it; None if nothing did.
            message: What that says; default: its own text.
        """
        if not self.as_json:
            return
        head: dict[str, Any] = {"version": DOCUMENT_VERSION, "command": self.command, "exit_code": exit_code}
        if error is not None:
            layers = list(getattr(error, "layers", ()))
            head["error"] = {"kind": type(error).__name__, "message": message or str(error), "layers": layers}
        self._write(json.dumps({**head, **self._document}, indent=1, allow_nan=False) + "\n")
