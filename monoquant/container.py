"""One safetensors file with hashed tensors, written all or nothing."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import torch
from torch import Tensor

from monoquant.disk.header import DTYPE_CODES, LENGTH, METADATA, is_sound_name, read_header
from monoquant.disk.open_file import OpenFile
from monoquant.disk.replacing import replacement as replacement
from monoquant.disk.replacing import staged as staged
from monoquant.disk.tensors import read_tensors
from monoquant.errors import FileError
from monoquant.numerics.memory import byte_view
from monoquant.progress import Progress, part_of, untold

HASHES_KEY = "tensors.sha256"
METADATA_HASH_KEY = "metadata.sha256"
_NO_HASH = "0" * 64


def write_container(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata to one safetensors file, with hashes of both in the metadata.

    There is a SHA-256 per tensor, in the order of the tensors' names, and one over the other metadata. The file appears
    complete or not at all: it is written to a temporary file beside the target, flushed to disk and renamed.

    Args:
        path: Target; replaced if it exists, kept as it was if anything fails.
        tensors: Tensors by name, on any device; none may share memory with another.
        metadata: Texts by key.

    Raises:
        FileError: When the target's folder does not exist, cannot be written or has no room.
    """
    refuse_unknown_kinds(tensors)
    slots = arranged(tensors)
    with replacement(path, size=size_of(slots, metadata)) as file:
        file.write(header_of(slots, sealed(metadata, dict.fromkeys(slots, _NO_HASH))))
        hashes = {}
        for name in slots:
            tensor = tensors[name].detach().cpu().contiguous()
            hashes[name] = hash_of(name, tensor)
            file.write(byte_view(tensor))
        file.seek(0)
        file.write(header_of(slots, sealed(metadata, hashes)))  # as long as the first: hashes are of one length


def refuse_unknown_kinds(tensors: Mapping[str, Tensor]) -> None:
    """Refuse what a safetensors file cannot hold.

    Args:
        tensors: Tensors by name.

    Raises:
        FileError: For other dtypes, sparse tensors, a reserved name, or a big-endian machine.
    """
    if sys.byteorder != "little":
        raise FileError("safetensors files hold little-endian bytes: save on a little-endian machine")
    if METADATA in tensors:
        raise FileError(f"no tensor may be called {METADATA!r} in a safetensors file: rename it")
    unsound = [name for name in tensors if not is_sound_name(name)]
    if unsound:
        raise FileError(f"names of tensors must be printable, and these are not: {', '.join(map(repr, unsound))}")
    strange = [
        name for name, tensor in tensors.items() if tensor.dtype not in DTYPE_CODES or tensor.layout != torch.strided
    ]
    if strange:
        dtypes = ", ".join(f"{name} ({tensors[name].dtype}, {tensors[name].layout})" for name in strange)
        raise FileError(f"safetensors files cannot hold these tensors: {dtypes}; convert them first")


