"""Half-quadratic quantization (HQQ; Badri and Shaji 2023, mobiusml.github.io/hqq_blog), for whole zero points.

The error of a group, ``w - (q - z) * s``, is measured by its lp norm with p < 1, which forgives a few large errors. HQQ
splits the error into a sparse part e and a rest that squares measure, and takes turns: codes are the nearest ones; e is
the error, shrunk; the grid has a closed form given both. Meanwhile beta, the weight of the rest, grows.

The paper keeps s and solves for a zero point z that is any float. monoquant stores whole zero points, and for a given
scale the paper's step is of no use to them: all whole z share the grid of whole multiples of s, on which
round_to_nearest has found the nearest multiple of every weight already. However z is rounded, and codes are chosen
again, no error gets smaller. So the zero point stays, and it is the scale that is solved for here, in closed form as
well: the s with the least squared rest is ``<q - z, w - e> / <q - z, q - z>``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import attrs
import torch
from monoquant import ConfigError, GroupCodes, RoundToNearest, Scheme, Solution, WeightAlgorithm, WeightProblem
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 17
"""So many weights are worked on at once, so that what is kept of each step stays small."""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_norm(_instance: Any, _attribute: Any, value: Any) -> None:
    if not _is_number(value) or not 0 < value <= 1:
        raise ConfigError(f"norm={value!r}: give a p of lp norms, above 0 and up to 1, such as 0.7")


def _check_beta(_instance: Any, _attribute: Any, value: Any) -> None:
    if not _is_number(value) or not 0 < value < float("inf"):
        raise ConfigError(f"beta={value!r}: give a number above 0, such as 10")


def _check_growth(_instance: Any, _attribute: Any, value: Any) -> None:
    if not _is_number(value) or not 1 <= value <= 2:
        raise ConfigError(f"growth={value!r}: give a factor from 1 to 2, such as 1.01")


def _check_iterations(_instance: Any, _attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"iterations={value!r}: give a whole number >= 1")


@attrs.frozen
class Hqq(WeightAlgorithm):
    """Solve for each group's scale so that the lp norm of its error is small; zero points are round_to_nearest's.

    After each iteration the scale is rounded to the dtype it is stored in, and codes are chosen again. A group keeps
    the best scale it has met, that of round_to_nearest included, so that none gets worse by this norm. Symmetric
    schemes are solved alike: their fixed zero point is a whole one too.

    Args:
        norm: The p of the lp norm, above 0 and up to 1; default 0.7, as in the paper.
        beta: Weight of the squared rest at first, for errors in units of round_to_nearest's step; default 10. The
            paper's is for errors as they are, and so means another thing for weights of another size.
        growth: What beta is multiplied by after each iteration (kappa in the paper), 1 to 2; default 1.01.
        iterations: How often codes, sparse errors and scales take turns, >= 1; default 20. The paper's stop when a
            matrix gets worse is not needed where each group keeps its best.
    """

    name: ClassVar[str] = "hqq"

    norm: float = attrs.field(default=0.7, validator=_check_norm)
    beta: float = attrs.field(default=10.0, validator=_check_beta)
    growth: float = attrs.field(default=1.01, validator=_check_growth)
    iterations: int = attrs.field(default=20, validator=_check_iterations)

    def solve(self, problem: WeightProblem) -> Solution:
        start = RoundToNearest().solve(problem).codes
        groups, scale = problem.weight.reshape(-1, problem.width), start.scale.view(-1, 1)
        zero_point, at_once = start.zero_point.view(-1, 1), max(1, _CHUNK_ELEMENTS // problem.width)
        chunks = [slice(first, first + at_once) for first in range(0, len(groups), at_once)]
        solved = [self._solved(groups[one], scale[one], zero_point[one], problem.scheme) for one in chunks]
        codes, best = (torch.cat(tensors) for tensors in zip(*solved, strict=True))
        return Solution(GroupCodes(codes.view_as(start.codes), best.view_as(start.scale), start.zero_point))

    def _solved(self, groups: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
        # In double precision: powers below one make much of small errors, those of float32 arithmetic included.
        zero_point, first = zero_point.double(), scale.double()
        span = (-zero_point, scheme.max_code - zero_point)
        steps = groups.double() / first
        best_scale, best = scale, _nearest(steps, span)
        least = self._cost(steps - best)
        for factor in self._factors(steps, span):
            stored = (factor * first).to(scheme.scale_dtype)
            held = stored.double() / first
            nearest = _nearest(steps / held, span)
            cost = self._cost(steps - nearest * held)
            better = (cost < least) & torch.isfinite(stored) & (stored != 0)
            least = torch.where(better, cost, least)
            best_scale, best = torch.where(better, stored, best_scale), torch.where(better, nearest, best)
        return (best + zero_point).to(torch.uint8), best_scale

    def _factors(self, steps: Tensor, span: tuple[Tensor, Tensor]) -> Iterator[Tensor]:
        """The half-quadratic solver: scales relative to the first one, iteration by iteration.

        Args:
            steps: Weights in units of the first scale, ``[groups, width]``.
            span: Least and largest ``q - z`` of each group, ``[groups, 1]`` each.
        """
        factor, beta = torch.ones_like(steps[:, :1]), self.beta
        for _ in range(self.iterations):
            signed = _nearest(steps / factor, span)
            sparse = self._shrunk(steps - signed * factor, beta)
            squares = signed.square().sum(-1, keepdim=True)
            solved = (signed * (steps - sparse)).sum(-1, keepdim=True) / squares
            factor = torch.where(squares > 0, solved, factor)  # a group without any signal fits every scale
            beta *= self.growth
            yield factor

    def _shrunk(self, error: Tensor, beta: float) -> Tensor:
        """The paper's shrinkage operator: near what minimizes ``|e|^p + beta/2 (error - e)^2``."""
        size = error.abs()
        return error.sign() * (size - size.pow(self.norm - 1) / beta).clamp_min_(0)

    def _cost(self, error: Tensor) -> Tensor:
        return error.abs().pow_(self.norm).sum(-1, keepdim=True)


def _nearest(steps: Tensor, span: tuple[Tensor, Tensor]) -> Tensor:
    return steps.round().clamp_(*span)
