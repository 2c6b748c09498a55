"""An algorithm that breaks its contract fails the suite, in the test of the clause it breaks, and is told the way."""

from __future__ import annotations

import itertools
import re
from typing import Any, ClassVar

import attrs
import pytest
import torch

import monoquant as mq
from monoquant.testing import AlgorithmConformance

pytestmark = pytest.mark.usefixtures("unshrunk")


def suite_of(given: Any, **attributes: Any) -> AlgorithmConformance:
    """The suite as an author would write it."""
    return type("TestMine", (AlgorithmConformance,), {"algorithm": given, **attributes})()


def clauses_of(suite: Any) -> list[str]:
    return [name for name in dir(suite) if name.startswith("test_")]


@attrs.frozen
class Mine(mq.WeightAlgorithm):
    """A good algorithm, to be broken in one place each."""

    name: ClassVar[str] = "mine"
    needs: ClassVar[mq.Needs] = mq.Needs.SQUARES

    def solve(self, problem: mq.WeightProblem) -> mq.Solution:
        solution = mq.RoundToNearest().solve(problem)
        return attrs.evolve(solution, codes=self.spoilt(solution.codes, problem))

    def spoilt(self, codes: mq.GroupCodes, problem: mq.WeightProblem) -> mq.GroupCodes:
        return codes


@attrs.frozen
class Shifted(Mine):
    def spoilt(self, codes: mq.GroupCodes, problem: mq.WeightProblem) -> mq.GroupCodes:
        return attrs.evolve(codes, codes=(codes.codes + 1).clamp(max=problem.scheme.max_code))


@attrs.frozen
class Sixteen(Mine):
    def spoilt(self, codes: mq.GroupCodes, problem: mq.WeightProblem) -> mq.GroupCodes:
        return attrs.evolve(codes, codes=codes.codes + (problem.scheme.max_code == 15) * (codes.codes == 15))


@attrs.frozen
class Wide(Mine):
    def spoilt(self, codes: mq.GroupCodes, problem: mq.WeightProblem) -> mq.GroupCodes:
        return attrs.evolve(codes, codes=codes.codes.to(torch.int32))


@attrs.frozen
class Float32Scales(Mine):
    def spoilt(self, codes: mq.GroupCodes, problem: mq.WeightProblem) -> mq.GroupCodes:
        return attrs.evolve(codes, scale=codes.scale.float())


@attrs.frozen
class ZeroScales(Mine):
    def spoilt(self, codes: mq.GroupCodes, problem: mq.WeightProblem) -> mq.GroupCodes:
        return attrs.evolve(codes, scale=codes.scale * (codes.scale > 1e-3))


@attrs.frozen
class NegativeScales(Mine):
    def spoilt(self, codes: mq.GroupCodes, problem: mq.WeightProblem) -> mq.GroupCodes:
        return attrs.evolve(codes, scale=-codes.scale)


@attrs.frozen
class OneGroup(Mine):
    def spoilt(self, codes: mq.GroupCodes, problem: mq.WeightProblem) -> mq.GroupCodes:
        return attrs.evolve(codes, scale=codes.scale[:, :1], zero_point=codes.zero_point[:, :1])


@attrs.frozen
class MovedZero(Mine):
    def spoilt(self, codes: mq.GroupCodes, problem: mq.WeightProblem) -> mq.GroupCodes:
        return attrs.evolve(codes, zero_point=codes.zero_point.clamp(max=3))


@attrs.frozen
class Lifted(Mine):
    def spoilt(self, codes: mq.GroupCodes, problem: mq.WeightProblem) -> mq.GroupCodes:
        return attrs.evolve(codes, codes=codes.codes.clamp(min=1))


@attrs.frozen
class Random(Mine):
    def spoilt(self, codes: mq.GroupCodes, problem: mq.WeightProblem) -> mq.GroupCodes:
        return attrs.evolve(codes, codes=codes.codes ^ (next(_TURNS) % 2))  # never the same twice in a row


_TURNS = itertools.count()


@attrs.frozen
class DrawsFromTorch(Mine):
    def spoilt(self, codes: mq.GroupCodes, problem: mq.WeightProblem) -> mq.GroupCodes:
        torch.rand(3)
        return codes


