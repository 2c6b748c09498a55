"""stdout and stderr of a command, which do not fail where nobody reads them."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TextIO, cast

import attrs


@attrs.define(eq=False)
class _Outlet:
    """A stream whose reader (head, say) may leave: what comes of a command does not depend on who listens.

    Args:
        stream: What is written to.
        has_results: Whether what cannot be written there, as on a full disk, is an error of the command.
    """

    stream: IO[Any]
    has_results: bool

    @property
    def buffer(self) -> _Outlet:
        """The same for bytes."""
        return _Outlet(cast("TextIO", self.stream).buffer, self.has_results)

    def write(self, text: str | bytes) -> int:
        """Write, or do nothing where the reader has left.

        Args:
            text: Any; bytes for a buffer.

        Returns:
            Characters of the text.

        Raises:
            OSError: Results cannot be written, and not because their reader left. Once: nothing is written after it.
        """
        with self._guarded():
            self.stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str | bytes]) -> None:
        """Write several texts.

        Args:
            lines: The texts.

        Raises:
            OSError: As ``write``.
        """
        for line in lines:
            self.write(line)

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


@contextlib.contextmanager
def _outlet(given: TextIO | None, has_results: bool) -> Iterator[TextIO]:
    # None where the shell closed it
    with contextlib.nullcontext(given) if given is not None else Path(os.devnull).open("w", encoding="utf-8") as stream:
        outlet = _Outlet(stream, has_results)
        outlet.settle()  # a library may have warned already, in vain
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may hold what an encoding, as ASCII, does not
        try:
            yield cast("TextIO", outlet)
        finally:
            outlet.settle()


@contextlib.contextmanager
def outlets() -> Iterator[None]:
    """Put outlets in the place of stdout and stderr, for whoever writes there, and settle them in the end."""
    with (
        _outlet(sys.stdout, has_results=True) as out,
        _outlet(sys.stderr, has_results=False) as err,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        yield
