"""A module whose weights are packed, and how one becomes such a module and a float one again while staying itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from monoquant.errors import InputError
from monoquant.modules.exact_buffers import ExactBuffers
from monoquant.modules.packed_weight import PackedWeight
from monoquant.modules.reparametrized import computed_weights, settle
from monoquant.modules.stacked_weight import StackedWeight, is_stack

PREFIX = "packed_"


class PackedModule(nn.Module):
    """Mixin of everything that holds packed weights.

    A packed parameter ``p`` lives in the submodule ``packed_p``; reading ``module.p`` dequantizes it, so that any code
    which reads the weight, the module's own forward included, goes on working. It takes no gradient.

    The class of a converted module is a subclass of both this mixin and the module's own class, as in torch's
    parametrizations: ``isinstance`` with either is True, methods and attributes stay.
    """

    _title: ClassVar[str] = "Packed"
    """What the name of a combined class begins with."""

    def packed_weights(self) -> dict[str, PackedWeight]:
        """Packed weights by the name of their parameter."""
        children = self._modules.items()
        return {name.removeprefix(PREFIX): child for name, child in children if isinstance(child, PackedWeight)}

    def become_float(self, parameter: Callable[[PackedWeight], nn.Parameter]) -> None:
        """Turn back into a module of the original class, with the values that were computed with.

        The weight that a parametrization once computed becomes a plain parameter.

        Args:
            parameter: Gives the float parameter of a packed weight; the same one for the same weight, to keep ties.
        """
        restored = {name: parameter(weight) for name, weight in self.packed_weights().items()}
        self.__class__ = float_class(self)  # type: ignore[assignment]  # mypy holds a class for immutable
        self._modules = {name: child for name, child in self._modules.items() if not isinstance(child, ExactBuffers)}
        buffers = {name: value.data for name, value in restored.items() if name in self._buffers}
        self._buffers = {**self._buffers, **buffers}
        self._parameters = {**self._parameters, **{name: restored[name] for name in restored if name not in buffers}}

    def _became_packed(self) -> None:
        """Adjust what the original class keeps besides its parameters; called once, after conversion."""

    def __setattr__(self, name: str, value: Any) -> None:
        self._refuse_to_change(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self._refuse_to_change(name)
        super().__delattr__(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As nn.Module does, but not in place of a packed weight."""
        self._refuse_to_change(name)
        super().register_parameter(name, param)

    def _refuse_to_change(self, name: str) -> None:
        if PREFIX + name in self.__dict__.get("_modules", ()):
            kind = type(self).__name__
            raise InputError(f"{kind}.{name} is packed and cannot be assigned to: call dequantize(model) first")

    def __reduce_ex__(self, protocol: Any) -> Any:
        made_of = getattr(type(self), "_made_of", None)
        reduced = super().__reduce_ex__(protocol)
        # Classes made at run time have no name to be found under: copies and pickles make theirs again.
        return reduced if made_of is None else (_blank, made_of, *reduced[2:])


def _blank(mixin: type[PackedModule], base: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    kind = packed_class(mixin, base, names)
    return kind.__new__(kind)


def _reader(name: str) -> property:
    attribute = PREFIX + name

    def read(module: nn.Module) -> Tensor | StackedWeight:
        packed: Any = module._modules.get(attribute)
        if packed is None:  # a new object of the class, such as a slice of a ParameterList, has none yet
            raise AttributeError(name)
        if is_stack(packed):
            return StackedWeight(packed)
        weight: Tensor = packed.dequantize()
        return weight

    return property(read, doc=f"The dequantized {name}, computed on each access.")


def packed_class(mixin: type[PackedModule], base: type[nn.Module], names: tuple[str, ...]) -> type[PackedModule]:
    """The class that a module of class ``base`` takes when some of its parameters are packed.

    Args:
        mixin: PackedModule, or a subclass that brings a forward of its own.
        base: The module's class.
        names: The packed parameters.

    Returns:
        ``mixin`` itself where it is a complete class for ``base`` already, such as Int4Linear for nn.Linear.
    """
    parts: tuple[Any, ...] = (mixin, base, names)
    return _combined_class(*parts)


@functools.cache  # a pure function; equal classes must be one class, or isinstance would tell copies apart
def _combined_class(mixin: Any, base: Any, names: tuple[str, ...]) -> type[PackedModule]:
    complete: type[PackedModule] = mixin
    if issubclass(mixin, base) and all(isinstance(getattr(mixin, name, None), property) for name in names):
        return complete
    readers: dict[str, Any] = {name: _reader(name) for name in names if not hasattr(mixin, name)}
    made_of = (mixin, base, names)
    namespace = {**readers, "_made_of": made_of, "__doc__": base.__doc__, "__module__": base.__module__}
    made: type[PackedModule] = type(f"{mixin._title}{base.__name__}", (mixin, base), namespace)
    return made


def float_class(module: nn.Module) -> type[nn.Module]:
    """The class that a packed module had before.

    Args:
        module: A PackedModule.
    """
    kinds = (kind for kind in type(module).__mro__ if issubclass(kind, nn.Module))
    return next(kind for kind in kinds if not issubclass(kind, PackedModule))


def is_trainable(module: nn.Module, name: str) -> bool:
    """Whether a weight of a float module takes gradients; True where it is computed, or gone already.

    Args:
        module: The module.
        name: The weight's name.
    """
    parameter = module._parameters.get(name)
    return parameter is None or parameter.requires_grad


def become_packed(
    module: nn.Module,
    mixin: type[PackedModule],
    weights: Mapping[str, PackedWeight],
    extras: Mapping[str, nn.Module],
) -> None:
    """Turn a float module into a packed one in place: same object, hooks, flags and attributes.

    Changing the class of the live object (as torch does for lazy modules and parametrizations) keeps every reference
    to the module valid, also those outside the module tree.

    Args:
        module: The module; what computes one of the weights (a parametrization, say) is removed.
        mixin: What its class is to be combined with.
        weights: Packed weights by parameter name.
        extras: Further submodules by name, such as the input quantizer of a static layer.
    """
    for name, weight in weights.items():
        weight.was_trainable &= is_trainable(module, name)
    for name, computed in computed_weights(module).items():
        if name in weights:
            settle(module, computed)
    kind = packed_class(mixin, type(module), tuple(sorted(weights)))
    module.__class__ = kind
    # None keeps the place: a parameter that comes back stands where it stood in parameters() and state_dict().
    for table in ("_parameters", "_buffers"):
        held = getattr(module, table)
        setattr(module, table, {name: None if name in weights else value for name, value in held.items()})
    added = {PREFIX + name: weight for name, weight in weights.items()}
    for child in (*added.values(), *extras.values()):
        child.train(module.training)
    module._modules = {**module._modules, **added, **extras}
    kind._became_packed(module)  # type: ignore[arg-type]  # its class says so since a moment ago
