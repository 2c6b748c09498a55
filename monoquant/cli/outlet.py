"""stdout and stderr of a command, which do not fail where nobody reads them."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

import attrs


@attrs.define(eq=False)
class _Outlet:
    """A stream whose reader (head, say) may leave: what comes of a command does not depend on who listens.

    Args:
        stream: What is written to.
        has_results: Whether what cannot be written there, as on a full disk, is an error of the command.
    """

    stream: TextIO
    has_results: bool

    def write(self, text: str) -> int:
        """Write, or do nothing where the reader has left.

        Args:
            text: Any.

        Returns:
            Characters of the text.

        Raises:
            OSError: Results cannot be written, and not because their reader left. Once: nothing is written after it.
        """
        with self._guarded():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written.

        Raises:
            OSError: As ``write``.
        """
        with self._guarded():
            self.stream.flush()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.hush()
            if self.has_results and not isinstance(error, BrokenPipeError):
                raise

    def hush(self) -> None:
        """Lead to nowhere what is in the stream and what will be: Python flushes it once more at exit."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)
        self.stream.flush()

    def settle(self) -> None:
        """Make sure that nothing is left to write at exit, where Python would fail."""
        try:
            self.stream.flush()
        except OSError:
            self.hush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _outlet(stream: TextIO | None, has_results: bool) -> _Outlet:
    outlet = _Outlet(io.StringIO() if stream is None else stream, has_results)  # None where the shell closed it
    outlet.settle()  # a library may have warned already, in vain
    if isinstance(outlet.stream, io.TextIOWrapper):
        outlet.stream.reconfigure(errors="backslashreplace")  # names may hold what an encoding, as ASCII, does not
    return outlet


@contextlib.contextmanager
def outlets() -> Iterator[None]:
    """Put outlets in the place of stdout and stderr, for whoever writes there, and settle them in the end."""
    out, err = _outlet(sys.stdout, has_results=True), _outlet(sys.stderr, has_results=False)
    try:
        with contextlib.redirect_stdout(cast("TextIO", out)), contextlib.redirect_stderr(cast("TextIO", err)):
            yield
    finally:
        out.settle()
        err.settle()
