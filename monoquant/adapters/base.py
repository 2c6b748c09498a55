"""What an adapter is: it knows how modules of some kind hold their weights, and how they run when those are packed."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Literal

import attrs
import torch
from torch import Tensor, nn

from monoquant.modules.packed_module import PackedModule
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.values import PACKABLE_DTYPES, AnyScheme


@attrs.frozen
class Obstacle:
    """Why a module cannot be packed.

    Args:
        reason: What is in the way.
        remedy: What would make it possible; empty where nothing would.
    """

    reason: str
    remedy: str = ""


class ModuleAdapter(abc.ABC):
    """Base of all adapters. Subclass it to teach monoquant a kind of module; :class:`ParameterAdapter` often suffices.

    Packed parameters are replaced by properties that dequantize (see :class:`PackedModule`), so that a module's own
    forward goes on working; an adapter that knows a better way gives a ``mixin`` with a forward of its own.
    """

    takes_rows = False
    """Whether a call is one product of the last axis of its input with one weight, as in a Linear."""

    def row_order(self, module: nn.Module) -> Literal["kept", "swapped"] | None:
        """In which order a call multiplies the vectors of its first argument ``[a, b, ..., features]``.

        Args:
            module: A module that can be packed.

        Returns:
            ``"kept"``: as they are there, the default of adapters that take rows. ``"swapped"``: b before a. None, the
            default of others: not known.
        """
        return "kept" if self.takes_rows else None

    multiplies = True
    """Whether inputs are multiplied with the weights; False where rows are looked up."""

    def bias_of(self, module: nn.Module, weight: str) -> str | None:
        """The parameter that is added to a weight's product, one number per row of the weight as a matrix.

        Args:
            module: A module that can be packed.
            weight: Name of one of its weights.

        Returns:
            Its name; None (default) where there is none, or where that is not known.
        """
        return None

    def read_by_owner(self, module: nn.Module) -> bool:
        """Whether the module that contains this one reads its weight instead of calling it.

        Args:
            module: A module that can be packed.
        """
        return False

    @abc.abstractmethod
    def claims(self, module: nn.Module) -> bool:
        """Whether this adapter is the one for a module.

        Args:
            module: A module that owns parameters; meta tensors are fine.
        """

    @abc.abstractmethod
    def forms(self, module: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, MatrixForm] | Obstacle:
        """Which weights can be packed, and how each is a matrix.

        Args:
            module: A module that this adapter claims.
            weights: What the module reads as ``module.name``: its parameters, and the weights that parametrizations
                compute for it. Meta tensors are fine.

        Returns:
            Forms by name, at least one; or what is in the way.
        """

    def mixin(self, module: nn.Module, scheme: AnyScheme) -> type[PackedModule]:
        """What the module's class is combined with.

        Args:
            module: A module that can be packed.
            scheme: The representation of its weights.

        Returns:
            PackedModule (default), or a subclass that brings a forward of its own.
        """
        return PackedModule

    def compute(self, module: nn.Module, scheme: AnyScheme) -> str:
        """How the packed module will run, for the report; ``{size}`` stands for the bytes of its float weights.

        Args:
            module: A module that can be packed.
            scheme: The representation of its weights.
        """
        return "dequantizes {size} on each call"

    def caveat(self, module: nn.Module) -> str:
        """What a person should know before trusting the adapter with a module; empty (default) for nothing.

        Args:
            module: A module that can be packed.
        """
        return ""

    def integer_obstacle(self, module: nn.Module, forms: Mapping[str, MatrixForm]) -> str | None:
        """What keeps the module from multiplying integers.

        Args:
            module: A module that can be packed.
            forms: What :meth:`forms` said of it.

        Returns:
            The reason; None if nothing does, which needs a mixin derived from IntegerCompute.
        """
        return f"{type(module).__name__} has no integer product"

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def obstacle_in_tensor(name: str, weight: Tensor) -> Obstacle | None:
    """What keeps a tensor from being packed, whatever module it is in.

    Args:
        name: Its name, for the text.
        weight: The tensor.
    """
    if weight.numel() == 0:
        return Obstacle(f"its {name} is empty")
    if weight.layout != torch.strided:
        return Obstacle(f"its {name} is stored as {weight.layout}", "call to_dense() on it first")
    if weight.dtype not in PACKABLE_DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in PACKABLE_DTYPES)
        return Obstacle(f"its {name} has dtype {weight.dtype}", f"convert it to one of {allowed} first")
    return None


def has_own_forward(module: nn.Module, known: type[nn.Module]) -> bool:
    """Whether a module computes something else than the class that an adapter knows.

    Args:
        module: An instance of ``known`` or of a subclass.
        known: The class.
    """
    kind = type(module)
    return kind.forward is not known.forward or "forward" in vars(module) or kind.__call__ is not nn.Module.__call__


def plain_bias(module: nn.Module, known: type[nn.Module], name: str = "bias") -> str | None:
    """The name of a parameter that a module adds to a product as the class that an adapter knows does.

    Args:
        module: The module.
        known: The class.
        name: Of the parameter; default ``"bias"``.

    Returns:
        None where it has none, where something computes it, or where its forward may do something else with it.
    """
    return name if module._parameters.get(name) is not None and not has_own_forward(module, known) else None


def torch_class(module: nn.Module) -> type[nn.Module]:
    """The class of torch's that a module is, or is derived from.

    Args:
        module: An instance of a class of ``torch.nn``, or of a subclass.
    """
    kinds = (kind for kind in type(module).__mro__ if issubclass(kind, nn.Module))
    return next(kind for kind in kinds if kind.__module__.startswith("torch.nn."))
