"""Round to nearest: every weight takes the closest code of its group's range."""

from __future__ import annotations

from typing import ClassVar

import attrs

from monoquant.algorithms.base import Solution, WeightAlgorithm, WeightProblem
from monoquant.numerics.affine import round_to_nearest


@attrs.frozen
class RoundToNearest(WeightAlgorithm):
    """Each group's range is spread over all codes; nothing clips, and no data is needed."""

    name: ClassVar[str] = "round_to_nearest"

    def solve(self, problem: WeightProblem) -> Solution:
        return Solution(
            round_to_nearest(problem.weight, attrs.evolve(problem.scheme.storage, group_size=problem.width))
        )
