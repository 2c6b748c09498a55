"""Run with arbitrary factors of inputs, and compare the function of the model with what it was."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor, nn

import monoquant as mq
from monoquant.algorithms.base import Needs, Solution, WeightAlgorithm, WeightProblem
from monoquant.algorithms.round_to_nearest import RoundToNearest

WIDTH = 48


@attrs.frozen
class AnyFactors(WeightAlgorithm):
    """Factors that have nothing to do with the weights, however bad; or given ones."""

    name: ClassVar[str] = "any"
    needs: ClassVar[Needs] = Needs.SQUARES
    scales_inputs: ClassVar[bool] = True
    spread: float = 2.0
    seed: int = 0

    def solve(self, problem: WeightProblem) -> Solution:
        return RoundToNearest().solve(problem)

    def input_scale(self, problem: WeightProblem) -> Tensor | None:
        generator = torch.Generator().manual_seed(self.seed)
        return (torch.randn(problem.weight.shape[1], generator=generator) * self.spread).exp()


@attrs.frozen
class Peek(mq.Pass):
    """Keeps the context."""

    seen: list[mq.QuantContext] = attrs.field(factory=list)

    def run(self, context: mq.QuantContext) -> None:
        self.seen.append(context)


def data(*shape: int, batches: int = 3, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(16, *shape, generator=generator) for _ in range(batches)]


def context_of(model: nn.Module, batches: Any, *rules: Any, **options: Any) -> mq.QuantContext:
    """The context of a run with arbitrary factors."""
    algorithm, peek = options.pop("algorithm", AnyFactors()), Peek()
    packing = mq.Int4PackPass(algorithm=algorithm, scale_dtype=options.pop("scale_dtype", torch.float32))
    passes = [mq.SkipSelectionPass(*rules), mq.CalibrationPass(batches, **options)]
    mq.Quantizer([*passes, packing, peek]).run(model)
    return peek.seen[0]


def rescaled(model: nn.Module, context: mq.QuantContext) -> nn.Module:
    """The float model with all factors, and nothing rounded."""
    twin = copy.deepcopy(model)
    values = dict(context.rescaling.parameters)
    for layer in context.quantized_layers():
        for name in context.weight_names(layer.name):
            values[layer.name, name] = context.rescaled_weight(layer.name, name)
    for (layer, name), value in values.items():
        owner = twin.get_submodule(layer)
        owner._parameters[name] = nn.Parameter(value.to(owner._parameters[name].dtype))
    return twin


def assert_same_function(model: nn.Module, context: mq.QuantContext, inputs: Tensor, tolerance: float = 1e-5) -> None:
    with torch.no_grad():
        wanted, found = model.eval()(inputs), rescaled(model, context).eval()(inputs)
    assert (found - wanted).norm() <= tolerance * wanted.norm()


def moved(context: mq.QuantContext) -> set[str]:
    """Layers whose inputs have factors."""
    return {layer for layer, _ in context.rescaling.columns}


def reasons(context: mq.QuantContext) -> list[str]:
    return [finding.message for finding in context.findings if finding.code == "scales-not-folded"]
