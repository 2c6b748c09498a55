"""Which modules behave like nn.Linear, and how one becomes an Int4Linear without changing its identity."""

from __future__ import annotations

import attrs
import torch
from torch import nn
from torch.nn.utils import parametrize

from monoquant.modules.int4_linear import Int4Linear
from monoquant.modules.packed_int4 import PackedInt4

_HARMLESS_ADDITIONS = frozenset(("reset_parameters", "extra_repr", "_abc_impl"))
_HARMFUL_SPECIALS = frozenset(("__slots__", "__getattr__", "__getattribute__", "__setattr__"))
PACKABLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@attrs.frozen
class Obstacle:
    """Why a module cannot be packed.

    Args:
        reason: What is in the way.
        remedy: What would make it possible; empty where nothing would.
    """

    reason: str
    remedy: str = ""


def obstacle_to_packing(module: nn.Module) -> Obstacle | None:
    """Tell why a module cannot become an Int4Linear.

    Args:
        module: Any module that owns parameters; meta tensors are fine.

    Returns:
        None for a Linear (or a subclass that computes what Linear computes), else the obstacle.
    """
    kind = type(module).__name__
    if not isinstance(module, nn.Linear):
        return _obstacle_of_other_kind(module, kind)
    if parametrize.is_parametrized(module):
        remedy = "call torch.nn.utils.parametrize.remove_parametrizations on it first"
        return Obstacle("its weight is computed by a parametrization", remedy)
    return _obstacle_in_code(module, kind) or _obstacle_in_tensors(module)


def _obstacle_of_other_kind(module: nn.Module, kind: str) -> Obstacle:
    if all(parameter.dim() < 2 for parameter in module.parameters(recurse=False)):
        return Obstacle(f"{kind} has no weight matrix")
    remedy = "rewrite it with nn.Linear, or name it in modules_to_not_convert to keep it in float on purpose"
    return Obstacle(f"{kind} is not an nn.Linear, and INT4 packs only those", remedy)


def _obstacle_in_code(module: nn.Linear, kind: str) -> Obstacle | None:
    if type(module).forward is not nn.Linear.forward or "forward" in vars(module):
        return Obstacle(f"{kind} has a forward of its own", "use a plain nn.Linear inside it")
    if type(module).__call__ is not nn.Module.__call__:
        return Obstacle(f"{kind} has a __call__ of its own", "use a plain nn.Linear inside it")
    if isinstance(getattr(type(module), "weight", None), property):
        return Obstacle(f"{kind} computes its weight in a property", "store the weight as a Parameter")
    added = _additions(type(module))
    if added:
        return Obstacle(
            f"{kind} adds {', '.join(added)} to nn.Linear, which a packed layer would lack",
            "use a plain nn.Linear inside it",
        )
    if module._modules:
        return Obstacle(f"{kind} contains modules: {', '.join(module._modules)}", "use a plain nn.Linear inside it")
    return None


def _additions(kind: type) -> list[str]:
    between = kind.__mro__[: kind.__mro__.index(nn.Linear)]
    names = {name for one in between for name in vars(one)} - _HARMLESS_ADDITIONS
    return sorted(name for name in names if not name.startswith("__") or name in _HARMFUL_SPECIALS)


def _obstacle_in_tensors(module: nn.Linear) -> Obstacle | None:
    tables = (module._parameters, module._buffers)
    parameters, buffers = ([name for name, value in table.items() if value is not None] for table in tables)
    tensors = sorted((*parameters, *buffers))
    if "weight" not in tensors or not set(tensors) <= {"weight", "bias"}:
        remedy = "remove the weight_norm, spectral_norm or pruning that made them so"
        return Obstacle(f"its tensors are {', '.join(tensors)} instead of weight and bias", remedy)
    if buffers:
        return Obstacle(f"its {' and '.join(buffers)} is a buffer", "make it a Parameter")
    if tuple(module.weight.shape) != (module.out_features, module.in_features):
        stated = (module.out_features, module.in_features)
        return Obstacle(f"its weight has shape {tuple(module.weight.shape)}, not {stated}", "make them agree")
    if module.weight.numel() == 0:
        return Obstacle("its weight is empty")
    if module.weight.layout != torch.strided:
        return Obstacle(f"its weight is stored as {module.weight.layout}", "call to_dense() on it first")
    if module.weight.dtype not in PACKABLE_DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in PACKABLE_DTYPES)
        return Obstacle(f"its weight has dtype {module.weight.dtype}", f"convert it to one of {allowed} first")
    return None


def become_int4(module: nn.Module, packed: PackedInt4) -> None:
    """Turn a Linear into an Int4Linear in place: same object, bias, hooks, flags and extra attributes.

    Changing the class of the live object (as torch does for lazy modules and parametrizations) keeps every reference
    to the layer valid, also those outside the module tree.

    Args:
        module: A module for which :func:`obstacle_to_packing` is None.
        packed: Its weight.
    """
    module.__class__ = Int4Linear
    packed.training = module.training
    module._parameters = {name: value for name, value in module._parameters.items() if name != "weight"}
    module._parameters.setdefault("bias", None)
    module._modules = {"packed_weight": packed}
