"""How far a writer is, as others see it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monoquant import container
from monoquant.container import hash_of, write_container
from monoquant.disk.replacing import replacement, staged, written_so_far


def test_bytes_of_a_file_that_is_being_written(tmp_path: Path) -> None:
    """Those that are on the disk, and none of what was there or is of other names."""
    target = tmp_path / "model[1].safetensors"
    target.write_bytes(b"old")
    assert written_so_far(target) == 0
    with replacement(target) as file:
        file.write(b"12345")
        file.flush()
        assert written_so_far(target) == 5
        assert written_so_far(tmp_path / "model.safetensors") == 0
    assert written_so_far(target) == 0


def test_bytes_of_a_folder_that_is_being_written(tmp_path: Path) -> None:
    """All its files together, also one that replaces another within."""
    target = tmp_path / "folder"
    with staged(target) as place:
        (place / "inner").mkdir(parents=True)
        (place / "inner" / "a").write_bytes(b"123")
        with replacement(place / "b") as file:
            file.write(b"45")
            file.flush()
            assert written_so_far(target) == 5
    assert written_so_far(target) == 0


def test_a_file_grows_while_its_tensors_are_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that how far it is says how long it takes, and copies of one tensor at most are in memory."""
    path, seen = tmp_path / "file.safetensors", []

    def watched(name: str, tensor: torch.Tensor) -> str:
        seen.append(written_so_far(path))
        return hash_of(name, tensor)

    monkeypatch.setattr(container, "hash_of", watched)
    tensors = {name: torch.zeros(1 << 18) for name in "abc"}
    write_container(path, tensors, {})
    monkeypatch.undo()
    assert [round(size / (1 << 20)) for size in seen] == [0, 1, 2]
    container.read_container(path)
