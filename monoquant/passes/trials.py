"""Models on trial: built as they would be shipped, and judged by a function of the caller's."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from monoquant.context import QuantContext
from monoquant.conversion import convert_in_place, copy_without_weights
from monoquant.errors import InputError
from monoquant.modules.packed_layer import PackedLayer, Represented
from monoquant.modules.packed_weight import PackedWeight
from monoquant.passes.pack import Represent
from monoquant.report.tradeoff import Evaluation
from monoquant.values import AnyScheme
from monoquant.weighing import Weighed

Evaluate = Callable[[nn.Module], float]
"""Judges a model; higher is better."""
_FINEST = 0.02
"""Models that differ by fewer bits per weight are not told apart by evaluating them."""


class Trials:
    """Builds and judges models of different precision.

    Args:
        context: Of the run.
        weighed: What layers could become.
        represent: What packs a weight, by what it is packed to.

    Attributes:
        evaluations: Models that were judged, in order, the float one first.
    """

    def __init__(self, context: QuantContext, weighed: Weighed, represent: Mapping[str, Represent]) -> None:
        self._context, self._weighed, self._represent = context, weighed, represent
        self.evaluations: list[Evaluation] = []

    def search(self, evaluate: Evaluate, tolerated_drop: float, most: int) -> list[int]:
        """The cheapest model whose value is good enough, by bisection of the curve.

        Args:
            evaluate: Judges a model.
            tolerated_drop: How far below the float model's value is good enough.
            most: Most evaluations.

        Returns:
            Index of an option per unit; the best one there is if none is good enough.
        """
        # A copy, because what a function does to a model (moves it, casts it) cannot be undone.
        value = _value(evaluate, copy_without_weights(self._context.model, {}).eval())
        self.evaluations.append(Evaluation(self._float_bits(), value, accepted=True))
        wanted, path = value - tolerated_drop, self._weighed.path()
        if self._passes(path[0], evaluate, wanted) or len(path) == 1:
            return path[0]
        low, high = 0, len(path) - 1
        while len(self.evaluations) < most - 1:
            middle = self._between(path, low, high)
            if middle is None:
                break
            low, high = (low, middle) if self._passes(path[middle], evaluate, wanted) else (middle, high)
        if high == len(path) - 1:
            self._passes(path[high], evaluate, wanted)
        return path[high]

    def _passes(self, choice: Sequence[int], evaluate: Evaluate, wanted: float) -> bool:
        value = _value(evaluate, self._model(choice))
        self.evaluations.append(Evaluation(self._weighed.bits(choice), value, value >= wanted))
        return value >= wanted

    def _between(self, path: Sequence[list[int]], low: int, high: int) -> int | None:
        """The choice in the middle between two of them in bits; None if they hardly differ."""
        least, most = self._weighed.bits(path[low]), self._weighed.bits(path[high])
        if most - least < _FINEST or high - low < 2:
            return None
        middle = (least + most) / 2
        return min(range(low + 1, high), key=lambda index: abs(self._weighed.bits(path[index]) - middle))

    def _model(self, choice: Sequence[int]) -> nn.Module:
        """The model that a choice would become, beside the user's; it shares nothing with what will be shipped."""
        context, chosen = self._context, self._weighed.schemes(choice)
        copies: dict[int, PackedWeight] = {}
        packed: dict[str, PackedLayer] = {}
        for layer in context.quantized_layers():
            scheme = chosen.get(layer.name) or context.plan[layer.name].scheme or context.scheme
            own = {name: _copied(one, copies) for name, one in self._weights(layer.name, scheme).items()}
            packed[layer.name] = context.packers[scheme.target].assembled(layer.name, scheme, own, context)
        model = copy_without_weights(context.model, {name: context.weight_names(name) for name in packed})
        convert_in_place(model, packed)
        return model.eval()

    def _weights(self, layer: str, scheme: AnyScheme) -> dict[str, Represented]:
        context = self._context
        packer = context.packers[scheme.target]
        found: dict[str, Represented] = packer.represented(layer, scheme, self._represent[scheme.target], context)
        for name, one in found.items():
            context.represented[(*context.leading(layer, name), scheme)] = one
        return found

    def _float_bits(self) -> float:
        layers = [layer for unit in self._weighed.units for layer in unit.layers]
        return 8 * max(self._context.original_weight(layer).element_size() for layer in layers)


def _copied(one: Represented, copies: dict[int, PackedWeight]) -> Represented:
    copies.setdefault(id(one.weight), copy.deepcopy(one.weight))
    biases = {name: value.clone() for name, value in one.biases.items()}
    return attrs.evolve(one, weight=copies[id(one.weight)], biases=biases)


def _value(evaluate: Evaluate, model: nn.Module) -> float:
    with torch.no_grad():
        found: Any = evaluate(model)
    number = isinstance(found, Real) or (isinstance(found, Tensor) and found.numel() == 1)
    value = float(found) if number else math.nan
    if not math.isfinite(value):
        raise InputError(f"evaluate(model) returned {found!r}: return a finite number, higher is better")
    return value
