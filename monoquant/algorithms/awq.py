"""AWQ: columns that large inputs meet are made larger before rounding, and their inputs smaller by as much.

Lin et al. 2023 (arXiv 2306.00978). The factors are ``rms(x_j) ** a``, for all columns that meet the same inputs; a is
searched by the noise that rounding to nearest would make.
"""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from monoquant.algorithms.base import Needs, Solution, WeightAlgorithm, WeightProblem
from monoquant.algorithms.gptq import Gptq
from monoquant.errors import ConfigError
from monoquant.numerics.affine import dequantize, round_to_nearest
from monoquant.numerics.grouping import row_chunks

_STEPS = 20
_LARGEST = 256.0


def _check_codes(_instance: Any, _attribute: Any, value: Any) -> None:
    if not isinstance(value, WeightAlgorithm) or value.scales_inputs:
        raise ConfigError(f"codes={value!r}: give an algorithm that needs no factors itself, such as ClipSearch()")


@attrs.frozen
class Awq(WeightAlgorithm):
    """Factors for input columns where they can be moved into what computes the inputs, then another algorithm's codes.

    Args:
        codes: What chooses the codes of the weights with their factors; default Gptq().
    """

    name: ClassVar[str] = "awq"
    scales_inputs: ClassVar[bool] = True

    codes: WeightAlgorithm = attrs.field(factory=Gptq, validator=_check_codes)

    @property
    def needs(self) -> Needs:  # type: ignore[override]  # depends on a setting
        """Factors need ``E[x_j^2]``, codes may need more."""
        return max(Needs.SQUARES, self.codes.needs)

    @property
    def weighs_rows(self) -> bool:
        return self.codes.weighs_rows

    def solve(self, problem: WeightProblem) -> Solution:
        return self.codes.solve(problem)

    def input_scale(self, problem: WeightProblem) -> Tensor | None:
        if problem.importance is None:
            return None
        size = problem.importance.float().sqrt()
        best, least = None, _noise(problem, torch.ones_like(size))
        for step in range(1, _STEPS + 1):
            factors = _normalised(size ** (step / _STEPS))
            noise = _noise(problem, factors)
            if noise < least:
                best, least = factors, noise
        return best


def _normalised(factors: Tensor) -> Tensor:
    """Around one, so that neither weights nor inputs leave the range of their dtype."""
    return (factors / (factors.max() * factors.min()).sqrt()).clamp(1 / _LARGEST, _LARGEST)


def _noise(problem: WeightProblem, factors: Tensor) -> float:
    """What rounding to nearest adds to the product, errors of columns being independent."""
    scheme = attrs.evolve(problem.scheme, group_size=problem.width)
    weights = problem.importance.float() / factors.square() if problem.importance is not None else factors
    total = 0.0
    for rows in row_chunks(*problem.weight.shape):
        scaled = problem.weight[rows].float() * factors
        codes = round_to_nearest(scaled, scheme)
        error = dequantize(codes.codes, codes.scale, codes.zero_point, problem.width).sub_(scaled)
        total += float(error.square_().sum(0) @ weights)
    return total
