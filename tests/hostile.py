"""Files that somebody built to do harm, or that something damaged in the worst place."""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import monoquant as mq
from monoquant.container import read_container, write_container

Build = Callable[[Path], Path]
HUGE = 10**12


def header(content: Any, data: bytes = b"", *, length: int | None = None, size: int = 0) -> Build:
    """A safetensors file: its header, as JSON or bytes, the length that it claims, and zeros up to a size."""

    def build(folder: Path) -> Path:
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        path = folder / "model.safetensors"
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
        if size:
            os.truncate(path, 8 + len(text) + size)
        return path

    return build


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    """What a header says of a tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def saved(folder: Path) -> Path:
    """An honest quantized model."""
    torch.manual_seed(0)
    result = mq.quantize(nn.Sequential(nn.Linear(40, 24)), accuracy_warning="ignore", plugins=False)
    mq.save(result, folder / "model.safetensors", plugins=False)
    return folder / "model.safetensors"


def flipped(place: int) -> Build:
    """An honest model with one bit that is not; places count from the end where they are negative."""

    def build(folder: Path) -> Path:
        path = saved(folder)
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)
        return path

    return build


def resealed(change: Callable[[dict[str, Tensor], dict[str, str]], object]) -> Build:
    """A model with another content, and hashes that are right."""

    def build(folder: Path) -> Path:
        path = saved(folder)
        tensors, metadata = read_container(path)
        texts = {key: text for key, text in metadata.items() if "sha256" not in key}
        change(tensors, texts)
        write_container(path, tensors, texts)
        return path

    return build


def reported(old: str, new: str) -> Build:
    """A model whose report says something else, and whose hashes are right."""

    def change(_: dict[str, Tensor], texts: dict[str, str]) -> None:
        assert old in texts["report"], texts["report"]
        texts["report"] = texts["report"].replace(old, new)

    return resealed(change)


def text(content: str | bytes, name: str = "report.json", size: int = 0) -> Build:
    """A text file, and zeros up to a size."""

    def build(folder: Path) -> Path:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        if size:
            os.truncate(folder / name, size)
        return folder / name

    return build


def pipe(folder: Path) -> Path:
    """What nobody ever writes to."""
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def path_of(path: str) -> Build:
    """Something that is there already."""
    return lambda _: Path(path)


def indexed(*names: str, then: Callable[[Path], object] = lambda _: None, **config: Any) -> Build:
    """A folder with an index that names shards, one of which is there and beside which lies a secret."""

    def build(folder: Path) -> Path:
        (folder / "secret").mkdir()
        write_container(folder / "secret" / "weights.safetensors", {"a.weight": torch.ones(64, 64)}, {})
        inner = folder / "model"
        inner.mkdir()
        write_container(inner / "1.safetensors", {"b.weight": torch.ones(64, 64)}, {})
        places = dict(zip("abcdefgh", names, strict=False))
        weight_map = {f"{key}.weight": name for key, name in places.items()}
        (inner / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        if config:
            (inner / "config.json").write_text(json.dumps(config))
        then(inner)
        return inner

    return build


def linked(name: str, target: str) -> Callable[[Path], object]:
    """A link in a folder."""

    def link(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return link


def state(folder: Path, name: str = "model.pt") -> Path:
    """An honest state dict of 12 numbers."""
    torch.save({"w": torch.zeros(3, 4)}, folder / name)
    return folder / name


def repacked(
    changes: dict[bytes, bytes] | None = None, *, method: int = zipfile.ZIP_STORED, more: dict[str, bytes] | None = None
) -> Build:
    """A state dict whose pickle says something else, in an archive packed otherwise."""

    def build(folder: Path) -> Path:
        path = state(folder)
        with zipfile.ZipFile(path) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        pickled = next(name for name in records if name.endswith("data.pkl"))
        for old, new in (changes or {}).items():
            assert old in records[pickled]
            records[pickled] = records[pickled].replace(old, new)
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in {**records, **(more or {})}.items():
                archive.writestr(name, content)
        return path

    return build


def number(value: int) -> bytes:
    """How a pickle says a large number."""
    return b"\x8a\x08" + value.to_bytes(8, "little")


def overlapping(folder: Path) -> Path:
    """Many entries of a directory that point to the same megabyte."""
    path = folder / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data/0", bytes(1 << 20))
        for number_ in range(1, 1000):
            copied = zipfile.ZipInfo(f"model/data/{number_}")
            first = archive.filelist[0]
            copied.header_offset, copied.file_size = first.header_offset, first.file_size
            copied.compress_size, copied.CRC = first.compress_size, first.CRC
            archive.filelist.append(copied)
    return path


def two_directories(folder: Path) -> Path:
    """An archive that says two things about where its directory is: readers may believe the one or the other."""
    path = state(folder)
    content = bytearray(path.read_bytes())
    content[-10:-6] = struct.pack("<L", 0xFFFFFFF0)
    path.write_bytes(content)
    return path


def encrypted(folder: Path) -> Path:
    """Records that say that they are."""
    path = state(folder)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    return path


def legacy(folder: Path) -> Path:
    """What torch wrote before it wrote archives, with a storage of a terabyte."""
    path = folder / "model.bin"
    torch.save({"w": torch.zeros(3, 4)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    old = b"X\x03\x00\x00\x00cpuq\x06K\x0cN"
    assert old in content, pickletools.dis(io.BytesIO(content[300:]))
    path.write_bytes(content.replace(old, old[:-3] + number(HUGE) + b"N"))
    return path


class Runs:
    """Unpickling it would call a function."""

    def __init__(self, function: Any, *given: Any) -> None:
        self.call = (function, given)

    def __reduce__(self) -> Any:
        return self.call


def unpickled(function: Any, *given: Any) -> Build:
    """An archive whose pickle calls a function."""

    def build(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "model.pt", "w") as archive:
            archive.writestr("model/data.pkl", pickle.dumps({"w": Runs(function, *given)}, protocol=2))
            archive.writestr("model/byteorder", "little")
            archive.writestr("model/version", "3\n")
        return folder / "model.pt"

    return build


def array(said: str, data: bytes = b"", *, length: int | None = None) -> Build:
    """A NumPy file: what its header says."""

    def build(folder: Path) -> Path:
        content = said.encode() + b"\n"
        size = struct.pack("<L", len(content) if length is None else length)
        (folder / "data.npy").write_bytes(b"\x93NUMPY\2\0" + size + content + data)
        return folder / "data.npy"

    return build
