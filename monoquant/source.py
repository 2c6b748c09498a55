"""The face of a model towards the pipeline: which layers own parameters, what they share, what contains them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from monoquant.errors import InputError, quoted
from monoquant.modules.packed_weight import PackedWeight
from monoquant.modules.tensor_holder import TensorHolder
from monoquant.values import Ancestor, Layer

_WRAPPERS = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}


def inventory(model: nn.Module) -> tuple[Layer, ...]:
    """List every module that owns parameters.

    Args:
        model: Any eager module, on any device; meta tensors are fine.

    Returns:
        One layer per module in the order of ``named_modules``, modules used under several names once. What a
        parametrization keeps belongs to the module whose weight it computes.

    Raises:
        InputError: For something that is not an eager module, for lazy layers that have no shape yet, and for
            layers that are quantized already; all of them are named.
    """
    _refuse_non_modules(model)
    names = names_of_modules(model)
    _refuse_unready(names)
    hidden = {
        part
        for module in names
        if parametrize.is_parametrized(module)
        for part in module.get_submodule("parametrizations").modules()
    }
    visible = {module: found for module, found in names.items() if module not in hidden}
    owners = {module: found for module, found in visible.items() if own_parameters(module)}
    ties = _ties({module: found[0] for module, found in owners.items()})
    types = {name: kind_of(module) for module, found in names.items() for name in found}
    wrapping = _wrapping(model)
    return tuple(_layer(module, found, ties[module], types, wrapping) for module, found in owners.items())


def names_of_modules(model: nn.Module) -> dict[nn.Module, list[str]]:
    """All dotted names of every module.

    Args:
        model: The root; its name is ``""``.

    Returns:
        Modules in the order of ``named_modules``, each with its names in that order.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


def tensor_identity(tensor: Tensor) -> tuple[object, ...]:
    """What two tensors have in common when they are one: storage, offset, shape and stride.

    Args:
        tensor: Any tensor, on any device, meta included.

    Returns:
        A key that is equal for the same memory seen the same way, and for nothing else while both tensors live.
    """
    if tensor.layout != torch.strided:
        return (id(tensor),)
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride()))


def model_tensors(model: nn.Module) -> Iterator[Tensor]:
    """All parameters and buffers of a model, shared ones once.

    Args:
        model: Any module.

    Yields:
        Each tensor object once.
    """
    yield from model.parameters()
    yield from model.buffers()


def persistent_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a file must hold to restore a model: parameters and persistent buffers by name.

    Args:
        model: Any module.

    Returns:
        Tensors by dotted name; those of a module used under several names appear under each.
    """
    state: dict[str, Tensor] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        own = {**module._parameters, **module._buffers}
        kept = {key: tensor for key, tensor in own.items() if key not in module._non_persistent_buffers_set}
        state.update({joined(name, key): tensor for key, tensor in kept.items() if tensor is not None})
    return state


def joined(module: str, key: str) -> str:
    """Dotted name of something in a module.

    Args:
        module: Name of the module; ``""`` for the root.
        key: Name within the module.
    """
    return f"{module}.{key}" if module else key


def _wrapping(model: nn.Module) -> str:
    """Prefix that wrappers such as torch.compile put before the names of the model that people mean."""
    prefix = ""
    while (attribute := _WRAPPERS.get(type(model).__name__)) is not None:
        prefix += f"{attribute}."
        model = model.get_submodule(attribute)
    return prefix


def _refuse_non_modules(model: object) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("the model is a TorchScript module, whose layers cannot be replaced: give the eager nn.Module")
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise InputError(f"the model is a {kind}: give an nn.Module, or a state dict to quantize")


def _refuse_unready(names: dict[nn.Module, list[str]]) -> None:
    lazy = [found[0] for module, found in names.items() if _is_lazy(module)]
    if lazy:
        message = f"lazy layers have no shape yet: {quoted(lazy)}; run the model once on real input first"
        raise InputError(message, layers=lazy)
    packed = [found[0] for module, found in names.items() if _is_quantized(module)]
    if packed:
        outermost = [name for name in packed if not any(_contains(other, name) for other in packed)]
        message = f"already quantized: {quoted(outermost)}; start again from the float model"
        raise InputError(message, layers=outermost)


def _contains(container: str, name: str) -> bool:
    return name != container and name.startswith(f"{container}." if container else "")


def _is_lazy(module: nn.Module) -> bool:
    return any(torch.nn.parameter.is_lazy(tensor) for tensor in _own_tensors(module))


def _is_quantized(module: nn.Module) -> bool:
    return any(isinstance(child, PackedWeight) for child in module.children()) or type(module).__module__.startswith(
        "torch.ao.nn.quantized"
    )


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a module itself, those that its parametrizations keep among them.

    Args:
        module: Any module.

    Returns:
        Parameters by their name within the module.
    """
    own = {name: value for name, value in module._parameters.items() if value is not None}
    if not parametrize.is_parametrized(module):
        return own
    parts = module.get_submodule("parametrizations").named_parameters()
    return own | {f"parametrizations.{name}": value for name, value in parts}


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module itself, those that its parametrizations keep among them.

    Args:
        module: Any module.

    Returns:
        Tensors by their name within the module.
    """
    buffers: dict[str, Tensor] = dict(module.named_buffers(recurse=False))
    if parametrize.is_parametrized(module):
        parts = module.get_submodule("parametrizations").named_buffers()
        buffers |= {f"parametrizations.{name}": value for name, value in parts}
    return {**own_parameters(module), **buffers}


def kind_of(module: nn.Module) -> type[nn.Module]:
    """The class of a module, as rules and reports see it.

    Args:
        module: Any module.

    Returns:
        Its class; for the tensors of a state dict, the class that their names and shapes suggest.
    """
    return module.stands_for if isinstance(module, TensorHolder) else type(module)


def _ties(owners: dict[nn.Module, str]) -> dict[nn.Module, tuple[str, ...]]:
    holders: dict[object, list[str]] = {}
    for module, name in owners.items():
        for parameter in own_parameters(module).values():
            holders.setdefault(tensor_identity(parameter), []).append(name)
    tied = {}
    for module, name in owners.items():
        keys = [tensor_identity(parameter) for parameter in own_parameters(module).values()]
        tied[module] = tuple(dict.fromkeys(other for key in keys for other in holders[key] if other != name))
    return tied


def _layer(module: nn.Module, names: list[str], ties: tuple[str, ...], types: dict[str, type], wrapping: str) -> Layer:
    parameters = own_parameters(module)
    weight = parameters.get("weight")
    if weight is None:
        weight = max(parameters.values(), key=Tensor.numel)
    aliases = names[1:] + ([name.removeprefix(wrapping) for name in names] if wrapping else [])
    return Layer(
        name=names[0],
        type=kind_of(module),
        shape=tuple(weight.shape),
        parameters=sum(parameter.numel() for parameter in parameters.values()),
        dtype=weight.dtype,
        aliases=tuple(aliases),
        ties=ties,
        ancestors=tuple(Ancestor(name, types[name]) for name in _ancestor_names(names)),
    )


def _ancestor_names(names: Iterable[str]) -> list[str]:
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".") if name else []
        found.update(dict.fromkeys(".".join(parts[:end]) for end in range(len(parts))))
    return list(found)
