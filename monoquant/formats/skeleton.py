"""Give a float model without weights the packed layers that a file has, for a reader that fills them by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from monoquant.adapters.base import ModuleAdapter, Obstacle
from monoquant.adapters.choice import examine as examine_module
from monoquant.container import read_container
from monoquant.conversion import convert_in_place
from monoquant.errors import FileError
from monoquant.formats.filling import PackedAs
from monoquant.formats.native import Stored, parsed
from monoquant.modules.integer_compute import InputQuantizer
from monoquant.modules.packed_layer import PackedLayer
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.modules.packed_module import PREFIX
from monoquant.modules.packed_weight import PackedWeight
from monoquant.modules.storage import empty_weight
from monoquant.source import own_tensors, persistent_tensors
from monoquant.values import Scheme


def prepare(model: nn.Module, path: Path, adapters: Iterable[ModuleAdapter]) -> None:
    """Verify a file, and turn a float model into one with its packed layers, still without values.

    Args:
        model: Of the same architecture, on the meta device; changed in place. Its dtypes stay.
        path: A file that :class:`~monoquant.formats.native.NativeExporter` wrote.
        adapters: All there are, in the order in which they are asked.

    Raises:
        FileError: When the file is damaged, of another format or version, or does not fit the model.
    """
    tensors, metadata = read_container(path)
    stored = parsed(path, metadata)
    known, modules = list(adapters), dict(model.named_modules())
    problems: list[str] = []
    layers: dict[str, PackedLayer] = {}
    for name, how in stored.packed.items():
        outcome = _layer(name, how, modules.get(name), known)
        if isinstance(outcome, str):
            problems.append(outcome)
        else:
            layers[name] = outcome
    if not problems:
        convert_in_place(model, layers)
        problems = _misfits(persistent_tensors(model), tensors, stored)
    if problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        kind = type(model).__name__
        raise FileError(f"{path} does not fit a {kind}; load it into the class that was saved:\n{listed}")


def _layer(name: str, how: PackedAs, module: nn.Module | None, adapters: list[ModuleAdapter]) -> PackedLayer | str:
    if module is None:
        return f"no layer {name!r} in the model"
    outcome = examine_module(module, adapters)
    if isinstance(outcome, Obstacle):
        return f"layer {name!r} cannot be packed: {outcome.reason}"
    if not how.forms.keys() <= outcome.forms.keys():
        return f"layer {name!r} has no {', '.join(sorted(how.forms.keys() - outcome.forms.keys()))}"
    dtypes = {key: tensor.dtype for key, tensor in own_tensors(module).items()}
    weights: dict[str, PackedWeight] = {
        key: empty_weight(form, how.scheme, dtypes.get(key, how.dtype)) for key, form in how.forms.items()
    }
    return PackedLayer(weights, outcome.adapter.mixin(module, how.scheme), _inputs(how, weights.get("weight")))


def _inputs(how: PackedAs, weight: PackedWeight | None) -> dict[str, nn.Module]:
    static = isinstance(how.scheme, Scheme) and how.scheme.activations == "static"
    if not static or not isinstance(weight, PackedMatrix):
        return {}
    nothing = torch.empty((), device="meta")
    return {f"{PREFIX}input": InputQuantizer(nothing, nothing, weight)}


def _misfits(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], stored: Stored) -> list[str]:
    held = {**found, **{alias: found[kept] for alias, kept in stored.aliases.items() if kept in found}}
    problems = [f"missing in the file: {name}" for name in expected if name not in held]
    problems += [f"not in the model: {name}" for name in held if name not in expected]
    for name in expected.keys() & held.keys():
        if expected[name].shape != held[name].shape:
            shapes = f"{tuple(held[name].shape)} in the file, {tuple(expected[name].shape)} in the model"
            problems.append(f"{name} has shape {shapes}")
    return problems
