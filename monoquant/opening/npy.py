"""NumPy's files of one array, read without NumPy, and without the pickles that they may hold."""

from __future__ import annotations

import math
import re
import sys

import torch
from torch import Tensor

from monoquant.disk.open_file import OpenFile
from monoquant.errors import FileError

_MAGIC = b"\x93NUMPY"
_DTYPES = {
    "<f8": torch.float64,
    "<f4": torch.float32,
    "<f2": torch.float16,
    "<i8": torch.int64,
    "<i4": torch.int32,
    "<i2": torch.int16,
    "|i1": torch.int8,
    "|u1": torch.uint8,
    "|b1": torch.bool,
}
_HEADER = re.compile(
    r"\{'descr': '([^']{1,20})', 'fortran_order': (True|False), 'shape': \(((?:\d{1,19}, ?)*(?:\d{1,19})?)\), ?\} *\n"
)
_LONGEST = 10_000
_MOST_AXES = 32


def read_npy(file: OpenFile) -> Tensor:
    """The array of a ``.npy`` file, in C order.

    Args:
        file: The file.

    Raises:
        FileError: When it is damaged, or its values are not numbers of a little-endian kind that torch has.
    """
    start, text = _header(file)
    match = _HEADER.fullmatch(text)
    if match is None:
        raise FileError(f"{file.path}: not a .npy file of one array, its header says {text[:80]!r}; write it again")
    kind, fortran, sizes = match.groups()
    dtype = _DTYPES.get(kind)
    if dtype is None or sys.byteorder != "little":
        raise FileError(f"{file.path}: holds values of kind {kind!r}; convert them to one of {', '.join(_DTYPES)}")
    shape = [int(size) for size in sizes.replace(" ", "").split(",") if size]
    needed = math.prod(shape) * dtype.itemsize
    if len(shape) > _MOST_AXES or any(size >= 1 << 62 for size in shape) or needed != file.size - start:
        held = file.size - start
        raise FileError(
            f"{file.path}: an array of shape {tuple(shape)} has {needed} bytes and the file {held}; get it again"
        )
    stored = torch.empty(shape[::-1] if fortran == "True" else shape, dtype=dtype, device="cpu")
    file.fill(start, stored)
    return stored.permute(*reversed(range(len(shape)))).contiguous() if fortran == "True" else stored


def _header(file: OpenFile) -> tuple[int, str]:
    begin = file.read(0, 12)
    major = begin[6] if begin.startswith(_MAGIC) and len(begin) == 12 else 0
    if major not in (1, 2, 3):
        raise FileError(f"{file.path}: not a .npy file; get it again")
    first = 10 if major == 1 else 12
    length = int.from_bytes(begin[8:first], "little")
    if length > _LONGEST:
        raise FileError(f"{file.path}: not a .npy file of one array, its header has {length} bytes; write it again")
    return first + length, file.read(first, length).decode("latin-1")
