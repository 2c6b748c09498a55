"""The one place that writes to a model: packed weights go in, or out again, all or none."""

from __future__ import annotations

import copy
import itertools
import types
import weakref
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from monoquant.errors import InputError, quoted, require_flag
from monoquant.modules.fast_path import keep_off, layers_to_keep_off, let_back
from monoquant.modules.packed_layer import PackedLayer, replace_parameters
from monoquant.modules.packed_module import PackedModule
from monoquant.modules.packed_weight import PackedWeight
from monoquant.modules.pretrained import keep_from_saving, let_save
from monoquant.modules.reparametrized import computed_weights
from monoquant.restoring import restored_on_error
from monoquant.source import tensor_identity

M = TypeVar("M", bound=nn.Module)


def copy_without_weights(model: nn.Module, weights: Mapping[str, Collection[str]]) -> nn.Module:
    """Copy a model, leaving out the weights that will be packed; the float weights are never copied.

    Args:
        model: The float model; left alone.
        weights: By layer name, the names of the weights that the copy does without.

    Returns:
        A copy that shares no tensor with ``model``, ready for :func:`convert_in_place`.

    Raises:
        InputError: When the model cannot be copied, or parts of the copy would go on using the original.
    """
    plain, computed = _held_weights(model, weights)
    holders = {id(tensor): _holder(tensor) for tensor in (*plain.values(), *computed.values())}
    # What hooks left as attributes of layers that stay in float is computed anew by the next forward; it has a history
    # of gradients, with which deepcopy would refuse it.
    memo: dict[int, object] = {**{id(value): value.detach().clone() for value in _left_by_hooks(model)}, **holders}
    try:
        result = copy.deepcopy(model, memo)
    except Exception as error:
        raise InputError(
            f"the model cannot be copied ({type(error).__name__}: {error}): use inplace=True, or make it deepcopy-able"
        ) from error
    _refuse_shared_functions(model, result)
    _share_again(model, result)
    watched = {name: weakref.ref(holders[id(weight)]) for (name, _), weight in plain.items()}
    for name, key in plain:
        module = result.get_submodule(name)
        module._parameters[key] = None
        vars(module).pop("_flat_weights", None)  # of recurrent modules; conversion does without it
    memo.clear()
    holders.clear()
    _refuse_other_references(watched)
    return result


def _held_weights(
    model: nn.Module, weights: Mapping[str, Collection[str]]
) -> tuple[dict[tuple[str, str], Tensor], dict[tuple[str, str], Tensor]]:
    """Weights that modules hold as parameters, and those that hooks left as attributes, by layer and name."""
    plain: dict[tuple[str, str], Tensor] = {}
    computed: dict[tuple[str, str], Tensor] = {}
    for layer, name in ((layer, name) for layer, names in weights.items() for name in names):
        module = model.get_submodule(layer)
        parameter, attribute = module._parameters.get(name), vars(module).get(name)
        if parameter is not None:
            plain[layer, name] = parameter
        elif isinstance(attribute, Tensor):
            computed[layer, name] = attribute
    return plain, computed


def _left_by_hooks(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        for name in computed_weights(module):
            value = vars(module).get(name)
            if isinstance(value, Tensor):
                yield value


def _holder(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().to("meta"), requires_grad=False)


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
    tables = [table for key, table in vars(module).items() if key.endswith("_hooks") and isinstance(table, dict)]
    hooks = [table.values() for table in tables]
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


def convert_in_place(
    model: nn.Module, packed: Mapping[str, PackedLayer], rescaled: Mapping[tuple[str, str], Tensor] | None = None
) -> None:
    """Turn some modules of a model into packed ones; on any exception all are as they were.

    Args:
        model: The model to change.
        packed: Packed layers by name.
        rescaled: New values of float parameters, by name of the module and of the parameter; default: none.
    """
    modules = {name: model.get_submodule(name) for name in packed}
    with restored_on_error(model.modules()):
        for (name, key), value in (rescaled or {}).items():
            replace_parameters(model.get_submodule(name), {key: value})
        for name, module in modules.items():
            packed[name].put_into(module)
        for layer in layers_to_keep_off(model):
            keep_off(layer)
        keep_from_saving(model)


def dequantize(model: M, *, inplace: bool = False) -> M:
    """Turn a quantized model back into a float one of the original classes, exact to the packed values.

    Weights that a parametrization or a weight norm computed before quantization are plain parameters afterwards.
    Parameters are trainable if they were; weights that were tied are tied again.

    Args:
        model: A model that :func:`quantize` or :func:`load` made.
        inplace: False (default): leave ``model`` alone and return a copy. True: change it.

    Returns:
        The float model. Layers that computed with integers compute in float, with the same weights.

    Raises:
        InputError: When the model has no packed layer, or cannot be copied.
    """
    require_flag("inplace", inplace)
    if not isinstance(model, nn.Module) or not any(isinstance(module, PackedModule) for module in model.modules()):
        raise InputError(
            "the model has no packed layer: give a model that quantize() or load() made, such as result.model"
        )
    target = model if inplace else _copied(model)
    parameters: dict[PackedWeight, nn.Parameter] = {}

    def parameter(packed: PackedWeight) -> nn.Parameter:
        if packed not in parameters:
            parameters[packed] = nn.Parameter(packed.dequantize(), requires_grad=packed.was_trainable)
        return parameters[packed]

    with torch.inference_mode(False), restored_on_error(target.modules()):
        for layer in layers_to_keep_off(target):
            let_back(layer)
        let_save(target)
        for module in list(target.modules()):
            if isinstance(module, PackedModule):
                module.become_float(parameter)
    return target


def _copied(model: M) -> M:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise InputError(f"the model cannot be copied ({type(error).__name__}: {error}): use inplace=True") from error
