"""Search each group's range: clipping the outermost weights can cost less than the coarser steps they would force.

The weighting by ``E[x_j^2]``, the diagonal of the layer's Hessian, is that of Optimal Brain Damage (LeCun, Denker,
Solla 1990); searching ranges by squared error is common practice (Choukroun et al. 2019, arXiv 1902.06822).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from monoquant.algorithms.base import Needs, Solution, WeightAlgorithm, WeightProblem
from monoquant.numerics.grid import Grid, nearest_codes, storable
from monoquant.numerics.grouping import row_chunks, to_groups

_SHRINKS = tuple(1 - 0.025 * step for step in range(21))


@attrs.frozen
class ClipSearch(WeightAlgorithm):
    """Try ranges from the whole of each group down to half of it, and keep the one with the least squared error.

    Errors count by ``E[x_j^2]`` of their column where calibration saw inputs, else all alike.
    """

    name: ClassVar[str] = "clip_search"
    needs: ClassVar[Needs] = Needs.SQUARES

    def solve(self, problem: WeightProblem) -> Solution:
        grid = search_grid(problem)
        rows, columns = problem.weight.shape
        codes = torch.empty(rows, columns, dtype=torch.uint8, device=problem.weight.device)
        for part in row_chunks(rows, columns):
            groups = to_groups(problem.weight[part].float(), problem.width)
            nearest = nearest_codes(
                groups, grid.scale[part, :, None], grid.zero_point[part, :, None], problem.scheme.max_code
            )
            codes[part] = nearest.flatten(1).to(torch.uint8)
        return Solution(grid.with_codes(codes, problem.scheme))


def search_grid(problem: WeightProblem) -> Grid:
    """Scale and zero_point of every group.

    Args:
        problem: The matrix, and the importance of its columns.

    Returns:
        The grid with the least error that was found, group by group.
    """
    rows, columns = problem.weight.shape
    importance = problem.importance if problem.importance is not None else problem.weight.new_ones(columns)
    weights = importance.float().view(-1, problem.width)
    found = [
        _searched(to_groups(problem.weight[part].float(), problem.width), weights, problem)
        for part in row_chunks(rows, columns)
    ]
    return Grid(torch.cat([grid.scale for grid in found]), torch.cat([grid.zero_point for grid in found]))


def _searched(groups: Tensor, importance: Tensor, problem: WeightProblem) -> Grid:
    candidates = _symmetric(groups, problem) if problem.scheme.symmetric else _asymmetric(groups, problem)
    scale, zero_point = next(candidates)
    least = _noise(groups, importance, scale, zero_point, problem)
    for offered_scale, offered_zero_point in candidates:
        noise = _noise(groups, importance, offered_scale, offered_zero_point, problem)
        better = noise < least
        least = torch.where(better, noise, least)
        scale = torch.where(better, offered_scale, scale)
        zero_point = torch.where(better, offered_zero_point, zero_point)
    return Grid(scale.squeeze(-1), zero_point.squeeze(-1))


def _noise(groups: Tensor, importance: Tensor, scale: Tensor, zero_point: Tensor, problem: WeightProblem) -> Tensor:
    codes = nearest_codes(groups, scale, zero_point, problem.scheme.max_code)
    return codes.sub_(zero_point).mul_(scale).sub_(groups).square_().mul_(importance).sum(-1, keepdim=True)


def _asymmetric(groups: Tensor, problem: WeightProblem) -> Iterator[tuple[Tensor, Tensor]]:
    low, high = groups.amin(-1, keepdim=True).clamp_max_(0), groups.amax(-1, keepdim=True).clamp_min_(0)
    largest = problem.scheme.max_code
    for shrink in _SHRINKS:
        scale = storable((high / largest - low / largest) * shrink, problem.scheme.scale_dtype)
        yield scale, (low * -shrink / scale).round_().clamp_(0, largest)


def _symmetric(groups: Tensor, problem: WeightProblem) -> Iterator[tuple[Tensor, Tensor]]:
    low, high = groups.amin(-1, keepdim=True).clamp_max_(0), groups.amax(-1, keepdim=True).clamp_min_(0)
    signed = torch.where(-low >= high, -low, -high)
    middle = torch.full_like(signed, problem.scheme.middle_code)
    for shrink in _SHRINKS:
        scale = storable(signed * (shrink / problem.scheme.middle_code), problem.scheme.scale_dtype)
        yield scale, middle
        yield -scale, middle
