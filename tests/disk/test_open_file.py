"""Files held open: regular ones only, and changes are seen."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from monoquant.container import read_container, write_container
from monoquant.disk import open_file
from monoquant.disk.open_file import OpenFile, read_whole
from monoquant.disk.replacing import staged
from monoquant.errors import FileError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "file"
    found.write_bytes(b"0123456789")
    return found


def test_reading(path: Path) -> None:
    """Any part, into bytes and into tensors."""
    with OpenFile(path) as file:
        assert (file.size, file.read(3, 4), file.read(8, 10), file.read(99, 1)) == (10, b"3456", b"89", b"")
        into = torch.empty(4, dtype=torch.uint8)
        file.fill(2, into)
        assert bytes(into.tolist()) == b"2345"
        with pytest.raises(FileError, match="was cut short while it was read"):
            file.fill(8, into)
        file.require_unchanged()
    assert file.file.closed


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def rewritten(path: Path) -> None:
    path.write_bytes(b"9876543210")
    os.utime(path, ns=(1, 1))


def replaced(path: Path) -> None:
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


@pytest.mark.parametrize("change", [appended, rewritten, replaced, Path.unlink])
def test_changes_are_seen(path: Path, change: Callable[[Path], object]) -> None:
    """Of size, time, place, and whether it is there."""
    with OpenFile(path) as file:
        change(path)
        with pytest.raises(FileError, match="changed while it was read; start again when nobody writes to it"):
            file.require_unchanged()


def test_a_saved_model_that_changes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its hashes would be right."""
    write_container(tmp_path / "file", {"a": torch.ones(3)}, {})
    fill = OpenFile.fill

    def filling(self: OpenFile, *args: Any) -> None:
        fill(self, *args)
        replaced(self.path)

    monkeypatch.setattr(OpenFile, "fill", filling)
    with pytest.raises(FileError, match="changed while it was read"):
        read_container(tmp_path / "file")


def test_what_is_no_regular_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # names of sockets are short
        server.bind("socket")
        for name, kind in (("pipe", "a pipe"), ("socket", "a socket"), (".", "a folder"), ("/dev/null", "a device")):
            with pytest.raises(FileError, match=f"is {kind}; give a file"):
                OpenFile(tmp_path / name)
    for name in ("none", "file/none"):
        with pytest.raises(FileError, match=r"no such file|cannot be read"):
            OpenFile(tmp_path / name)


def test_a_pipe_that_takes_the_place_of_a_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looking at it and opening it."""
    opening = os.open

    def late(given: Path, flags: int) -> int:
        path.unlink()
        os.mkfifo(path)
        return opening(given, flags)

    monkeypatch.setattr(open_file.os, "open", late)
    with pytest.raises(FileError, match="is a pipe; give a file"):
        OpenFile(path)


def test_errors_of_the_disk(path: Path) -> None:
    """Name the file."""

    class Failing:
        def seek(self, _place: int) -> None:
            raise OSError(5, "Input/output error")

    with OpenFile(path) as file:
        file.close()
        file.file = Failing()  # type: ignore[assignment]
        for read in (lambda: file.read(0, 1), lambda: file.fill(0, torch.empty(1))):
            with pytest.raises(FileError, match=r"file: cannot be read \(Input/output error\)"):
                read()
        file.file = path.open("rb")


def test_small_files_are_small(path: Path) -> None:
    """A limit is told with what it is."""
    assert read_whole(path, 10) == b"0123456789"
    with pytest.raises(FileError, match="has 10 bytes, where at most 9 make sense"):
        read_whole(path, 9)


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_modes_of_what_is_staged_follow_the_umask(tmp_path: Path) -> None:
    """As of all that a person writes: not for the owner alone."""
    old = os.umask(0o027)
    try:
        with staged(tmp_path / "folder") as place:
            place.mkdir()
            (place / "file").write_text("content")
    finally:
        os.umask(old)
    modes = [stat.S_IMODE(one.stat().st_mode) for one in (tmp_path / "folder", tmp_path / "folder" / "file")]
    assert modes == [0o750, 0o640]