@attrs.frozen
class InPlace(Mine):
    def solve(self, problem: mq.WeightProblem) -> mq.Solution:
        solution = mq.RoundToNearest().solve(problem)
        problem.weight.mul_(0.5)
        return solution


@attrs.frozen
class InPlaceImportance(Mine):
    def solve(self, problem: mq.WeightProblem) -> mq.Solution:
        if problem.importance is not None:
            problem.importance.div_(problem.importance.mean() * 2)
        return mq.RoundToNearest().solve(problem)


@attrs.frozen
class NeedsInputs(Mine):
    def solve(self, problem: mq.WeightProblem) -> mq.Solution:
        return mq.RoundToNearest().solve(attrs.evolve(problem, importance=problem.importance + 1))


@attrs.frozen
class Inverts(Mine):
    needs: ClassVar[mq.Needs] = mq.Needs.HESSIAN

    def solve(self, problem: mq.WeightProblem) -> mq.Solution:
        if problem.hessian is not None:
            torch.linalg.cholesky(problem.hessian)
        return mq.RoundToNearest().solve(problem)


@attrs.frozen
class BareCodes(Mine):
    def solve(self, problem: mq.WeightProblem) -> Any:
        return mq.RoundToNearest().solve(problem).codes


@attrs.frozen
class Nameless(Mine):
    name: ClassVar[str] = ""


@attrs.frozen
class NeedsText(Mine):
    needs: ClassVar[Any] = "hessian"


@attrs.frozen
class Remembers(Mine):
    seen: list[int] = attrs.field(factory=list)


class Exchangeable(mq.WeightAlgorithm):
    name = "mine"

    def __init__(self) -> None:
        self.damping = 0.1

    def solve(self, problem: mq.WeightProblem) -> mq.Solution:
        return mq.RoundToNearest().solve(problem)


class Unequal(Mine):
    __eq__ = object.__eq__
    __hash__ = object.__hash__


@attrs.frozen
class FallsBackSilently(Mine):
    @property
    def weighs_rows(self) -> Any:
        return None


@attrs.frozen
class NoText(Mine):
    def solve(self, problem: mq.WeightProblem) -> Any:
        return attrs.evolve(mq.RoundToNearest().solve(problem), fallback=None)


@attrs.frozen
class Scales(Mine):
    scales_inputs: ClassVar[bool] = True

    def input_scale(self, problem: mq.WeightProblem) -> torch.Tensor | None:
        return problem.weight.abs().amax(0).float()


@attrs.frozen
class ScalesInSecret(Mine):
    def input_scale(self, problem: mq.WeightProblem) -> torch.Tensor | None:
        return torch.ones(problem.weight.shape[1])


@attrs.frozen
class ScalesAtRandom(Scales):
    def input_scale(self, problem: mq.WeightProblem) -> torch.Tensor | None:
        return torch.full((problem.weight.shape[1],), float(next(_TURNS) + 1))


@attrs.frozen
class ScalesSometimes(Scales):
    def input_scale(self, problem: mq.WeightProblem) -> torch.Tensor | None:
        return None if next(_TURNS) % 2 else torch.ones(problem.weight.shape[1])


