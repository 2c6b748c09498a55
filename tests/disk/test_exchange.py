"""Two names that change places in one step, or do not at all."""

from __future__ import annotations

import ctypes
import errno
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from monoquant.disk import exchange
from monoquant.disk.exchange import exchanged


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    (one / "inside").write_text("content")
    other.write_text("content")
    return one, other


def test_changing_places(pair: tuple[Path, Path]) -> None:
    """A folder and a file; where the system cannot, nothing has moved."""
    one, other = pair
    moved = exchanged(one, other)
    assert (one.is_dir(), other.is_dir()) == ((False, True) if moved else (True, False))


def test_what_is_not_there(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """An error, which names it."""
    if exchanged(*pair):
        with pytest.raises(FileNotFoundError, match="none"):
            exchanged(pair[0], tmp_path / "none")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL])
@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_systems_that_cannot(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, number: int, system: str
) -> None:
    """Old ones, and file systems that have no such step."""

    def refuse(*_: object) -> int:
        ctypes.set_errno(number)
        return -1

    library = SimpleNamespace(renameat2=refuse, renamex_np=refuse)
    monkeypatch.setattr(exchange.ctypes, "CDLL", lambda *_, **__: library)
    monkeypatch.setattr(sys, "platform", system)
    assert not exchanged(*pair)


def test_systems_that_know_nothing_of_it(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither under the one name nor under the other."""
    nothing: Callable[..., object] = lambda *_, **__: SimpleNamespace()  # noqa: E731
    monkeypatch.setattr(exchange.ctypes, "CDLL", nothing)
    assert not exchanged(*pair)
