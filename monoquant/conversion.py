"""The one place that writes to a model: packed weights go in, all or none."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from monoquant.errors import InputError, quoted
from monoquant.modules.linear_like import become_int4
from monoquant.modules.packed_int4 import PackedInt4


def copy_without_weights(model: nn.Module, layers: Iterable[str]) -> nn.Module:
    """Copy a model, leaving out the weights that will be packed; the float weights are never copied.

    Args:
        model: The float model; left alone.
        layers: Names of the Linears whose copies get no weight.

    Returns:
        A copy that shares no tensor with ``model``, ready for :func:`convert_in_place`.

    Raises:
        InputError: When the model cannot be copied, or parts of the copy would go on using the original.
    """
    names = list(layers)
    weights = {name: model.get_submodule(name).weight for name in names}
    holders = {
        id(weight): nn.Parameter(weight.detach().to("meta"), requires_grad=False) for weight in _tensors(weights)
    }
    memo: dict[int, object] = {**holders}
    try:
        result = copy.deepcopy(model, memo)
    except Exception as error:
        raise InputError(
            f"the model cannot be copied ({type(error).__name__}: {error}): use inplace=True, or make it deepcopy-able"
        ) from error
    _refuse_shared_forwards(model, result)
    watched = {name: weakref.ref(holders[id(weight)]) for name, weight in weights.items()}
    for name in names:
        result.get_submodule(name)._parameters["weight"] = None
    memo.clear()
    holders.clear()
    _refuse_other_references(watched)
    return result


def _tensors(weights: Mapping[str, object]) -> Iterator[Tensor]:
    yield from (weight for weight in weights.values() if isinstance(weight, Tensor))


def _refuse_shared_forwards(model: nn.Module, copied: nn.Module) -> None:
    # deepcopy does not copy functions: such a forward would run the original's layers.
    pairs = zip(model.named_modules(), copied.modules(), strict=True)
    shared = [name for (name, one), other in pairs if "forward" in vars(one) and _forward(one) is _forward(other)]
    if shared:
        raise InputError(
            f"modules with a replaced forward, which a copy would share with the original: {quoted(shared)}; "
            "use inplace=True, or replace (compile) forward after quantizing",
            layers=shared,
        )


def _forward(module: nn.Module) -> object:
    return vars(module).get("forward")


def _refuse_other_references(watched: Mapping[str, Callable[[], object]]) -> None:
    kept = [name for name, reference in watched.items() if reference() is not None]
    if kept:
        raise InputError(
            f"weights that are also referenced outside their layers (in a list, say): {quoted(kept)}; the packed copy "
            "could not give them one; use inplace=True, which leaves such references their float weight, or skip these",
            layers=kept,
        )


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
    restore = _restorer(modules)
    try:
        yield
    except BaseException:
        restore()
        raise


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a block in eval mode without gradients, and leave the model as it was.

    Restored are training flags, attributes (plain lists, dicts and sets with their content) and the content of buffers,
    so that what a forward caches does not stay.

    Args:
        model: The model the block runs.
    """
    modules = list(model.modules())
    restore = _restorer(modules)
    buffers = [buffer for module in modules for buffer in module.buffers(recurse=False)]
    contents = [(buffer, buffer.clone()) for buffer in buffers if buffer.layout == torch.strided]
    flags = [(module, module.training) for module in modules]
    try:
        for module in modules:
            module.training = False
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # compiled code would not call new hooks
            yield
    finally:
        for module, training in flags:
            module.training = training
        restore()
        with torch.no_grad():
            for buffer, content in contents:
                if not torch.equal(buffer, content):
                    buffer.copy_(content)


def _restorer(modules: Iterable[nn.Module]) -> Callable[[], None]:
    """Remember class, attributes and plain containers of modules; the result puts all back."""
    # A scripted module keeps its state in C++, where no attribute can be exchanged.
    plain = [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]
    saved = [(module, module.__class__, dict(vars(module))) for module in plain]
    held = [value for _, _, state in saved for value in state.values() if type(value) in (dict, list, set)]
    contents = [(container, container.copy()) for container in held]

    def restore() -> None:
        for module, kind, state in saved:
            module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update(state)
        for container, content in contents:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)

    return restore
