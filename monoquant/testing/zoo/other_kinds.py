"""Specimens of modules that people write, and of some that cannot be packed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Final

from torch import nn

from monoquant.testing.zoo import modules
from monoquant.testing.zoo.inputs import floats, indices
from monoquant.testing.zoo.specimen import Inputs, Specimen

_ROWS: Final = floats((5, 64))

CUSTOM: Final = (
    Specimen("Linear with a forward of its own", lambda: modules.HalvingLinear(64, 48), _ROWS),
    Specimen("experts", modules.Experts, _ROWS, {"": ("up", "down")}),
    Specimen(
        "matrix beside a Linear",
        modules.Gated,
        _ROWS,
        {"": ("gate",), "value": ("weight",)},
        in_integers=("value",),
    ),
    Specimen("ParameterList", modules.MatrixList, _ROWS, {"steps": ("0", "1")}),
    Specimen("ParameterDict", modules.MatrixDict, _ROWS, {"parts": ("matrix",)}),
    Specimen(
        "tied head",
        modules.TiedHead,
        indices(60, 4, 9),
        {"embed": ("weight",), "middle": ("weight",), "head": ("weight",)},
        in_integers=("middle", "head"),
    ),
    Specimen("module used twice", modules.UsedTwice, _ROWS, {"first": ("weight",)}, in_integers=("first",)),
)


def _unsupported(name: str, part: Callable[[], nn.Module], inputs: Inputs, reason: str) -> Specimen:
    return Specimen(
        name,
        lambda: modules.BesideLinear(part()),
        inputs,
        {"head": ("weight",)},
        {"part": reason},
        in_integers=("head",),
    )


UNSUPPORTED: Final = (
    _unsupported("computed names", modules.ComputedNames, _ROWS, "its forward does not read w0, w1"),
    _unsupported("LayerNorm of matrices", lambda: nn.LayerNorm((8, 64)), floats((5, 8, 64)), "has no weight matrix"),
    _unsupported(
        "Embedding that renormalizes", lambda: nn.Embedding(90, 64, max_norm=0.5), indices(90, 4, 9), "max_norm is set"
    ),
    _unsupported("Linear with slots", lambda: modules.SlottedLinear(64, 64), _ROWS, "defines __slots__"),
)


def _transposed_linear() -> nn.Module:
    made: nn.Module = importlib.import_module("transformers.pytorch_utils").Conv1D(48, 128)
    return made


TRANSPOSED_LINEAR: Final = Specimen("transformers Conv1D", _transposed_linear, floats((5, 128)), in_integers=("",))
"""Can only be built where transformers is installed."""
