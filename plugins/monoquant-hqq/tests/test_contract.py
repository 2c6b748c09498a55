"""The contract of every algorithm, with the objective of this one."""

from __future__ import annotations

import monoquant as mq
from monoquant.testing import AlgorithmConformance
from torch import Tensor

from monoquant_hqq import Hqq


class TestHqq(AlgorithmConformance):
    algorithm = Hqq()
    worst_factor = 1.0

    def objective(self, problem: mq.WeightProblem, error: Tensor) -> float:
        return float(error.abs().pow(self.algorithm.norm).sum())
