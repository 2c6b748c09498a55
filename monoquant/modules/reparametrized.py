"""Weights that something computes from other tensors: parametrizations, weight_norm, spectral_norm, pruning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook, SpectralNormStateDictHook
from torch.nn.utils.weight_norm import WeightNorm

_LIST = "parametrizations"


@attrs.frozen(eq=False)
class ComputedWeight:
    """A weight that is computed on each access or call.

    Args:
        name: The attribute through which it is read.
        sources: Names of the tensors in the module that it is computed from, dotted where they are in submodules.
        hook: Key of the forward pre-hook that computes it; None for a parametrization.
    """

    name: str
    sources: tuple[str, ...]
    hook: int | None = None


def computed_weights(module: nn.Module) -> dict[str, ComputedWeight]:
    """The computed weights of a module by name.

    Args:
        module: Any module.
    """
    found: dict[str, ComputedWeight] = {}
    if parametrize.is_parametrized(module):
        for name, parts in getattr(module, _LIST).items():
            sources = [f"{_LIST}.{name}.{key}" for key in parts.state_dict(keep_vars=True)]
            found[name] = ComputedWeight(name, tuple(sources))
    for key, hook in module._forward_pre_hooks.items():
        if isinstance(hook, WeightNorm):
            found[hook.name] = ComputedWeight(hook.name, (f"{hook.name}_g", f"{hook.name}_v"), key)
        elif isinstance(hook, SpectralNorm):
            sources = [f"{hook.name}_{part}" for part in ("orig", "u", "v")]
            found[hook.name] = ComputedWeight(hook.name, tuple(sources), key)
        elif isinstance(hook, BasePruningMethod):
            name = hook._tensor_name
            found[name] = ComputedWeight(name, (f"{name}_orig", f"{name}_mask"), key)
    return found


def compute(module: nn.Module, computed: ComputedWeight) -> Tensor:
    """The weight as a forward in eval mode would see it.

    Args:
        module: The module; left as it was.
        computed: One of its computed weights.

    Returns:
        A tensor without gradient.
    """
    hook: Any = None if computed.hook is None else module._forward_pre_hooks[computed.hook]
    with torch.no_grad():
        if hook is None:
            with _in_eval_mode(getattr(module, _LIST)[computed.name]):
                weight = getattr(module, computed.name)
        elif isinstance(hook, WeightNorm):
            weight = hook.compute_weight(module)
        elif isinstance(hook, SpectralNorm):
            weight = hook.compute_weight(module, do_power_iteration=False)
        else:
            weight = hook.apply_mask(module)
    detached: Tensor = weight.detach()
    return detached


def refresh(module: nn.Module) -> None:
    """Bring the weights that hooks compute up to date, as the next call would; a forward without hooks reads them.

    Args:
        module: The module, whose attributes are changed.
    """
    for name, computed in computed_weights(module).items():
        if computed.hook is not None:
            vars(module)[name] = compute(module, computed)


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    # A spectral norm in training mode would go on iterating, and change its buffers.
    flags = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in flags:
            part.training = False
        yield
    finally:
        for part, training in flags:
            part.training = training


def settle(module: nn.Module, computed: ComputedWeight) -> None:
    """Remove what computes a weight, so that the attribute is free for a packed one; tensors are only let go.

    Args:
        module: The module, changed in place.
        computed: One of its computed weights.
    """
    vars(module).pop(computed.name, None)
    if computed.hook is not None:
        hooks = module._forward_pre_hooks
        module._forward_pre_hooks = type(hooks)((key, hook) for key, hook in hooks.items() if key != computed.hook)
        module._parameters = {key: value for key, value in module._parameters.items() if key not in computed.sources}
        module._buffers = {key: value for key, value in module._buffers.items() if key not in computed.sources}
    elif parametrize.is_parametrized(module):
        module.__class__ = parametrize.type_before_parametrizations(module)
        module._modules = {key: child for key, child in module._modules.items() if key != _LIST}
    for table in ("_state_dict_hooks", "_load_state_dict_pre_hooks"):
        setattr(module, table, _without_those_of(getattr(module, table), computed.name))
    # The weight's place is the first one, as in the modules that own a weight from the start.
    module._parameters = {computed.name: None, **module._parameters}


def replaced_tensors(module: nn.Module, weights: Iterable[str]) -> set[str]:
    """Names of the tensors that a module lets go when some of its weights are packed.

    Args:
        module: The float module.
        weights: Names of the weights.

    Returns:
        Names within the module, dotted where they are in parametrizations.
    """
    computed = computed_weights(module)
    return {source for name in weights for source in (computed[name].sources if name in computed else (name,))}


def _without_those_of(hooks: Any, name: str) -> Any:
    """The hooks without those by which a spectral_norm or weight_norm of a weight is saved and loaded."""
    return type(hooks)((key, hook) for key, hook in hooks.items() if not _concerns(getattr(hook, "hook", hook), name))


def _concerns(hook: Any, name: str) -> bool:
    if isinstance(hook, (SpectralNormStateDictHook, SpectralNormLoadStateDictPreHook)):
        return bool(hook.fn.name == name)
    # Of the parametrized weight_norm, for state dicts of the old one; a local function, which cannot be pickled.
    renames = getattr(hook, "__qualname__", "") == "weight_norm.<locals>._weight_norm_compat_hook"
    return renames and [cell.cell_contents for cell in hook.__closure__] == [name]
