"""What becomes of a layer, before it is in the model."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from torch import Tensor, nn

from monoquant.modules.packed_module import PackedModule, become_packed
from monoquant.modules.packed_weight import Intended, PackedWeight
from monoquant.values import Finding


@attrs.frozen(eq=False)
class Represented:
    """A packed weight.

    Args:
        weight: Itself.
        intended: What it must hold.
        biases: Float parameters of its module that take new values along with it, by name.
        algorithm: What chose its codes, for the report; empty where nothing was chosen.
        input_rows: Calibration input rows they were fitted to, the fewest of all its rows; None if none were asked for.
        findings: What a person should know of that.
    """

    weight: PackedWeight
    intended: Intended
    biases: Mapping[str, Tensor] = attrs.field(factory=dict)
    algorithm: str = ""
    input_rows: int | None = None
    findings: tuple[Finding, ...] = ()


@attrs.frozen(eq=False)
class PackedLayer:
    """A layer's packed weights, not yet in the model.

    Args:
        weights: Packed weights by parameter name; the same object for weights that are tied.
        mixin: What the module's class is combined with.
        extras: Further submodules by name.
        biases: Float parameters of the module that take new values, by name.
        intended: What each weight must hold.
    """

    weights: Mapping[str, PackedWeight]
    mixin: type[PackedModule] = PackedModule
    extras: Mapping[str, nn.Module] = attrs.field(factory=dict)
    intended: Mapping[str, Intended] = attrs.field(factory=dict)
    biases: Mapping[str, Tensor] = attrs.field(factory=dict)

    def put_into(self, module: nn.Module) -> None:
        """Turn the float module into the packed one, in place.

        Args:
            module: The layer's module.
        """
        become_packed(module, self.mixin, self.weights, self.extras)
        replace_parameters(module, self.biases)

    def detached(self, module: nn.Module) -> nn.Module:
        """The packed module, beside a float one that is left alone; it shares all that is not packed.

        Args:
            module: The layer's module.
        """
        twin = _shallow_copy(module)
        self.put_into(twin)
        return twin

    def detached_owner(self, owner: nn.Module, name: str) -> nn.Module:
        """A module that contains the layer, with the packed one in place of the float one; both are left alone.

        Args:
            owner: The module that contains the layer.
            name: The layer's name in it.
        """
        twin = _shallow_copy(owner)
        twin._modules = {**owner._modules, name: self.detached(owner.get_submodule(name))}
        return twin


def replace_parameters(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give parameters of a module new values; the old tensors are not written to.

    Args:
        module: Changed in place.
        values: By name; shared with the module from now on.
    """
    changed = {name: _replaced(module._parameters[name], value) for name, value in values.items()}
    module._parameters = {**module._parameters, **changed}


def _replaced(parameter: nn.Parameter | None, value: Tensor) -> nn.Parameter:
    trainable = parameter is not None and parameter.requires_grad
    return nn.Parameter(value, requires_grad=trainable)


def _shallow_copy(module: nn.Module) -> nn.Module:
    twin = type(module).__new__(type(module))
    vars(twin).update(vars(module))
    return twin
