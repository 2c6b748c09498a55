"""Read a folder for other tools again, and compare its tensors with the model that it was written from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from monoquant.errors import FileError
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.modules.packed_weight import same_bits

LayerCheck = Callable[[str, list[Tensor], PackedMatrix], Iterator[str]]
"""Compares the tensors that were read for a layer, in the order of their parts, with its weight."""


def check_tensors(
    folder: Path,
    floats: Mapping[str, Tensor],
    packed: Mapping[str, PackedMatrix],
    parts: tuple[str, ...],
    compare: LayerCheck,
) -> Iterator[str]:
    """What is wrong with the tensors of a folder.

    Args:
        folder: What was written.
        floats: What it must hold beside codes, by name.
        packed: Weights in codes by layer.
        parts: Names of the tensors that hold one of them.
        compare: Says what is wrong with them; all of them are there.
    """
    with ExitStack() as opened:
        files = [opened.enter_context(safe_open(path, framework="pt")) for path in sorted(folder.glob("*.safetensors"))]
        places = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - a safe_open is no mapping
        expected = {*floats, *(f"{name}.{part}" for name in packed for part in parts)}
        wrong = [
            *(f"tensor {name} is missing" for name in sorted(expected - places.keys())),
            *(f"tensor {name} is none of the model" for name in sorted(places.keys() - expected)),
        ]
        yield from wrong
        if wrong:
            return
        yield from _of_floats(places, floats)
        for name, matrix in packed.items():
            found = [places[f"{name}.{part}"].get_tensor(f"{name}.{part}") for part in parts]
            yield from compare(name, found, matrix)


def _of_floats(places: Mapping[str, Any], floats: Mapping[str, Tensor]) -> Iterator[str]:
    for name, tensor in floats.items():
        found, own = places[name].get_tensor(name), tensor.detach().cpu()
        if found.dtype != own.dtype or found.shape != own.shape or not same_bits(found, own):
            yield f"tensor {name} has other values than the model's"


def refuse(problems: Iterable[str]) -> None:
    """Raise for what was found.

    Args:
        problems: One line each; may be none.

    Raises:
        FileError: With all of them, if there are any.
    """
    listed = "\n".join(f"- {problem}" for problem in problems)
    if listed:
        raise FileError(f"what was written is not what it should be, and is removed again; please report:\n{listed}")
