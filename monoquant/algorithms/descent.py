"""Coordinate descent on codes: change one column after the other to its optimum, all others held.

A row with error ``e = w - dequantized`` costs ``e H e^T``, which no step raises. As in greedy coordinate descent for
quantization (CDQuant, Nair and Suggala 2024, arXiv 2406.17542), in blocks so that most of the work is a matrix product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from monoquant.algorithms.base import WeightProblem
from monoquant.numerics.affine import GroupCodes

_BLOCK = 64


def descend(problem: WeightProblem, start: GroupCodes, hessian: Tensor, sweeps: int) -> GroupCodes:
    """Improve codes that are good already, on the grid they count on.

    Args:
        problem: The matrix.
        start: Its codes so far.
        hessian: float32 ``[columns, columns]``, damped as for choosing them.
        sweeps: How often each column is visited, those with the largest diagonal first; 0 changes nothing.

    Returns:
        Codes of no larger cost.
    """
    if not sweeps:
        return start
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    descent = _Descent(problem, start, hessian, order)
    for _ in range(sweeps):
        for first in range(0, len(order), _BLOCK):
            descent.visit(first, min(first + _BLOCK, len(order)))
    codes = descent.codes[torch.argsort(order)].T.contiguous().to(torch.uint8)
    return GroupCodes(codes, start.scale, start.zero_point)


class _Descent:
    """Columns are kept as rows here, in the order of visits, so that each step works on contiguous memory."""

    def __init__(self, problem: WeightProblem, start: GroupCodes, hessian: Tensor, order: Tensor) -> None:
        self._hessian = hessian[order][:, order]
        self._scale = start.scale.float().T.contiguous()
        self._zero_point = start.zero_point.float().T.contiguous()
        self._group_of = order // problem.width
        self._largest = problem.scheme.max_code
        self.codes = start.codes.T[order].float()
        values = problem.weight.float().T[order]
        dequantized = (self.codes - self._zero_point[self._group_of]).mul_(self._scale[self._group_of])
        self._error = values.sub_(dequantized)

    def visit(self, first: int, end: int) -> None:
        """Give some columns their best codes, one after the other."""
        rows = self._hessian[first:end]
        own = rows[:, first:end]
        diagonal = own.diagonal().unsqueeze(1)
        pull = (rows @ self._error).div_(diagonal)
        coupling = own / diagonal
        before = self.codes[first:end]
        # Most of the time is the overhead of small steps: views are made at once, and changes added up in the end.
        steps = self._scale[self._group_of[first:end]]
        best = torch.empty_like(before)
        views = zip(before.unbind(), pull.unbind(), steps.unbind(), best.unbind(), strict=True)
        for column, (code, wish, step, new) in enumerate(views):
            torch.addcdiv(code, wish, step, out=new).round_().clamp_(0, self._largest)
            change = (new - code).mul_(step)
            pull[column + 1 :].addr_(coupling[column + 1 :, column], change, alpha=-1)
        self._error[first:end] -= (best - before).mul_(steps)
        self.codes[first:end] = best
