"""What ``torch.save`` wrote of a state dict: read as weights only, once it is known to be no larger than it looks."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from monoquant.disk.open_file import OpenFile
from monoquant.errors import FileError, InputError

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_ARCHIVE = b"PK\3\4"
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_RECORD = struct.Struct("<4s6H3L5H2L")
_MOST_DIRECTORY = 100_000_000
"""Bytes of a directory: half a million tensors need fewer."""
_GROWTH = 4
"""Memory that tensors may take beside their file: two views of one memory, such as a matrix and its transpose, take
twice as much."""
_SLACK = 1 << 20
_TOO_LARGE = 0xFFFFFFFF


def read_torch_file(file: OpenFile) -> Mapping[str, Any]:
    """Read a state dict, without running any code that the file may hold.

    Args:
        file: The file.

    Returns:
        What it maps names to, on the CPU.

    Raises:
        FileError: When it cannot be read, holds more than weights, or would grow beyond its size.
        InputError: When it holds no mapping.
    """
    if file.read(0, len(_ARCHIVE)) == _ARCHIVE:  # as torch.load tells it
        _require_stored(file)
    try:
        file.file.seek(0)
        content: Any = torch.load(file.file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can make the reader stumble over anything
        reason = _ANSI.sub("", str(error)).split("\n")[0] or type(error).__name__
        raise FileError(
            f"{file.path}: cannot be read as weights only ({reason}); save model.state_dict() rather than the model"
        ) from error
    if not isinstance(content, Mapping):
        raise InputError(f"{file.path} holds a {type(content).__name__}: give a file with a state dict")
    _require_size(file, _tensors_in(content))
    return content


def require_no_code(file: OpenFile) -> None:
    """Refuse a file that names more than weights, without reading those; a pickle of old is not looked into.

    Args:
        file: The file.

    Raises:
        FileError: When it is damaged, or names functions or classes that weights do without.
    """
    if file.read(0, len(_ARCHIVE)) != _ARCHIVE:
        return
    _require_stored(file)
    try:
        file.file.seek(0)
        named = torch.serialization.get_unsafe_globals_in_checkpoint(file.file)
    except Exception as error:  # as above
        raise FileError(f"{file.path}: cannot be read as weights only ({error}); get it again") from error
    if named:
        raise FileError(
            f"{file.path}: cannot be read as weights only (it names {', '.join(sorted(named))}); save "
            "model.state_dict() rather than the model"
        )


@attrs.frozen
class _Directory:
    start: int
    size: int
    records: int


def _require_stored(file: OpenFile) -> None:
    """Refuse archives that are more than what lies in them: compressed records, or records that share bytes."""
    try:
        directory = _directory(file)
        if directory.size > _MOST_DIRECTORY:
            raise ValueError(f"its directory has {directory.size} bytes")
        sizes = list(_record_sizes(file.read(directory.start, directory.size), directory))
    except (ValueError, struct.error) as error:
        raise FileError(f"{file.path}: not a sound zip archive ({error}); get it again") from error
    if sum(sizes) > file.size:
        raise FileError(
            f"{file.path}: refused, its records claim {sum(sizes)} bytes and the file has {file.size}; get it from "
            "somebody else"
        )


def _directory(file: OpenFile) -> _Directory:
    place = file.size - _END.size
    sign, *_, records, size, start, comment = _END.unpack(file.read(max(place, 0), _END.size))
    if sign != b"PK\5\6" or comment:
        raise ValueError("it does not end as torch.save ends files")
    found = _Directory(start, size, records)
    locator = file.read(max(place - _LOCATOR.size, 0), _LOCATOR.size)
    if locator.startswith(b"PK\6\7"):
        found = _directory_64(file, _LOCATOR.unpack(locator)[2], found)
    if found.start + found.size > place:
        raise ValueError("its directory lies beyond its end")
    return found


def _directory_64(file: OpenFile, place: int, small: _Directory) -> _Directory:
    sign, *_, records, size, start = _END_64.unpack(file.read(min(place, file.size), _END_64.size))
    if sign != b"PK\6\6":
        raise ValueError("its large directory is not where it should be")
    pairs = ((small.records, records, 0xFFFF), (small.size, size, _TOO_LARGE), (small.start, start, _TOO_LARGE))
    if any(one not in (other, most) for one, other, most in pairs):
        raise ValueError("its two directories differ")
    return _Directory(start, size, records)


def _record_sizes(content: bytes, directory: _Directory) -> Iterator[int]:
    place = 0
    for _ in range(directory.records):
        fields = _RECORD.unpack_from(content, place)
        sign, _, _, flags, method, _, _, _, packed, size, name, extra, comment, *_ = fields
        if sign != b"PK\1\2":
            raise ValueError("its directory is cut short")
        if method != 0 or flags & 1:
            raise ValueError("its records are compressed or encrypted: torch.save writes them as they are")
        more = place + _RECORD.size + name
        yield max(_full_sizes(packed, size, content[more : more + extra]))
        place = more + extra + comment
    if place != len(content):
        raise ValueError("its directory holds more than its records")


def _full_sizes(packed: int, size: int, extra: bytes) -> list[int]:
    """Sizes of a record, which lie in a field of their own where they need eight bytes."""
    if _TOO_LARGE not in (packed, size):
        return [packed, size]
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            count = (packed, size).count(_TOO_LARGE)
            return list(struct.unpack_from(f"<{count}Q", extra, 4))
        extra = extra[4 + length :]
    raise ValueError("it does not say how large its records are")


def _tensors_in(content: Mapping[Any, Any]) -> Iterator[Tensor]:
    """Tensors of a mapping, and of mappings in it, as checkpoints hold a state dict among other things."""
    for value in content.values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from (inner for inner in value.values() if isinstance(inner, Tensor))


def _require_size(file: OpenFile, tensors: Iterable[Tensor]) -> None:
    """Refuse tensors that repeat few bytes often: they would be copied to their full size."""
    dense = [tensor for tensor in tensors if tensor.layout == torch.strided and not tensor.is_meta]
    sizes = {
        (one.untyped_storage()._cdata, one.storage_offset(), one.shape, one.stride(), one.dtype): one.nbytes
        for one in dense
    }
    most = _GROWTH * file.size + _SLACK
    if sum(sizes.values()) > most:
        raise FileError(
            f"{file.path}: refused, its tensors would take {sum(sizes.values())} bytes and the file has {file.size}; "
            "save contiguous tensors"
        )
