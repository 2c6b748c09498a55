"""Files of float weights: read without running what they hold, or refused with a reason."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from monoquant.container import write_container
from monoquant.errors import FileError, InputError
from monoquant.formats.weights_file import read_weights


class Executes:
    """Unpickling it would run code."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither at reading nor later."""
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(2), "more": Executes()}, tmp_path / "evil.pt")
    with pytest.raises(FileError, match=r"evil\.pt: cannot be read as weights only .*save model\.state_dict\(\)"):
        read_weights(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


def test_a_whole_model_is_refused(tmp_path: Path) -> None:
    """It needs its class, and code to build it."""
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(FileError, match=r"save model\.state_dict\(\) rather than the model"):
        read_weights(tmp_path / "model.pt")


def test_a_single_tensor_is_no_state_dict(tmp_path: Path) -> None:
    """The file is fine, what it holds is not."""
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(InputError, match="holds a Tensor: give a file with a state dict"):
        read_weights(tmp_path / "tensor.pt")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights.bin"])
@pytest.mark.parametrize("content", [b"", b"garbage" * 40, b"PK\x03\x04broken"])
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    """With the file's name."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=name):
        read_weights(tmp_path / name)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    """Wherever it is cut."""
    torch.save({"weight": torch.randn(50, 50)}, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    for end in range(1, len(whole), max(1, len(whole) // 20)):
        (tmp_path / "cut.pt").write_bytes(whole[:end])
        with pytest.raises(FileError, match=r"cut\.pt"):
            read_weights(tmp_path / "cut.pt")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    """Neither is read, where the folder holds no weights."""
    with pytest.raises(FileError, match="no such file"):
        read_weights(tmp_path / "nothing.pt")
    with pytest.raises(FileError, match="holds neither"):
        read_weights(tmp_path)


def test_what_a_file_holds_decides_and_not_its_name(tmp_path: Path) -> None:
    """Each under the name of another, and something else under any."""
    state = {"weight": torch.randn(3, 5)}
    torch.save(state, tmp_path / "torch.safetensors")
    write_container(tmp_path / "tensors.pt", state, {})
    for name in ("torch.safetensors", "tensors.pt"):
        assert torch.equal(read_weights(tmp_path / name)["weight"], state["weight"])
    for content, what in ((b"x", "a file of another kind"), (b"GGUF", "a GGUF file"), (b"", "an empty file")):
        (tmp_path / "weights.pt").write_bytes(content)
        with pytest.raises(FileError, match=f"is {what}; give a .safetensors file, or one that torch.save wrote"):
            read_weights(tmp_path / "weights.pt")


def test_any_damage_to_a_pickle_is_a_file_error(tmp_path: Path) -> None:
    """Whatever the reader stumbles over; a file that still reads is no failure."""
    torch.save({"weight": torch.randn(5, 5)}, tmp_path / "whole.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "whole.pt").read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[int(torch.randint(len(whole), (1,), generator=generator))] ^= 1 << int(
            torch.randint(8, (1,), generator=generator)
        )
        (tmp_path / "damaged.pt").write_bytes(damaged)
        with contextlib.suppress(FileError, InputError):  # anything else fails the test
            read_weights(tmp_path / "damaged.pt")
    for content in (b"\x80", b"\x80\x02.", b"\x80\x02}"):
        (tmp_path / "tiny.pt").write_bytes(content)
        with pytest.raises(FileError, match=r"tiny\.pt: cannot be read as weights only \([^\x1b]*\)"):
            read_weights(tmp_path / "tiny.pt")


@pytest.mark.parametrize("place", [b"tensors.sha256", b"format", None])
def test_hashes_that_a_file_brings_are_verified(tmp_path: Path, place: bytes | None) -> None:
    """Also of float weights, and of a quantized model that damage made look like them."""
    path = tmp_path / "w.safetensors"
    write_container(path, {"w": torch.ones(3)}, {"format": "pt"})
    assert torch.equal(read_weights(path)["w"], torch.ones(3))
    content = bytearray(path.read_bytes())
    content[-1 if place is None else content.index(place)] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"w\.safetensors: (damaged|not a monoquant file)"):
        read_weights(path)
