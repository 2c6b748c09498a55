"""Files and folders that hold nothing but float weights: safetensors, and what ``torch.save`` wrote of a state dict."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from monoquant.container import HASHES_KEY, METADATA_HASH_KEY, read_container
from monoquant.disk.header import read_header
from monoquant.disk.kinds import FileKind, kind_of
from monoquant.disk.open_file import OpenFile
from monoquant.disk.shards import PICKLED, SAFETENSORS, Family, agreed, shards_of
from monoquant.disk.tensors import read_tensors
from monoquant.errors import FileError
from monoquant.formats.torch_file import read_torch_file
from monoquant.progress import Progress, part_of, untold

TORCH_KINDS = (FileKind.ZIP, FileKind.PICKLE)


def read_weights(path: str | os.PathLike[str], progress: Progress = untold) -> Mapping[str, Tensor]:
    """Read a state dict, without running any code that the file may hold.

    Args:
        path: A safetensors file, or one that ``torch.save`` wrote; what it holds decides, not its name. Or the index of
            several, or a folder of them.
        progress: Told how much is read; default: nobody is told.

    Returns:
        Tensors by name on the CPU.

    Raises:
        FileError: When files are missing or damaged, differ from hashes that they bring, or hold more than tensors.
        InputError: When one holds no state dict.
    """
    given = Path(path)
    family = family_in(given) if given.is_dir() else SAFETENSORS
    shards = shards_of(given, family)
    found = {}
    for number, shard in enumerate(shards):
        found[shard] = _read(shard, part_of(progress, number, number + 1, len(shards)))
        progress(number + 1, len(shards))
    return agreed(given, shards, found)


def family_in(folder: Path) -> Family:
    """Which files of a folder hold its weights.

    Args:
        folder: Where to look.
    """
    return PICKLED if PICKLED.is_in(folder) and not SAFETENSORS.is_in(folder) else SAFETENSORS


def _read(path: Path, progress: Progress) -> Mapping[str, Any]:
    kind = kind_of(path)
    with OpenFile(path) as file:
        if kind in TORCH_KINDS:
            found = read_torch_file(file)
        elif kind is FileKind.SAFETENSORS:
            found = _read_safetensors(file, progress)
        else:
            known = "give a .safetensors file, or one that torch.save wrote"
            raise FileError(f"{path}: is {kind.value}; {known}")
        file.require_unchanged()
        return found


def _read_safetensors(file: OpenFile, progress: Progress) -> dict[str, Tensor]:
    stored, texts = read_header(file)
    if texts.get("format") == "monoquant":
        raise FileError(f"{file.path}: written by monoquant.save, so it is quantized already; give it to load()")
    if HASHES_KEY in texts or METADATA_HASH_KEY in texts:
        return read_container(file.path, progress)[0]
    return read_tensors(file, stored, progress)
