"""What a whole run collects of a model's inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from monoquant.algorithms.base import Needs, Solution, WeightAlgorithm, WeightProblem
from monoquant.algorithms.round_to_nearest import RoundToNearest
from monoquant.statistics.collector import RowStatistics

Found = dict[tuple[str, str], Sequence[RowStatistics]]


class Curious(WeightAlgorithm):
    """Wants all of H."""

    name = "curious"
    needs = Needs.HESSIAN

    def solve(self, problem: WeightProblem) -> Solution:
        return RoundToNearest().solve(problem)


class Modest(Curious):
    """Wants its diagonal."""

    name = "modest"
    needs = Needs.SQUARES


@attrs.frozen(eq=False)
class Peek(mq.Pass):
    """Looks at what is known of every weight that was watched."""

    found: Found = attrs.field(factory=dict)

    def run(self, context: mq.QuantContext) -> None:
        for one in context.watched_weights():
            self.found[one.layer, one.name] = context.input_statistics(one.layer, one.name)


def run_all(model: nn.Module, calls: Sequence[Any]) -> None:
    for call in calls:
        model(*call) if isinstance(call, tuple) else model(call)


@pytest.fixture(scope="session")
def collect() -> Callable[..., Found]:
    """``collect(model, *calls)``: statistics of all calls' inputs, by layer and weight; nothing is held out."""

    def collected(model: nn.Module, *calls: Any, full: bool = True, run: Any = run_all, **options: Any) -> Found:
        peek = Peek()
        pack = mq.Int4PackPass(group_size=32, algorithm=Curious() if full else Modest())
        calibration = mq.CalibrationPass([calls], forward=run, **options)
        mq.Quantizer([mq.SkipSelectionPass(), calibration, pack, peek]).run(model)
        return peek.found

    return collected


@pytest.fixture(scope="session")
def assert_moments() -> Callable[[RowStatistics, Tensor], None]:
    """``assert_moments(part, rows)``: the part's moments are those of the rows, in whatever order they came."""

    def check(part: RowStatistics, rows: Tensor) -> None:
        exact = rows.reshape(-1, rows.shape[-1]).double()
        hessian = exact.T @ exact / len(exact)
        size = float(hessian.diagonal().mean())
        assert part.moments.rows == len(exact)
        torch.testing.assert_close(part.moments.importance.double(), hessian.diagonal(), rtol=1e-4, atol=1e-4 * size)
        torch.testing.assert_close(part.moments.mean.double(), exact.mean(0), rtol=1e-4, atol=1e-4 * size**0.5)
        if part.moments.full:
            torch.testing.assert_close(part.moments.hessian.double(), hessian, rtol=1e-4, atol=1e-4 * size)

    return check
