"""What a model holds: parameters by their memory, and the modules around its weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import cast

import attrs
from torch import Tensor, nn

from monoquant.statistics.store import Key
from monoquant.statistics.watch import storage_of

_OWN = ("_parameters", "_flat_weights")
"""Recurrent modules list their parameters once more, and torch keeps that list up to date."""

_CONTAINERS = (dict, OrderedDict, list, tuple, set)


@attrs.frozen(eq=False)
class Held:
    """A parameter of a model.

    Args:
        key: Its layer and name, the first ones if it has several.
        tensor: It.
        shared: Whether others, buffers, or plain attributes use its memory as well.
    """

    key: Key
    tensor: Tensor
    shared: bool = False


def held_by(model: nn.Module) -> dict[int, Held]:
    """All parameters by their memory, as storage_of() tells it.

    Args:
        model: The model.
    """
    found: dict[int, Held] = {}
    for layer, module in model.named_modules():
        for name, parameter in module._parameters.items():
            storage = storage_of(parameter)
            if parameter is not None and storage:
                known = found.get(storage)
                held = Held((layer, name), parameter) if known is None else attrs.evolve(known, shared=True)
                found[storage] = held
    for other in _other_tensors(model):
        if storage_of(other) in found:
            found[storage_of(other)] = attrs.evolve(found[storage_of(other)], shared=True)
    return found


def _other_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Buffers, and what modules keep in plain attributes and containers."""
    yield from model.buffers()
    searched: set[int] = set()
    waiting: list[object] = [value for one in model.modules() for key, value in vars(one).items() if key not in _OWN]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif type(value) in _CONTAINERS and id(value) not in searched:  # one may contain itself
            searched.add(id(value))
            waiting += value.values() if isinstance(value, dict) else cast("Iterable[object]", value)


def follow_outputs(model: nn.Module, layers: set[str]) -> Iterator[tuple[str, nn.Module]]:
    """Modules whose outputs must not change: the model, and all that contain watched layers.

    Args:
        model: The model.
        layers: Names of the layers.
    """
    for name, module in model.named_modules():
        inside = name + "." if name else ""
        if not name or name in layers or any(layer.startswith(inside) for layer in layers):
            yield name, module
