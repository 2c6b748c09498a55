"""The adapter for a module, and what it makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import attrs
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from monoquant.adapters.attention import AttentionAdapter
from monoquant.adapters.base import ModuleAdapter, Obstacle, obstacle_in_tensor
from monoquant.adapters.code import writer_of
from monoquant.adapters.convolution import ConvolutionAdapter
from monoquant.adapters.embedding import EmbeddingAdapter
from monoquant.adapters.linear import LinearAdapter, TransposedLinearAdapter
from monoquant.adapters.parameters import AttributeAdapter
from monoquant.adapters.recurrent import RecurrentAdapter
from monoquant.adapters.tensors import TensorAdapter
from monoquant.modules.packed_module import PREFIX, PackedModule, packed_class
from monoquant.modules.reparametrized import compute, computed_weights
from monoquant.numerics.matrix_form import MatrixForm

T = TypeVar("T")

BUILT_IN_ADAPTERS: tuple[ModuleAdapter, ...] = (
    LinearAdapter(),
    TransposedLinearAdapter(),
    ConvolutionAdapter(),
    EmbeddingAdapter(),
    AttentionAdapter(),
    RecurrentAdapter(),
    TensorAdapter(),
    AttributeAdapter(),
)


@attrs.frozen(eq=False)
class Packable:
    """A module that can be packed.

    Args:
        adapter: Who knows it.
        forms: Its weights by name, each with its matrix.
    """

    adapter: ModuleAdapter
    forms: Mapping[str, MatrixForm]


def examine(module: nn.Module, adapters: Iterable[ModuleAdapter]) -> Packable | Obstacle:
    """Find out whether and how a module can be packed.

    Args:
        module: Any module that owns parameters; meta tensors are fine.
        adapters: Adapters by priority; one of them must claim everything, as the last built-in one does.

    Returns:
        How, or what is in the way.
    """
    weights = readable_weights(module)
    adapter = next(one for one in adapters if _asked(one, module, lambda one: one.claims(module)))
    obstacle = _obstacle_in_class(module)
    if obstacle is not None:
        return obstacle
    forms = _asked(adapter, module, lambda one: one.forms(module, weights))
    if isinstance(forms, Obstacle):
        return forms
    obstacles = (obstacle_in_tensor(name, weights[name]) for name in forms)
    found = next((obstacle for obstacle in obstacles if obstacle is not None), None)
    found = found or _obstacle_in_names(module, forms) or _obstacle_to_subclassing(module, forms)
    return found or Packable(adapter, forms)


def _asked(adapter: ModuleAdapter, module: nn.Module, question: Callable[[ModuleAdapter], T]) -> T:
    try:
        return question(adapter)
    except Exception as error:
        kind = type(adapter)
        error.add_note(
            f"raised by the adapter {kind.__module__}.{kind.__name__}, asked about a {type(module).__name__}"
        )
        raise


def readable_weights(module: nn.Module) -> dict[str, Tensor]:
    """What a module reads as ``module.name``: its parameters, and what is computed from them.

    Args:
        module: Any module; left as it was.

    Returns:
        Tensors by name, without gradient.
    """
    computed = computed_weights(module)
    sources = {source for one in computed.values() for source in one.sources}
    own = {name: value for name, value in module._parameters.items() if value is not None and name not in sources}
    return {name: compute(module, one) for name, one in computed.items()} | {
        name: value.detach() for name, value in own.items()
    }


def _obstacle_in_class(module: nn.Module) -> Obstacle | None:
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return Obstacle("it is a TorchScript module, whose class cannot be exchanged", "give the eager module")
    between = kind.__mro__[: kind.__mro__.index(nn.Module)]
    if any("__slots__" in vars(one) for one in between):
        return Obstacle(f"{kind.__name__} defines __slots__, so its class cannot be exchanged", "remove the __slots__")
    return None


def _obstacle_to_subclassing(module: nn.Module, forms: Mapping[str, MatrixForm]) -> Obstacle | None:
    kind = parametrize.type_before_parametrizations(module)
    try:
        packed_class(PackedModule, kind, tuple(sorted(forms)))
    except TypeError as error:
        return Obstacle(f"{kind.__name__} cannot be subclassed ({error})", "make __init_subclass__ take no arguments")
    return None


def _obstacle_in_names(module: nn.Module, forms: Mapping[str, MatrixForm]) -> Obstacle | None:
    kind = type(module)
    computed = computed_weights(module)
    taken = [name for name in forms if name not in computed and hasattr(kind, name)]
    if taken:
        reason = f"{kind.__name__} computes its {', '.join(taken)} in a property"
        return Obstacle(reason, "store it as a Parameter of that name")
    writer = writer_of(kind, forms)
    if writer is not None:
        remedy = "merge its parts for good first, or keep it in float with skip_layer_types"
        return Obstacle(
            f"{kind.__name__}.{writer} writes to its {' or '.join(forms)}, which packing would undo", remedy
        )
    occupied = [PREFIX + name for name in (*forms, "input") if hasattr(module, PREFIX + name)]
    if occupied:
        return Obstacle(f"it has a {', '.join(occupied)} of its own, where the packed weight would go", "rename it")
    unpacked = [name for name, one in computed.items() if one.hook is None and name not in forms]
    if unpacked:
        remedy = "call torch.nn.utils.parametrize.remove_parametrizations on it first"
        return Obstacle(f"a parametrization computes its {', '.join(unpacked)}, which would stay in float", remedy)
    return None
