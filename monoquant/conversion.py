"""The one place that writes to a model: packed weights go in, all or none."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from monoquant.errors import InputError
from monoquant.modules.linear_like import become_int4
from monoquant.modules.packed_int4 import PackedInt4


def converted_copy(model: nn.Module, packed: Mapping[str, PackedInt4]) -> nn.Module:
    """Copy a model with some Linears packed; the float weights they had are never copied.

    Args:
        model: The float model; left alone.
        packed: Packed weights by layer name.

    Returns:
        A copy that shares no tensor with ``model``.

    Raises:
        InputError: When the model cannot be copied.
    """
    memo: dict[int, object] = {}
    for name in packed:
        weight = model.get_submodule(name).weight
        if isinstance(weight, Tensor):
            memo[id(weight)] = nn.Parameter(weight.detach().to("meta"), requires_grad=False)
    try:
        result = copy.deepcopy(model, memo)
    except Exception as error:
        raise InputError(
            f"the model cannot be copied ({type(error).__name__}: {error}): use inplace=True, or make it deepcopy-able"
        ) from error
    convert_in_place(result, packed)
    return result


def convert_in_place(model: nn.Module, packed: Mapping[str, PackedInt4]) -> None:
    """Turn some Linears of a model into Int4Linears; on any exception all are Linears again.

    Args:
        model: The model to change.
        packed: Packed weights by layer name.
    """
    modules = {name: model.get_submodule(name) for name in packed}
    with restored_on_error(modules.values()):
        for name, module in modules.items():
            become_int4(module, packed[name])


@contextmanager
def restored_on_error(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Undo every change of class and attributes of the modules if the block raises.

    Args:
        modules: The modules that the block may change; tensors must be replaced, not written to.
    """
    saved = [(module, module.__class__, _shallow_state(module)) for module in modules]
    try:
        yield
    except BaseException:
        for module, kind, state in saved:
            module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update(state)
        raise


def _shallow_state(module: nn.Module) -> dict[str, object]:
    state = dict(vars(module))
    tables = ("_parameters", "_buffers", "_modules")
    return {**state, **{table: copy.copy(state[table]) for table in tables}}


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a block in eval mode without gradients, and leave training flags and buffers as they were.

    Args:
        model: The model the block runs.
    """
    flags = {module: module.training for module in model.modules()}
    held = {module: dict(module._buffers) for module in flags}
    contents = [(buffer, buffer.clone()) for table in held.values() for buffer in table.values() if buffer is not None]
    try:
        for module in flags:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, training in flags.items():
            module.training = training
            module._buffers.clear()
            module._buffers.update(held[module])
        with torch.no_grad():
            for buffer, content in contents:
                if not torch.equal(buffer, content):
                    buffer.copy_(content)
