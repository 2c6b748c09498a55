"""A regular file held open: nothing that could make a reader wait, and nothing that changes unseen."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from torch import Tensor

from monoquant.errors import FileError
from monoquant.numerics.memory import byte_view

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
"""A pipe that took the file's place after it was looked at must not make anybody wait."""


class OpenFile:
    """A file to read from; a context manager.

    Args:
        path: The file. A link is followed: whoever takes names from a file asks :func:`members_of` first.

    Raises:
        FileError: When it does not exist, is no regular file, or cannot be read.

    Attributes:
        path: As given.
        file: Unbuffered.
        size: Bytes in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            _require_regular(path, path.stat())
            self.file: BinaryIO = os.fdopen(os.open(path, _FLAGS), "rb", buffering=0)
        except FileNotFoundError as error:
            raise FileError(f"{path}: no such file") from error
        except (OSError, ValueError) as error:
            raise FileError(f"{path}: cannot be read ({_reason(error)})") from error
        try:
            found = os.fstat(self.file.fileno())
            _require_regular(path, found)
        except BaseException:
            self.file.close()
            raise
        self.size = found.st_size
        self._identity = _identity(found)

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it; twice does no harm."""
        self.file.close()

    def read(self, start: int, size: int) -> bytes:
        """Some of its bytes.

        Args:
            start: The first one.
            size: How many, fewer if the file ends before.

        Raises:
            FileError: When they cannot be read.
        """
        try:
            self.file.seek(start)
            parts = []
            while size > 0 and (part := self.file.read(size)):
                parts.append(part)
                size -= len(part)
        except OSError as error:
            raise FileError(f"{self.path}: cannot be read ({_reason(error)})") from error
        return b"".join(parts)

    def fill(self, start: int, into: Tensor) -> None:
        """Read bytes into a tensor.

        Args:
            start: Where they begin in the file.
            into: Contiguous CPU tensor to fill.

        Raises:
            FileError: When they cannot be read, or are not there any more.
        """
        view, done = byte_view(into), 0
        try:
            self.file.seek(start)
            while done < len(view):
                count = self.file.readinto(view[done:])  # type: ignore[attr-defined]  # raw files have it
                if not count:
                    raise FileError(f"{self.path}: was cut short while it was read; get it again")
                done += count
        except OSError as error:
            raise FileError(f"{self.path}: cannot be read ({_reason(error)})") from error

    def is_unchanged(self) -> bool:
        """Whether size, time and place are those of when it was opened."""
        try:
            return _identity(os.fstat(self.file.fileno())) == self._identity == _identity(self.path.stat())
        except OSError:
            return False

    def require_unchanged(self) -> None:
        """Refuse what was read while something else wrote.

        Raises:
            FileError: When size, time or place are others than when it was opened.
        """
        if not self.is_unchanged():
            raise FileError(f"{self.path}: changed while it was read; start again when nobody writes to it")


def read_whole(path: Path, most: int) -> bytes:
    """All bytes of a small file.

    Args:
        path: The file.
        most: Bytes that such a file may have.

    Raises:
        FileError: When it does not exist, is no regular file, cannot be read, or is larger.
    """
    with OpenFile(path) as file:
        if file.size > most:
            raise FileError(f"{path}: has {file.size} bytes, where at most {most} make sense; give another file")
        content = file.read(0, file.size)
        file.require_unchanged()
        return content


def _require_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise FileError(f"{path}: is {kind}; give a file")


def _reason(error: OSError | ValueError) -> str:
    return str(getattr(error, "strerror", None) or error)


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
