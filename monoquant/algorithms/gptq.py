"""GPTQ: round columns one by one, and let each make up for the errors of those before it.

Frantar et al. 2022 (arXiv 2210.17323), in the form of LDLQ (Chee et al. 2023, arXiv 2307.13304, which shows that both
round alike): with ``H = U D U^T``, U unit upper triangular, column j is rounded after the errors of the columns before
it, times ``U[:, j]``, were added. One Cholesky factor, and nothing is inverted.
"""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from monoquant.algorithms.base import Needs, Solution, WeightAlgorithm, WeightProblem
from monoquant.algorithms.clip_search import search_grid
from monoquant.algorithms.descent import descend
from monoquant.algorithms.round_to_nearest import RoundToNearest
from monoquant.errors import ConfigError, require_flag
from monoquant.numerics.affine import GroupCodes
from monoquant.numerics.grid import Grid

_BLOCK = 64
_ATTEMPTS = 4
_LEAST_DAMPING, _MOST_DAMPING, _DAMPING_PER_COLUMN = 0.01, 0.5, 0.1


def _check_damping(_instance: Any, _attribute: Any, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and 0 < value < 1):
        raise ConfigError(f"damping={value!r}: give a fraction of the mean of the Hessian's diagonal, such as 0.01")


def _check_sweeps(_instance: Any, _attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"sweeps={value!r}: give a whole number >= 0")


def _check_weigh_rows(_instance: Any, attribute: Any, value: Any) -> None:
    require_flag(attribute.name, value)


@attrs.frozen
class Gptq(WeightAlgorithm):
    """Columns in order of ``E[x_j^2]``, groups fixed before (so nothing is needed at run time), ranges searched first.

    Args:
        damping: Fraction of the mean of the Hessian's diagonal that is added to it; default: by the number of rows.
        sweeps: Sweeps of coordinate descent afterwards, see :mod:`monoquant.algorithms.descent`; default 1.
        weigh_rows: Whether input rows count by the norm of their gradient, found by going backward through the model
            for random directions of its output; default True. Where there is no gradient, rows count alike.
    """

    name: ClassVar[str] = "gptq"
    needs: ClassVar[Needs] = Needs.HESSIAN

    damping: float | None = attrs.field(default=None, validator=_check_damping)
    sweeps: int = attrs.field(default=1, validator=_check_sweeps)
    weigh_rows: bool = attrs.field(default=True, validator=_check_weigh_rows)

    @property
    def weighs_rows(self) -> bool:
        return self.weigh_rows

    def solve(self, problem: WeightProblem) -> Solution:
        if problem.hessian is None:
            return RoundToNearest().solve(problem)
        damping = _damping_for(problem) if self.damping is None else self.damping
        feedback = _factored(problem.hessian, damping)
        if feedback is None:
            found = RoundToNearest().solve(problem)
            return attrs.evolve(found, fallback="its Hessian cannot be factored, whatever is added to its diagonal")
        # An error of a column that those after it make up for costs less; unless rows are weighted, that neglects rows
        # that matter most, such as attention sinks.
        searched = attrs.evolve(problem, importance=feedback.cost) if problem.weighted else problem
        codes = _rounded(problem, search_grid(searched), feedback)
        return Solution(descend(problem, codes, feedback.hessian, self.sweeps))


@attrs.frozen(eq=False)
class _Feedback:
    """What rounding needs of a Hessian: the damped one, the order of columns, U in that order, and D as stored."""

    hessian: Tensor
    order: Tensor
    factor: Tensor
    cost: Tensor


def _damping_for(problem: WeightProblem) -> float:
    wanted = _DAMPING_PER_COLUMN * problem.weight.shape[1] / max(problem.samples, 1)
    return min(max(wanted, _LEAST_DAMPING), _MOST_DAMPING)


def _factored(hessian: Tensor, damping: float) -> _Feedback | None:
    diagonal = hessian.diagonal()
    order = torch.argsort(diagonal, descending=True, stable=True)
    backwards = order.flip(0)
    for attempt in range(_ATTEMPTS):
        damped = hessian.clone()
        damped.diagonal().add_(min(damping * 10**attempt, 1.0) * diagonal.mean())
        lower, failed = torch.linalg.cholesky_ex(damped[backwards][:, backwards])
        if not failed and bool(torch.isfinite(lower).all()):
            # Reversed back, the lower factor of the reversed matrix is an upper one.
            root = lower.diagonal()
            cost = torch.empty_like(diagonal).index_copy_(0, backwards, root.square())
            return _Feedback(damped, order, (lower / root).flip(0, 1), cost)
    return None


def _rounded(problem: WeightProblem, grid: Grid, feedback: _Feedback) -> GroupCodes:
    # Columns are kept as rows here, so that each step works on contiguous memory.
    values = problem.weight.float().T[feedback.order]
    errors, codes = torch.zeros_like(values), torch.empty_like(values, dtype=torch.uint8)
    scale, zero_point = grid.scale.T.contiguous(), grid.zero_point.T.contiguous()
    group_of = (feedback.order // problem.width).tolist()
    factor, largest = feedback.factor, problem.scheme.max_code
    for start in range(0, len(values), _BLOCK):
        stop = min(start + _BLOCK, len(values))
        wanted = torch.addmm(values[start:stop], factor[:start, start:stop].T, errors[:start])
        for column in range(start, stop):
            target, group = wanted[column - start], group_of[column]
            if column > start:
                target.addmv_(errors[start:column].T, factor[start:column, column])
            code = (target / scale[group]).round_().add_(zero_point[group]).clamp_(0, largest)
            codes[column] = code
            errors[column] = values[column] - code.sub_(zero_point[group]).mul_(scale[group])
    return grid.with_codes(codes[torch.argsort(feedback.order)].T.contiguous(), problem.scheme)
