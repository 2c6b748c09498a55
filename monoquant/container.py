"""One safetensors file with hashed tensors, written all or nothing."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from monoquant.errors import FileError
from monoquant.numerics.memory import byte_view

HASHES_KEY = "tensors.sha256"
METADATA_HASH_KEY = "metadata.sha256"
_TEMPORARY_SUFFIX = ".monoquant-tmp"


def write_container(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata to one safetensors file, with hashes of both in the metadata.

    There is a SHA-256 per tensor, in the order of the tensors' names, and one over the other metadata. The file appears
    complete or not at all: it is written to a temporary folder beside the target, flushed to disk and renamed.

    Args:
        path: Target; replaced if it exists, kept as it was if anything fails.
        tensors: Tensors by name, on any device; none may share memory with another.
        metadata: Texts by key.

    Raises:
        FileError: When the target's folder does not exist or cannot be written.
    """
    on_disk = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    hashes = {name: hash_of(name, tensor) for name, tensor in on_disk.items()}
    texts = {**metadata, HASHES_KEY: " ".join(hashes[name] for name in sorted(hashes))}
    texts[METADATA_HASH_KEY] = _hash_of_texts(texts)
    with _replacement(path) as temporary:
        save_file(on_disk, temporary, metadata=texts)


def read_container(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file written by :func:`write_container`, and verify it.

    Args:
        path: The file.

    Returns:
        Tensors by name on the CPU, and the metadata.

    Raises:
        FileError: When it does not exist, is not a safetensors file, is cut short, or differs from its hashes.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - a safe_open is no mapping
    except FileNotFoundError as error:
        raise FileError(f"{path}: no such file") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{path}: not a complete safetensors file ({error}); get it again") from error
    _verify(path, tensors, metadata)
    return tensors, metadata


def hash_of(name: str, tensor: Tensor) -> str:
    """SHA-256 of a tensor's name, dtype, shape and bytes.

    Args:
        name: Its name in the file.
        tensor: Contiguous CPU tensor.

    Returns:
        64 hexadecimal digits.
    """
    state = hashlib.sha256(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
    state.update(byte_view(tensor))
    return state.hexdigest()


def _hash_of_texts(texts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(texts), sort_keys=True).encode()).hexdigest()


def _verify(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    if HASHES_KEY not in metadata or METADATA_HASH_KEY not in metadata:
        raise FileError(f"{path}: not a monoquant file, it has no hashes; write it with monoquant.save")
    hashed = {key: text for key, text in metadata.items() if key != METADATA_HASH_KEY}
    if metadata[METADATA_HASH_KEY] != _hash_of_texts(hashed):
        raise FileError(f"{path}: damaged, the metadata differs from its hash; get it again")
    hashes = metadata[HASHES_KEY].split()
    if len(hashes) != len(tensors):
        raise FileError(f"{path}: damaged, it holds {len(tensors)} tensors and {len(hashes)} hashes; get it again")
    damaged = [
        name for name, digest in zip(sorted(tensors), hashes, strict=True) if hash_of(name, tensors[name]) != digest
    ]
    if damaged:
        raise FileError(f"{path}: damaged, tensors differ from their hashes: {', '.join(damaged)}; get it again")


@contextmanager
def _replacement(path: Path) -> Iterator[Path]:
    folder = path.parent
    if not folder.is_dir():
        raise FileError(f"{path}: the folder {folder} does not exist; create it first")
    if path.is_dir():
        raise FileError(f"{path}: is a folder; give a file name")
    try:
        _remove_litter(path)
        # A folder of its own, because the safetensors writer makes temporary files beside its target.
        prefix = f".{path.name}.{os.getpid()}."
        with tempfile.TemporaryDirectory(prefix=prefix, suffix=_TEMPORARY_SUFFIX, dir=folder) as scratch:
            temporary = Path(scratch, path.name)
            yield temporary
            _flush(temporary, _mode_by_umask(Path(scratch, "mode")))
            temporary.replace(path)
        _flush_folder(folder)
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error}); the file is as it was before") from error


def _mode_by_umask(probe: Path) -> int:
    # The umask can only be read by setting it, which would change the whole process: let a new file tell.
    probe.touch()
    return probe.stat().st_mode & 0o777


def _flush(file: Path, mode: int) -> None:
    file.chmod(mode)
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    for scratch in path.parent.glob(f".{glob.escape(path.name)}.*{_TEMPORARY_SUFFIX}"):
        owner = scratch.name.removeprefix(f".{path.name}.").partition(".")[0]
        if owner.isdigit() and not _is_alive(int(owner)):
            shutil.rmtree(scratch, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
