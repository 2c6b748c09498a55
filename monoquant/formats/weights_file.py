"""Files that hold nothing but float weights: safetensors, and what ``torch.save`` wrote of a state dict."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from monoquant.errors import FileError, InputError

_PICKLED = (".pt", ".pth", ".bin", ".ckpt")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def read_weights(path: str | os.PathLike[str]) -> Mapping[str, Tensor]:
    """Read a state dict, without running any code that the file may hold.

    Args:
        path: A ``.safetensors`` file, or a ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` one written by ``torch.save``.

    Returns:
        Tensors by name on the CPU.

    Raises:
        FileError: When the file does not exist, cannot be read, or holds more than tensors.
        InputError: When it holds no state dict.
    """
    file = Path(path)
    if not file.is_file():
        raise FileError(f"{file}: no such file")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    if file.suffix in _PICKLED:
        return _read_pickled(file)
    raise FileError(f"{file}: give a .safetensors file, or one of {', '.join(_PICKLED)} that torch.save wrote")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") == "monoquant":
                raise FileError(f"{path}: written by monoquant.save, so it is quantized already; give it to load()")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a safe_open is no mapping
    except FileError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{path}: not a complete safetensors file ({error}); get it again") from error


def _read_pickled(path: Path) -> Mapping[str, Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can make the reader stumble over anything
        reason = _ANSI.sub("", str(error)).split("\n")[0] or type(error).__name__
        raise FileError(
            f"{path}: cannot be read as weights only ({reason}); save model.state_dict() rather than the model"
        ) from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}: give a file with a state dict")
    return content
