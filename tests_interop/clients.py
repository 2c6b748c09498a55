"""Other programs that read what monoquant wrote, in processes that cannot import it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_WITHOUT_MONOQUANT = """
import importlib.abc, sys

class Forbidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "monoquant":
            raise ImportError("monoquant is not for this process")

sys.meta_path.insert(0, Forbidden())
"""
_READER = """
import torch
import transformers

folder, kind, place, dequantize, gguf = sys.argv[1:]
options = {"gguf_file": gguf} if gguf else {}
if dequantize == "True":
    options["quantization_config"] = transformers.CompressedTensorsConfig(dequantize=True)
model = getattr(transformers, kind).from_pretrained(folder, **options).eval()
inputs = torch.load(place, weights_only=True)
with torch.no_grad():
    answer = (model(**inputs) if isinstance(inputs, dict) else model(inputs))[0]
torch.save({"answer": answer, "weights": model.state_dict()}, place)
"""


class ClientError(Exception):
    """What a client said when it failed."""


def run(folder: Path, kind: str, inputs: Any, *, dequantize: bool = False, gguf: str = "") -> dict[str, Any]:
    """Load a folder by ``from_pretrained`` and answer.

    Args:
        folder: What was written.
        kind: Name of the class in transformers.
        inputs: A tensor, or keyword arguments.
        dequantize: Whether weights are to become floats while they are loaded, not in the first forward.
        gguf: Name of a GGUF file in the folder that is to be read; default none.

    Returns:
        ``answer``, and ``weights``: its state dict afterwards.
    """
    return ask(_READER, folder, inputs, kind, dequantize=dequantize, gguf=gguf)


def ask(script: str, folder: Path, inputs: Any, kind: str, **options: object) -> dict[str, Any]:
    """Let a script read a folder in a process of its own, where monoquant cannot be imported.

    Args:
        script: Python; its arguments are the folder, ``kind``, the file that holds the inputs, where it puts its
            answer, and the options.
        folder: What was written.
        inputs: A tensor, or keyword arguments.
        kind: Name of the class in transformers.
        options: Further arguments, as texts.
    """
    place = folder.parent / f"{folder.name}.answer"
    torch.save(inputs, place)
    arguments = [str(folder), kind, str(place), *map(str, options.values())]
    code = _WITHOUT_MONOQUANT + script + 'assert "monoquant" not in sys.modules'
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise ClientError(done.stderr)
    found: dict[str, Any] = torch.load(place, weights_only=True)
    return found


def difference(one: Tensor, other: Tensor) -> float:
    """The largest one."""
    assert one.dtype == other.dtype
    return (one.double() - other.double()).abs().max().item()
