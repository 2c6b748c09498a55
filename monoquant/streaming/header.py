"""What a safetensors file says it holds, believed only where it fits the file."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import attrs
import torch

from monoquant.container import DTYPE_CODES
from monoquant.errors import FileError

_LENGTH = struct.Struct("<Q")
_LONGEST = 100_000_000
"""Bytes of a header; the safetensors library has the same limit."""
_LARGEST = (1 << 63) - 1
"""More fits no size of a tensor."""
_DTYPES = {code: dtype for dtype, code in DTYPE_CODES.items()}


@attrs.frozen
class Stored:
    """A tensor in a file.

    Args:
        path: The file.
        dtype: Its dtype.
        shape: Its shape.
        start: Where its bytes begin in the file.
        size: How many there are.
    """

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


def read_header(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Stored], dict[str, str]]:
    """Read the header of a safetensors file.

    Args:
        path: Its path, for errors.
        file: The file, open.
        size: Its bytes.

    Returns:
        Tensors by name, and the texts that the file holds besides.

    Raises:
        FileError: When it is no safetensors file, is cut short, holds tensors of unknown dtypes, or contradicts itself.
    """
    length = _length(path, file, size)
    try:
        found = json.loads(file.read(length), object_pairs_hook=_without_repetition)
        if not isinstance(found, dict):
            raise ValueError("it is no object")
        texts = found.pop("__metadata__", {})
        entries = {name: _Entry.of(name, entry) for name, entry in found.items()}
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: its header cannot be read ({error}); get it again") from error
    _require_known(path, entries)
    _require_places(path, entries, size - _LENGTH.size - length)
    first = _LENGTH.size + length
    return {name: entry.stored(path, first) for name, entry in entries.items()}, texts


def _length(path: Path, file: BinaryIO, size: int) -> int:
    start = file.read(_LENGTH.size)
    if len(start) < _LENGTH.size:
        raise FileError(f"{path}: not a safetensors file, it has {size} bytes; get it again")
    length: int = _LENGTH.unpack(start)[0]
    if length > _LONGEST:
        raise FileError(f"{path}: not a safetensors file, its header would have {length} bytes; get it again")
    if length > size - _LENGTH.size:
        raise FileError(f"{path}: cut short, its header alone has {length} bytes and the file {size}; get it again")
    return length


def _without_repetition(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} appears twice")
        found[name] = value
    return found


@attrs.frozen
class _Entry:
    """What a header says of one tensor."""

    code: str
    shape: tuple[int, ...]
    start: int
    end: int

    @classmethod
    def of(cls, name: str, entry: Any) -> _Entry:
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ValueError(f"{name!r} is no text")
        if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
            raise ValueError(f"{name!r} has no dtype")
        shape, offsets = entry.get("shape"), entry.get("data_offsets")
        if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
            raise ValueError(f"{name!r} has shape {shape!r} and data_offsets {offsets!r}")
        if math.prod(count or 1 for count in shape) > _LARGEST // 8:  # torch counts on beyond a zero
            raise ValueError(f"{name!r} has shape {shape!r}, which no tensor can have")
        start, end = offsets
        return cls(entry["dtype"], tuple(shape), start, end)

    def stored(self, path: Path, first: int) -> Stored:
        return Stored(path, _DTYPES[self.code], self.shape, first + self.start, self.end - self.start)


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(count) is int and 0 <= count <= _LARGEST for count in value)


def _require_known(path: Path, entries: dict[str, _Entry]) -> None:
    unknown = [f"{name} ({entry.code})" for name, entry in entries.items() if entry.code not in _DTYPES]
    if unknown:
        known = ", ".join(_DTYPES)
        raise FileError(f"{path}: tensors of dtypes that are not supported: {', '.join(unknown)}; convert to {known}")


def _require_places(path: Path, entries: dict[str, _Entry], available: int) -> None:
    wrong = [
        name
        for name, entry in entries.items()
        if entry.end - entry.start != math.prod(entry.shape) * _DTYPES[entry.code].itemsize
    ]
    if wrong:
        raise FileError(f"{path}: tensors whose bytes do not fit their shapes: {', '.join(wrong)}; get it again")
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            fault = "overlaps the one before it" if entry.start < end else "leaves a gap before it"
            raise FileError(f"{path}: not a sound safetensors file, tensor {name!r} {fault}; get it again")
        end = entry.end
    if end > available:
        raise FileError(f"{path}: cut short, {end - available} of {end} bytes of tensors are missing; get it again")
    if end < available:
        raise FileError(f"{path}: {available - end} bytes too long for the tensors in it; get it again")
