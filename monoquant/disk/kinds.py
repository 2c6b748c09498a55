"""What kind of file it is, by how it begins."""

from __future__ import annotations

import enum
from pathlib import Path

from monoquant.disk.open_file import OpenFile

_BEGINNINGS = {b"PK\x03\x04": "ZIP", b"\x93NUMPY": "NPY", b"GGUF": "GGUF", b"\x80": "PICKLE"}


class FileKind(enum.Enum):
    """Kinds that are told apart; the value is what errors call them."""

    SAFETENSORS = "a safetensors file"
    ZIP = "a zip archive, as torch.save writes"
    PICKLE = "a pickle"
    JSON = "a JSON text"
    NPY = "a NumPy array"
    GGUF = "a GGUF file"
    EMPTY = "an empty file"
    OTHER = "a file of another kind"


def kind_of(path: Path) -> FileKind:
    """What kind of file it is; what it holds decides, not its name.

    Args:
        path: The file.

    Raises:
        FileError: When it does not exist, is no regular file, or cannot be read.
    """
    with OpenFile(path) as file:
        start = file.read(0, 64)
    if not start:
        return FileKind.EMPTY
    if start[7:9] == b"\0{":  # no length of a header fills all eight bytes, and no text holds a zero
        return FileKind.SAFETENSORS
    for beginning, name in _BEGINNINGS.items():
        if start.startswith(beginning):
            return FileKind[name]
    is_object = start.lstrip().startswith(b"{") and b"\0" not in start
    return FileKind.JSON if is_object else FileKind.OTHER