@attrs.frozen
class Slot:
    """Where a tensor is in a file.

    Args:
        dtype: Its dtype.
        shape: Its shape.
        start: Its first byte, behind the header.
        end: The byte behind its last one.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def arranged(tensors: Mapping[str, Tensor]) -> dict[str, Slot]:
    """Places of tensors in a file: wide elements first, so that all are aligned.

    Args:
        tensors: By name; meta tensors are fine.

    Returns:
        Places in their order.
    """
    slots: dict[str, Slot] = {}
    start = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        tensor = tensors[name]
        end = start + tensor.numel() * tensor.element_size()
        slots[name] = Slot(tensor.dtype, tuple(tensor.shape), start, end)
        start = end
    return slots


def header_of(slots: Mapping[str, Slot], texts: Mapping[str, str], room: int = 0) -> bytes:
    """All that comes before the tensors in a safetensors file.

    Written here because the library's own writer needs NumPy, which nothing else here does.

    Args:
        slots: As :func:`arranged` gives them.
        texts: As :func:`sealed` gives them.
        room: Bytes that it is to take if it does not need more; default: as few as possible.
    """
    header: dict[str, object] = {METADATA: dict(texts)}
    for name, slot in slots.items():
        offsets = [slot.start, slot.end]
        header[name] = {"dtype": DTYPE_CODES[slot.dtype], "shape": list(slot.shape), "data_offsets": offsets}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(room - LENGTH.size)
    text += b" " * (-len(text) % 8)
    return LENGTH.pack(len(text)) + text


def size_of(slots: Mapping[str, Slot], metadata: Mapping[str, str]) -> int:
    """Bytes of a file that :func:`write_container` writes.

    Args:
        slots: As :func:`arranged` gives them.
        metadata: Texts by key.
    """
    header = header_of(slots, sealed(metadata, dict.fromkeys(slots, _NO_HASH)))
    return len(header) + max((slot.end for slot in slots.values()), default=0)


def sealed(metadata: Mapping[str, str], hashes: Mapping[str, str]) -> dict[str, str]:
    """Metadata with the hashes that :func:`read_container` verifies.

    Args:
        metadata: Texts by key.
        hashes: By the name of their tensor, as :func:`hash_of` gives them.
    """
    texts = {**metadata, HASHES_KEY: " ".join(hashes[name] for name in sorted(hashes))}
    return {**texts, METADATA_HASH_KEY: _hash_of_texts(texts)}


def read_container(path: Path, progress: Progress = untold) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file written by :func:`write_container`, and verify it.

    Args:
        path: The file.
        progress: Told what is read and what is verified; default: nobody is told.

    Returns:
        Tensors by name on the CPU, and the metadata.

    Raises:
        FileError: When it does not exist, is not a safetensors file, is cut short, or differs from its hashes.
    """
    with OpenFile(path) as file:
        stored, metadata = read_header(file)
        _require_sealed(path, len(stored), metadata)
        tensors = read_tensors(file, stored, part_of(progress, 0, 1, 2))
        file.require_unchanged()
    _verify(path, tensors, metadata[HASHES_KEY].split(), part_of(progress, 1, 2, 2))
    return tensors, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a file written by :func:`write_container`, verified; its tensors are neither read nor verified.

    Args:
        path: The file.

    Raises:
        FileError: When it does not exist, is not such a file, or the metadata differs from its hash.
    """
    with OpenFile(path) as file:
        stored, metadata = read_header(file)
        _require_sealed(path, len(stored), metadata)
        file.require_unchanged()
    return metadata


def hash_of(name: str, tensor: Tensor) -> str:
    """SHA-256 of a tensor's name, dtype, shape and bytes.

    Args:
        name: Its name in the file.
        tensor: Contiguous CPU tensor.

    Returns:
        64 hexadecimal digits.
    """
    state = begun_hash(name, tensor.dtype, tensor.shape)
    state.update(byte_view(tensor))
    return state.hexdigest()


def begun_hash(name: str, dtype: torch.dtype, shape: Sequence[int]) -> hashlib._Hash:
    """What :func:`hash_of` comes to when the tensor's bytes are added.

    Args:
        name: Its name in the file.
        dtype: Its dtype.
        shape: Its shape.
    """
    return hashlib.sha256(f"{name} {dtype} {list(shape)} ".encode())


def _hash_of_texts(texts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(texts), sort_keys=True).encode()).hexdigest()


def _require_sealed(path: Path, tensors: int, metadata: Mapping[str, str]) -> None:
    if HASHES_KEY not in metadata or METADATA_HASH_KEY not in metadata:
        raise FileError(f"{path}: not a monoquant file, it has no hashes; write it with monoquant.save")
    hashed = {key: text for key, text in metadata.items() if key != METADATA_HASH_KEY}
    if metadata[METADATA_HASH_KEY] != _hash_of_texts(hashed):
        raise FileError(f"{path}: damaged, the metadata differs from its hash; get it again")
    hashes = len(metadata[HASHES_KEY].split())
    if hashes != tensors:
        raise FileError(f"{path}: damaged, it holds {tensors} tensors and {hashes} hashes; get it again")


def _verify(path: Path, tensors: Mapping[str, Tensor], hashes: Sequence[str], progress: Progress) -> None:
    damaged, done, total = [], 0, sum(tensor.nbytes for tensor in tensors.values())
    for name, digest in zip(sorted(tensors), hashes, strict=True):
        if hash_of(name, tensors[name]) != digest:
            damaged.append(name)
        done += tensors[name].nbytes
        progress(done, total)
    if damaged:
        raise FileError(f"{path}: damaged, tensors differ from their hashes: {', '.join(damaged)}; get it again")
