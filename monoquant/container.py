"""One safetensors file with hashed tensors, written all or nothing."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import attrs
import torch
from torch import Tensor

from monoquant.disk.header import DTYPE_CODES, LENGTH, METADATA, is_sound_name, read_header
from monoquant.disk.open_file import OpenFile
from monoquant.disk.tensors import read_tensors
from monoquant.errors import FileError, MonoquantError
from monoquant.numerics.memory import byte_view

HASHES_KEY = "tensors.sha256"
METADATA_HASH_KEY = "metadata.sha256"
_TEMPORARY_SUFFIX = ".monoquant-tmp"


def write_container(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata to one safetensors file, with hashes of both in the metadata.

    There is a SHA-256 per tensor, in the order of the tensors' names, and one over the other metadata. The file appears
    complete or not at all: it is written to a temporary file beside the target, flushed to disk and renamed.

    Args:
        path: Target; replaced if it exists, kept as it was if anything fails.
        tensors: Tensors by name, on any device; none may share memory with another.
        metadata: Texts by key.

    Raises:
        FileError: When the target's folder does not exist or cannot be written.
    """
    refuse_unknown_kinds(tensors)
    on_disk = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    slots = arranged(on_disk)
    header = header_of(slots, sealed(metadata, {name: hash_of(name, tensor) for name, tensor in on_disk.items()}))
    with replacement(path) as file:
        file.write(header)
        for name in slots:
            file.write(byte_view(on_disk[name]))


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


def sealed(metadata: Mapping[str, str], hashes: Mapping[str, str]) -> dict[str, str]:
    """Metadata with the hashes that :func:`read_container` verifies.

    Args:
        metadata: Texts by key.
        hashes: By the name of their tensor, as :func:`hash_of` gives them.
    """
    texts = {**metadata, HASHES_KEY: " ".join(hashes[name] for name in sorted(hashes))}
    return {**texts, METADATA_HASH_KEY: _hash_of_texts(texts)}


def read_container(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file written by :func:`write_container`, and verify it.

    Args:
        path: The file.

    Returns:
        Tensors by name on the CPU, and the metadata.

    Raises:
        FileError: When it does not exist, is not a safetensors file, is cut short, or differs from its hashes.
    """
    with OpenFile(path) as file:
        stored, metadata = read_header(file)
        _require_sealed(path, len(stored), metadata)
        tensors = read_tensors(file, stored)
        file.require_unchanged()
    _verify(path, tensors, metadata[HASHES_KEY].split())
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


def _verify(path: Path, tensors: Mapping[str, Tensor], hashes: Sequence[str]) -> None:
    damaged = [
        name for name, digest in zip(sorted(tensors), hashes, strict=True) if hash_of(name, tensors[name]) != digest
    ]
    if damaged:
        raise FileError(f"{path}: damaged, tensors differ from their hashes: {', '.join(damaged)}; get it again")


@contextmanager
def replacement(path: Path) -> Iterator[BinaryIO]:
    """A file, to be written and read, that takes another's place when all is in it, and leaves no trace otherwise.

    Args:
        path: Target; replaced if it exists, kept as it was if anything fails.

    Raises:
        FileError: When the target's folder does not exist or cannot be written.
    """
    folder = path.parent
    problem = _problem_of(path)
    if problem:
        raise FileError(f"{path}: {problem}")
    temporary = _temporary(path)
    try:
        _remove_litter(path)
        with temporary.open("x+b") as file:
            yield file
            _flush(file)
        temporary.replace(path)
        _flush_folder(folder)
    except MonoquantError:
        raise
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be written ({error}); the file is as it was before") from error
    finally:
        with suppress(OSError, ValueError):
            temporary.unlink()


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A place to write a file or a folder to, of the same name, whose neighbours come along when all is written.

    Args:
        path: Target; replaced if it exists, kept as it was if anything fails while it is written.

    Raises:
        FileError: When the target's folder does not exist or cannot be written.
    """
    problem = _problem_of_folder(path)
    if problem:
        raise FileError(f"{path}: {problem}")
    try:
        _remove_litter(path)
        stage = _temporary(path)
        stage.mkdir()
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be written ({error}); it is as it was before") from error
    try:
        yield stage / path.name
        _put_into_place(stage, path)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _put_into_place(stage: Path, path: Path) -> None:
    # The target comes last, so that what it refers to is there.
    written = sorted(stage.iterdir(), key=lambda one: one.name == path.name)
    old = stage / f"{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}"
    old.mkdir()
    try:
        for one in written:
            _take_place(one, path.parent / one.name, old / one.name)
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error})") from error
    _flush_folder(path.parent)


def _take_place(new: Path, target: Path, kept: Path) -> None:
    is_in_the_way = target.is_dir() or (target.exists() and new.is_dir())  # files replace files only
    if is_in_the_way:
        target.replace(kept)
    try:
        new.replace(target)
    except OSError:
        if is_in_the_way:
            kept.replace(target)
        raise


def _temporary(path: Path) -> Path:
    return path.parent / f".{_stem(path)}.{os.getpid()}.{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}"


def _problem_of(path: Path) -> str:
    try:
        return _problem_of_folder(path) or ("is a folder; give a file name" if path.is_dir() else "")
    except (OSError, ValueError) as error:
        return f"cannot be written ({error}); give another name"


def _problem_of_folder(path: Path) -> str:
    exists = path.parent.is_dir()
    return "" if exists else f"the folder {path.parent} does not exist; create it first"


def _stem(path: Path) -> str:
    return path.name[:50]  # the temporary name is longer than the target's, and file systems limit both


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # Windows cannot open folders; its renames are journalled.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_litter(path: Path) -> None:
    """Remove what killed writers of the same target left behind."""
    if os.name == "nt":
        return  # No harmless way to ask whether a process lives.
    for temporary in path.parent.glob(f".{glob.escape(_stem(path))}.*{_TEMPORARY_SUFFIX}"):
        owner = temporary.name.removeprefix(f".{_stem(path)}.").partition(".")[0]
        if owner.isdigit() and not _is_alive(int(owner)):
            shutil.rmtree(temporary, ignore_errors=True) if temporary.is_dir() else temporary.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
