"""What a safetensors file says it holds, believed only where it fits the file."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, TypeGuard

import attrs
import torch

from monoquant.disk.open_file import OpenFile
from monoquant.disk.strict_json import MOST_BYTES, parse_json
from monoquant.errors import FileError

DTYPE_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
METADATA = "__metadata__"
LENGTH = struct.Struct("<Q")
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


def read_header(file: OpenFile) -> tuple[dict[str, Stored], dict[str, str]]:
    """Read the header of a safetensors file.

    Args:
        file: The file.

    Returns:
        Tensors by name, and the texts that the file holds besides.

    Raises:
        FileError: When it is no safetensors file, is cut short, holds tensors of unknown dtypes, or contradicts itself.
    """
    path, length = file.path, _length(file)
    try:
        found = parse_json(file.read(LENGTH.size, length))
        if not isinstance(found, dict):
            raise ValueError("it is no object")
        texts = _texts(found.pop(METADATA, {}))
        entries = {name: _Entry.of(name, entry) for name, entry in found.items()}
    except ValueError as error:
        raise FileError(f"{path}: not a safetensors file, its header cannot be read ({error}); get it again") from error
    _require_known(path, entries)
    first = LENGTH.size + length
    _require_places(path, entries, file.size - first)
    return {name: entry.stored(path, first) for name, entry in entries.items()}, texts


def is_sound_name(name: str) -> bool:
    """Whether a name can be shown: letters that take over a terminal, or are none, are refused in files.

    Args:
        name: Of a tensor.
    """
    return name.isprintable()


def _length(file: OpenFile) -> int:
    path, size, start = file.path, file.size, file.read(0, LENGTH.size)
    if len(start) < LENGTH.size:
        raise FileError(f"{path}: not a safetensors file, it has {size} bytes; get it again")
    length: int = LENGTH.unpack(start)[0]
    if length > MOST_BYTES:
        raise FileError(f"{path}: not a safetensors file, its header would have {length} bytes; get it again")
    if length > size - LENGTH.size:
        raise FileError(f"{path}: cut short, its header alone has {length} bytes and the file {size}; get it again")
    return length


def _texts(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise ValueError(f"its {METADATA} is no object of texts")
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
        if not is_sound_name(name):
            raise ValueError(f"the name {name!r} cannot be printed")
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
