"""Archives of torch.save whose directory is not what it should be."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from monoquant.disk.open_file import OpenFile
from monoquant.errors import FileError
from monoquant.formats import torch_file
from monoquant.formats.torch_file import require_no_code
from monoquant.formats.weights_file import read_weights

END, LOCATOR, END_64 = 22, 20, 56
Change = Callable[[bytearray], object]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save({"w": torch.arange(12.0)}, tmp_path / "w.pt")
    return tmp_path / "w.pt"


def put(place: int, layout: str, value: int) -> Change:
    """Another number; places count from the end of the file."""
    return lambda content: struct.pack_into(f"<{layout}", content, len(content) + place, value)


def first_record(at: int, layout: str, value: int) -> Change:
    """Another number in the directory's first record."""
    return lambda content: struct.pack_into(f"<{layout}", content, content.index(b"PK\1\2") + at, value)


CHANGES: dict[str, tuple[Change, str]] = {
    "comment": (put(-2, "H", 3), "it does not end as torch.save ends files"),
    "no end": (put(-END, "L", 0), "it does not end as torch.save ends files"),
    "other count": (put(-12, "H", 3), "its two directories differ"),
    "other size": (put(-10, "L", 3), "its two directories differ"),
    "other start": (put(-6, "L", 3), "its two directories differ"),
    "large directory elsewhere": (put(-END - LOCATOR + 8, "Q", 3), "its large directory is not where it should be"),
    "large directory nowhere": (put(-END - LOCATOR + 8, "Q", 1 << 60), "not a sound zip archive"),
    "record that is none": (first_record(0, "L", 0), "its directory is cut short"),
    "longer name": (first_record(28, "H", 5000), "not a sound zip archive"),
    "compressed": (first_record(10, "H", 8), "its records are compressed or encrypted"),
    "encrypted": (first_record(8, "H", 1), "its records are compressed or encrypted"),
    "size that is said nowhere": (first_record(24, "L", 0xFFFFFFFF), "it does not say how large its records are"),
    "size beyond the file": (first_record(24, "L", 1 << 30), "its records claim"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_directories_that_are_wrong(path: Path, name: str) -> None:
    """Refused before torch reads any of it."""
    change, said = CHANGES[name]
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    with pytest.raises(FileError) as caught:
        read_weights(path)
    assert said in str(caught.value)


def both(count: int, size: int, start: int) -> Change:
    """The same in both directories."""

    def change(content: bytearray) -> None:
        place = len(content) - END - LOCATOR - END_64
        struct.pack_into("<QQQQ", content, place + 24, count, count, size, start)
        struct.pack_into("<HHLL", content, len(content) - END + 8, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)

    return change


@pytest.mark.parametrize(
    ("count", "size", "start", "said"),
    [
        (1, 10**6, 0, "its directory lies beyond its end"),
        (1, 1 << 62, 1 << 62, "its directory lies beyond its end"),
        (1, 0, 0, "not a sound zip archive"),
        (10**9, 0, 0, "not a sound zip archive"),
    ],
)
def test_directories_that_agree_on_nonsense(path: Path, count: int, size: int, start: int, said: str) -> None:
    """Sizes and counts that no file of this length has."""
    content = bytearray(path.read_bytes())
    both(count, size, start)(content)
    path.write_bytes(content)
    with pytest.raises(FileError, match=said):
        read_weights(path)


def test_records_that_nothing_counts(path: Path) -> None:
    """Readers that go by size see them, readers that count do not."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        count, start = len(archive.filelist), archive.start_dir
    size = len(content) - END - LOCATOR - END_64 - start
    both(count, size, start)(content)
    path.write_bytes(content)
    assert torch.equal(read_weights(path)["w"], torch.arange(12.0)), "sound so far"
    both(count - 1, size, start)(content)
    path.write_bytes(content)
    with pytest.raises(FileError, match="its directory holds more than its records"):
        read_weights(path)


def test_directories_of_gigabytes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are not read."""
    monkeypatch.setattr(torch_file, "_MOST_DIRECTORY", 10)
    with pytest.raises(FileError, match=r"its directory has [0-9]+ bytes"):
        read_weights(path)


def test_records_of_many_gigabytes() -> None:
    """Their sizes lie in a field of their own, beside others, and count."""
    field = struct.pack("<HHLHHQQ", 7, 4, 0, 1, 16, 1 << 40, 1 << 40)
    assert torch_file._full_sizes(0xFFFFFFFF, 0xFFFFFFFF, field) == [1 << 40, 1 << 40]
    assert torch_file._full_sizes(5, 6, field) == [5, 6]


def test_views_of_one_memory_are_read(tmp_path: Path) -> None:
    """A matrix and its transpose, and small tensors that repeat a number."""
    whole = torch.randn(300, 400)
    state = {"a": whole, "b": whole.T, "c": whole[:100], "d": torch.ones(1).expand(1000)}
    torch.save(state, tmp_path / "w.pt")
    found = read_weights(tmp_path / "w.pt")
    assert all(torch.equal(found[name], state[name]) for name in state)


class Code:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("content", [Code(), {"weight": torch.ones(2), "more": Code()}, nn.Linear(2, 2)])
def test_code_is_found_without_reading_weights(tmp_path: Path, content: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, and does not run."""
    monkeypatch.chdir(tmp_path)
    torch.save(content, "w.bin")
    said = r"w\.bin: cannot be read as weights only \(it names .*(pathlib\.Path|Linear)"
    with OpenFile(Path("w.bin")) as file, pytest.raises(FileError, match=said):
        require_no_code(file)
    assert not Path("ran").exists()


@pytest.mark.parametrize("old", [False, True])
def test_weights_name_no_code(tmp_path: Path, old: bool) -> None:
    """Of all dtypes, and parameters; a pickle of old is left to who reads it."""
    dtypes = (torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn, torch.bool)
    state = {str(dtype): torch.zeros(3).to(dtype) for dtype in dtypes} | {"p": nn.Parameter(torch.ones(2))}
    torch.save(state, tmp_path / "w.bin", _use_new_zipfile_serialization=not old)
    with OpenFile(tmp_path / "w.bin") as file:
        require_no_code(file)


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    """It has no pickle to look into."""
    with zipfile.ZipFile(tmp_path / "w.bin", "w") as archive:
        archive.writestr("notes.txt", "text")
    with OpenFile(tmp_path / "w.bin") as file, pytest.raises(FileError, match=r"as weights only .*; get it again"):
        require_no_code(file)