STORED, FROZEN = "test_codes_can_be_stored", "test_it_is_a_frozen_value"
BROKEN: list[tuple[Any, str, str]] = [
    (Sixteen, STORED, "a code of 1[6-9]|a code of 30.*GroupCodes"),
    (Wide, STORED, "dtypes .*int32.*GroupCodes"),
    (Float32Scales, STORED, "dtypes .*float32.*GroupCodes"),
    (ZeroScales, STORED, "scales that are zero.*GroupCodes"),
    (NegativeScales, STORED, "negative scales in an asymmetric scheme.*GroupCodes"),
    (OneGroup, STORED, "shapes .*GroupCodes"),
    (MovedZero, STORED, "zero_points other than.*GroupCodes"),
    (NeedsInputs, STORED, "raised TypeError.*fallback"),
    (Inverts, STORED, "raised .*LinAlgError.*fallback"),
    (BareCodes, STORED, "returned GroupCodes.*return Solution"),
    (NoText, STORED, "fallback .* is None.*as text"),
    (Lifted, "test_zeros_stay_zero", "of a matrix of zeros.*zero_point"),
    (Random, "test_equal_problems_have_equal_solutions", "in two ways.*seed"),
    (InPlace, "test_it_writes_to_nothing", "wrote to problem.weight.*clone"),
    (InPlaceImportance, "test_it_writes_to_nothing", "wrote to problem.importance.*clone"),
    (DrawsFromTorch, "test_it_writes_to_nothing", "changed torch's random state"),
    (Shifted, "test_it_is_no_worse_than_rounding", "times as much, and 1.05 may be.*worst_factor"),
    (Scales, "test_factors_can_be_moved", "input_scale.* returned tensor.*positive, finite"),
    (ScalesInSecret, "test_factors_can_be_moved", "scales_inputs is not True.*ClassVar"),
    (ScalesAtRandom, "test_factors_can_be_moved", "scales one problem in two ways"),
    (ScalesSometimes, "test_factors_can_be_moved", "scales one problem in two ways.*seed"),
    (Nameless, "test_it_says_what_it_is_and_needs", "has the name ''.*ClassVar"),
    (NeedsText, "test_it_says_what_it_is_and_needs", "needs 'hessian'.*Needs.HESSIAN"),
    (FallsBackSilently, "test_it_says_what_it_is_and_needs", "weighs_rows .* is None.*True or False"),
    (Remembers, FROZEN, "cannot be hashed.*@attrs.frozen"),
    (Exchangeable, FROZEN, "'damping' be exchanged.*@attrs.frozen"),
    (Unequal, FROZEN, "a copy .* does not equal it.*@attrs.frozen"),
]


@pytest.mark.parametrize(("kind", "clause", "message"), BROKEN, ids=lambda one: getattr(one, "__name__", ""))
def test_a_broken_algorithm_fails_in_its_clause(kind: Any, clause: str, message: str) -> None:
    """The message says what was seen and how to repair it."""
    with pytest.raises(AssertionError) as failure:
        getattr(suite_of(kind()), clause)()
    assert re.search(message, str(failure.value), re.DOTALL), failure.value
    assert "To repair it: " in str(failure.value)


def test_an_algorithm_that_changes_its_name_is_missed_in_the_report() -> None:
    """What the report says of a run is compared with the algorithm."""

    class Renamed(mq.WeightAlgorithm):
        needs = mq.Needs.SQUARES

        def __init__(self) -> None:
            self.asked = 0

        @property
        def name(self) -> str:  # type: ignore[override]
            self.asked += 1
            return f"mine {self.asked}"

        def solve(self, problem: mq.WeightProblem) -> mq.Solution:
            return mq.RoundToNearest().solve(problem)

    with pytest.raises(AssertionError, match=r"were chosen by '.*mine \d+', not by 'mine \d+'"):
        suite_of(Renamed()).test_the_pipeline_uses_it()


def test_an_objective_of_ones_own_is_judged_by() -> None:
    """An author may say what the algorithm makes small, or how much worse it may be."""
    suite_of(Shifted(), worst_factor=1000.0).test_it_is_no_worse_than_rounding()
    suite_of(Shifted(), objective=lambda *_: 1.0).test_it_is_no_worse_than_rounding()


def test_the_good_algorithm_that_was_broken_is_good() -> None:
    """Each of the broken ones differs from this one in one place."""
    suite = suite_of(Mine(), max_examples=5)
    for name in clauses_of(suite):
        getattr(suite, name)()


def test_every_clause_is_broken_by_one_of_them() -> None:
    """A new test of the suite needs an algorithm that fails it."""
    assert {clause for _, clause, _ in BROKEN} | {"test_the_pipeline_uses_it"} == set(clauses_of(AlgorithmConformance))


@pytest.mark.parametrize("given", [None, Mine, "gptq"])
def test_what_is_no_algorithm_is_refused(given: Any) -> None:
    """Nothing, a class and a name are errors that say what to write."""
    with pytest.raises(mq.ConfigError, match="TestMine"):
        suite_of(given).test_it_is_a_frozen_value()
