"""JSON as it is meant: each key once, numbers that are numbers, and no more of it than a reader can hold."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from monoquant.disk.open_file import read_whole
from monoquant.errors import FileError

MOST_BYTES = 100_000_000
"""Of a text; the safetensors library has the same limit for headers."""
_MOST_PARTS = 10_000_000
"""Of a text, values and keys, which take 100 bytes each in memory; half a million tensors with a report have fewer."""
_MARKS = ",:[{"


def parse_json(text: bytes | str) -> Any:
    """What a JSON text says.

    Args:
        text: UTF-8.

    Raises:
        ValueError: When it is no JSON, says something twice, holds a number that is none, or is too large or deep.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"{len(text)} characters of it, where at most {MOST_BYTES} make sense")
    try:
        decoded = text if isinstance(text, str) else text.decode()
        parts = sum(map(decoded.count, _MARKS))
        if parts > _MOST_PARTS:
            raise ValueError(f"{parts} values in it, where at most {_MOST_PARTS} make sense")
        return json.loads(
            decoded, object_pairs_hook=_once, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except MemoryError:
        raise ValueError("there is no memory for it") from None


def read_json(path: Path, what: str, most: int = MOST_BYTES) -> Any:
    """What a JSON file says.

    Args:
        path: The file.
        what: What it should be, for errors, such as ``"an index"``.
        most: Bytes that such a file may have.

    Raises:
        FileError: When it cannot be read, or is no such JSON as :func:`parse_json` takes.
    """
    try:
        return parse_json(read_whole(path, most))
    except ValueError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path}: not {what} ({error}); get it again") from error


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} appears twice")
        found[name] = value
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number that fits")
    return number


def _whole(text: str) -> int:
    number = int(text)
    if abs(number) > sys.float_info.max:  # sizes are divided, and shares told
        raise ValueError(f"a number of {len(text)} digits is none that fits")
    return number
