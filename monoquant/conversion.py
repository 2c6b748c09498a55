"""The one place that writes to a model: packed weights go in, all or none."""

from __future__ import annotations

import copy
import itertools
import types
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from monoquant.errors import InputError, quoted
from monoquant.modules.linear_like import become_int4
from monoquant.modules.packed_int4 import PackedInt4
from monoquant.restoring import restored_on_error
from monoquant.source import tensor_identity


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
    _refuse_shared_functions(model, result)
    _share_again(model, result)
    watched = {name: weakref.ref(holders[id(weight)]) for name, weight in weights.items()}
    for name in names:
        result.get_submodule(name)._parameters["weight"] = None
    memo.clear()
    holders.clear()
    _refuse_other_references(watched)
    return result


def _tensors(weights: Mapping[str, object]) -> Iterator[Tensor]:
    yield from (weight for weight in weights.values() if isinstance(weight, Tensor))


def _refuse_shared_functions(model: nn.Module, copied: nn.Module) -> None:
    # deepcopy does not copy functions: what they hold on to would be the original's layers.
    originals = {id(module) for module in model.modules()}
    pairs = zip(model.named_modules(), copied.modules(), strict=True)
    shared = [
        name
        for (name, one), other in pairs
        if _is_shared(vars(one).get("forward"), vars(other).get("forward"))
        or any(_reaches(function, originals) for function in _functions(other))
    ]
    if shared:
        raise InputError(
            "modules with a function (a replaced forward, an attribute or a hook) that a copy would share with the "
            f"original: {quoted(shared)}; use inplace=True, or set it after quantizing",
            layers=shared,
        )


def _is_shared(forward: object, copied: object) -> bool:
    return forward is not None and forward is copied


def _functions(module: nn.Module) -> Iterator[types.FunctionType]:
    hooks = [table.values() for key, table in vars(module).items() if key.endswith("_hooks")]
    for value in (*vars(module).values(), *itertools.chain.from_iterable(hooks)):
        if isinstance(value, types.FunctionType):
            yield value


def _reaches(function: types.FunctionType, modules: Container[int]) -> bool:
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    held = [part for content in cells for part in (content if isinstance(content, (list, tuple)) else (content,))]
    return any(id(part) in modules for part in held)


def _share_again(model: nn.Module, copied: nn.Module) -> None:
    """Let parameters that are different objects over one memory share it in the copy as well, as deepcopy does not."""
    leaders: dict[tuple[object, ...], Tensor] = {}
    for original, copy_of_it in zip(model.parameters(), copied.parameters(), strict=True):
        if original.layout == torch.strided and not copy_of_it.is_meta:
            copy_of_it.data = leaders.setdefault(tensor_identity(original), copy_of_it).data


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
