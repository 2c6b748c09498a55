"""Whole tensors of a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from monoquant.disk.header import Stored
from monoquant.disk.open_file import OpenFile
from monoquant.errors import FileError
from monoquant.progress import Progress, untold


def read_tensors(file: OpenFile, stored: Mapping[str, Stored], progress: Progress = untold) -> dict[str, Tensor]:
    """Read tensors into memory of their own.

    Args:
        file: The file.
        stored: Where each is, as :func:`read_header` gives it.
        progress: Told bytes; default: nobody is told.

    Returns:
        By name, in the order of names, on the CPU.

    Raises:
        FileError: When they cannot be read, or memory does not hold them.
    """
    found, done, total = {}, 0, sum(one.size for one in stored.values())
    for name, one in sorted(stored.items()):
        found[name] = _room(file, name, one)
        file.fill(one.start, found[name])
        done += one.size
        progress(done, total)
    return found


def _room(file: OpenFile, name: str, stored: Stored) -> Tensor:
    try:
        return torch.empty(stored.shape, dtype=stored.dtype, device="cpu")
    except (RuntimeError, MemoryError) as error:
        raise FileError(
            f"{file.path}: tensor {name!r} has {stored.size} bytes, for which there is no memory; use a larger machine"
            ", or quantize_file, which reads blocks"
        ) from error
