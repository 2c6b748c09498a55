"""The model of a run, read: its layers, their weights as matrices, what is tied to what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
from torch import Tensor, nn

from monoquant.adapters.base import Obstacle
from monoquant.adapters.choice import Packable, examine, readable_weights
from monoquant.errors import PassError
from monoquant.modules.packed_layer import PackedLayer
from monoquant.registry import Registry
from monoquant.rescaling import Rescaling
from monoquant.source import tensor_identity
from monoquant.values import AnyScheme, Decision, Layer


def written(phase: str, *writers: str) -> Mapping[str, Any]:
    """Metadata of a field: when passes write it, and which. A field without is nobody's concern.

    Args:
        phase: ``plan``, ``prepare`` or ``run``; ``any`` for fields that grow all the time, ``no phase`` for what stays.
        writers: Names of the classes of passes that write it, whose subclasses may as well; none: any pass. Those
            of the model run it, and restore what that writes.
    """
    return {"phase": phase, "writers": writers}


@attrs.define(eq=False)
class ModelView:
    """A model and the plan for it; reads the model, never writes to it.

    Args:
        model: The user's model.
        scheme: The scheme of the first packing pass.
        layers: Every module that owns parameters.
        registry: Rules, checks and adapters.
        plan: Decisions by layer name.
        packed: Packed layers by name.
        rescaling: Factors that were moved between parameters.
        magnitudes: Largest absolute values of weights on the meta device, by layer and weight, where they are known.
    """

    model: nn.Module = attrs.field(metadata=written("no phase", "CalibrationPass", "BudgetPass", "ValidationPass"))
    scheme: AnyScheme = attrs.field(metadata=written("no phase"))
    layers: tuple[Layer, ...] = attrs.field(metadata=written("no phase"))
    registry: Registry = attrs.field(metadata=written("no phase"))
    plan: dict[str, Decision] = attrs.field(factory=dict, init=False, metadata=written("any"))
    packed: dict[str, PackedLayer] = attrs.field(factory=dict, init=False, metadata=written("run", "PackPass"))
    rescaling: Rescaling = attrs.field(factory=Rescaling, init=False, metadata=written("run", "Int4PackPass"))
    magnitudes: Mapping[tuple[str, str], float] = attrs.field(factory=dict, kw_only=True, metadata=written("no phase"))
    _replaced_weights: dict[tuple[str, str], Tensor] = attrs.field(factory=dict, init=False, metadata=written("any"))
    _examined: dict[str, Packable | Obstacle] = attrs.field(factory=dict, init=False)
    _readable: dict[str, dict[str, Tensor]] = attrs.field(factory=dict, init=False)
    _held: Counter[tuple[object, ...]] = attrs.field(factory=Counter, init=False)

    def module(self, layer: str) -> nn.Module:
        """The live module of a layer.

        Args:
            layer: Its name.
        """
        return self.model.get_submodule(layer)

    def examine(self, layer: str) -> Packable | Obstacle:
        """Whether and how a layer can be packed, by the registered adapters.

        Args:
            layer: Its name.
        """
        if layer not in self._examined:
            adapters = [entry.value for entry in self.registry.adapters]
            try:
                self._examined[layer] = examine(self.module(layer), adapters)
            except Exception as error:
                error.add_note(f"raised on layer {layer!r}")
                raise
        return self._examined[layer]

    def packable(self, layer: str) -> Packable:
        """How a layer is packed.

        Args:
            layer: Name of a layer the plan quantizes.

        Raises:
            PassError: When it cannot be packed.
        """
        found = self.examine(layer)
        if isinstance(found, Obstacle):
            raise PassError(f"layer {layer!r} cannot be packed: {found.reason}", layers=[layer])
        return found

    def weight_names(self, layer: str) -> tuple[str, ...]:
        """Names of the parameters of a layer that are packed.

        Args:
            layer: Name of a layer the plan quantizes.
        """
        return self.plan[layer].weights if layer in self.plan else ()

    def weight(self, layer: str, name: str | None = None) -> Tensor:
        """The float weight that will be packed: the model's, unless a pass replaced it.

        Args:
            layer: Name of a layer the plan quantizes.
            name: Which of its weights; default: the first one (most layers have one).

        Returns:
            In the parameter's own shape, ``[out_features, in_features]`` for a Linear; do not write to it.
        """
        name = self._weight_name(layer, name)
        replaced = self._replaced_weights.get((layer, name))
        return self._rescaled(layer, name, self.original_weight(layer, name) if replaced is None else replaced)

    def rescaled_weight(self, layer: str, name: str) -> Tensor:
        """The model's own float weight with the factors that it was given, which the damage is measured against.

        Args:
            layer: Name of a layer the plan quantizes.
            name: Which of its weights.
        """
        return self._rescaled(layer, name, self.original_weight(layer, name))

    def _rescaled(self, layer: str, name: str, weight: Tensor) -> Tensor:
        packable = self.examine(layer)
        if isinstance(packable, Obstacle) or name not in packable.forms:
            return weight
        return self.rescaling.weight((layer, name), weight, packable.forms[name])

    def original_weight(self, layer: str, name: str | None = None) -> Tensor:
        """The model's own float weight.

        Args:
            layer: Name of a layer that has a weight.
            name: Which of its weights; default: the first one.

        Returns:
            Without gradient; where a parametrization computes the weight, as it does in eval mode.
        """
        name = self._weight_name(layer, name)
        weight = self._readable_weights(layer).get(name)
        if weight is None:
            raise PassError(f"layer {layer!r} has no weight {name!r}", layers=[layer])
        return weight

    def readable_weights(self, layer: str, names: Iterable[str]) -> list[Tensor]:
        """Some of what a layer's module reads as its weights, also before the plan is made.

        Args:
            layer: Its name.
            names: Names of the weights.
        """
        held = self._readable_weights(layer)
        return [held[name] for name in names]

    def _readable_weights(self, layer: str) -> dict[str, Tensor]:
        # Kept, because a computed weight would be another tensor each time.
        if layer not in self._readable:
            self._readable[layer] = readable_weights(self.module(layer))
        return self._readable[layer]

    def _weight_name(self, layer: str, name: str | None) -> str:
        return name or next(iter(self.weight_names(layer)), "weight")

    def replace_weight(self, layer: str, weight: Tensor, name: str | None = None) -> None:
        """Pack another tensor in place of the model's weight, also for layers that are tied to it.

        The model is not touched.

        Args:
            layer: Name of a layer that is not packed yet.
            weight: Same shape as :meth:`weight`, any real float dtype, finite.
            name: Which of its weights; default: the first one.

        Raises:
            PassError: When the layer is packed already or the shape differs.
        """
        if layer in self.packed:
            raise PassError(f"layer {layer!r} is packed already: put this pass before the packing one", layers=[layer])
        expected = tuple(self.original_weight(layer, name).shape)
        if tuple(weight.shape) != expected:
            given = tuple(weight.shape)
            raise PassError(f"weight for layer {layer!r} has shape {given}, not {expected}", layers=[layer])
        tied = self.tied_weights(layer, self._weight_name(layer, name))
        self._replaced_weights.update(dict.fromkeys(tied, weight))

    def tied_weights(self, layer: str, name: str) -> list[tuple[str, str]]:
        """All packed weights that are one tensor with a given one, itself first.

        Args:
            layer: Name of a layer the plan quantizes.
            name: Which of its weights.

        Returns:
            Pairs of layer and parameter name.
        """
        identity = tensor_identity(self.original_weight(layer, name))
        ties = next(found.ties for found in self.layers if found.name == layer)
        candidates = [(other, one) for other in (layer, *ties) for one in self.weight_names(other)]
        same = [pair for pair in candidates if tensor_identity(self.original_weight(*pair)) == identity]
        return [(layer, name), *(pair for pair in same if pair != (layer, name))]

    def leading(self, layer: str, name: str) -> tuple[str, str]:
        """The one that stands for all weights that are tied to a weight.

        Args:
            layer: Name of a layer the plan quantizes.
            name: Which of its weights.

        Returns:
            Layer and name of the first of them in model order.
        """
        order = {layer.name: index for index, layer in enumerate(self.layers)}
        return min(self.tied_weights(layer, name), key=lambda pair: order[pair[0]])

    def heard_at(self, layer: str) -> str:
        """The module whose calls show a layer's outputs: itself, unless its owner reads its weight without calling it.

        Args:
            layer: Name of a layer the plan quantizes.
        """
        owner, _, name = layer.rpartition(".")
        return owner if name and self.packable(layer).adapter.read_by_owner(self.module(layer)) else layer

    def correctable_bias(self, layer: str, name: str) -> str | None:
        """The bias that is added to a weight's product and to nothing else, so that it can make up for its error.

        Args:
            layer: Name of a layer the plan quantizes.
            name: Which of its weights.

        Returns:
            The name of the layer's parameter; None if there is none.
        """
        module = self.module(layer)
        bias = self.packable(layer).adapter.bias_of(module, name)
        held = None if bias is None else module._parameters[bias]
        if held is None or self._shares_inputs_with_another(layer, name):
            return None
        return bias if self._owners()[tensor_identity(held)] == 1 else None

    def _owners(self) -> Counter[tuple[object, ...]]:
        """How many modules hold each parameter, however many objects it is."""
        if not self._held:
            owned = (one for module in self.model.modules() for one in module._parameters.values() if one is not None)
            self._held.update(tensor_identity(one) for one in owned)
        return self._held

    def _shares_inputs_with_another(self, layer: str, name: str) -> bool:
        """Whether another layer multiplies the same weight, so that nobody tells whose inputs were seen."""
        others = (other for other, _ in self.tied_weights(layer, name) if other != layer)
        return any(self.packable(other).adapter.multiplies for other in others)

    def bias_change(self, layer: str, name: str, biases: Mapping[str, Tensor]) -> Tensor | None:
        """What the bias of a product gains.

        Args:
            layer: Name of a layer the plan quantizes.
            name: Which of its weights.
            biases: New values of the layer's parameters, by name.

        Returns:
            float64, one number per row; None for nothing.
        """
        bias = self.packable(layer).adapter.bias_of(self.module(layer), name) if biases else None
        held = None if bias is None else self.module(layer)._parameters[bias]
        if bias is None or held is None or bias not in biases:
            return None
        before = self.rescaling.parameters.get((layer, bias), held.detach())
        return biases[bias].double() - before.double()
