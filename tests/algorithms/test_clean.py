"""From any matrix to the problem that algorithms solve, and back; what a bad algorithm returns is refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import monoquant as mq
from monoquant.algorithms.base import Needs, Solution, WeightAlgorithm, WeightProblem
from monoquant.algorithms.clean import InputStatistics, solve
from monoquant.algorithms.round_to_nearest import RoundToNearest
from monoquant.numerics.affine import GroupCodes

NEEDS = (Needs.NOTHING, Needs.SQUARES, Needs.HESSIAN)


@attrs.frozen(eq=False)
class Spy(WeightAlgorithm):
    """Remembers the problem it was given, and rounds to nearest."""

    name: ClassVar[str] = "spy"

    wants: Needs = Needs.HESSIAN
    seen: list[WeightProblem] = attrs.field(factory=list)

    @property
    def needs(self) -> Needs:  # type: ignore[override]  # each spy has its own
        return self.wants

    def solve(self, problem: WeightProblem) -> Solution:
        self.seen.append(problem)
        return RoundToNearest().solve(problem)


def problem_of(
    matrix: Tensor, scheme: mq.Scheme, known: InputStatistics | None = None, wants: Needs = Needs.HESSIAN
) -> WeightProblem:
    """What an algorithm is given."""
    spy = Spy(wants)
    solve(spy, matrix, scheme, known)
    [problem] = spy.seen
    return problem


def statistics(inputs: Tensor) -> InputStatistics:
    hessian = inputs.T @ inputs / len(inputs)
    return InputStatistics(len(inputs), hessian.diagonal().clone(), hessian)


def partly_dead(rows: int, columns: int, seed: int, share: float) -> Tensor:
    """Inputs of which a share of the columns is zero, never the first one."""
    generator = torch.Generator().manual_seed(seed)
    used = torch.rand(columns, generator=generator) >= share
    used[0] = True
    return torch.randn(rows, columns, generator=generator) * used


@settings(max_examples=60)
@given(columns=st.integers(1, 70), group_size=st.none() | st.integers(1, 80), seed=st.integers(0, 2**32 - 1))
def test_ragged_groups_are_padded_with_zeros(columns: int, group_size: int | None, seed: int) -> None:
    """Columns are a multiple of the group's width, those that are no weights zero, and the codes have none of them."""
    scheme = mq.Scheme(group_size=group_size)
    matrix = torch.randn(3, columns, generator=torch.Generator().manual_seed(seed))
    inputs = statistics(partly_dead(9, columns, seed, 0.5))
    problem = problem_of(matrix, scheme, inputs)
    width = min(group_size or columns, columns)
    padded = math.ceil(columns / width) * width
    assert (problem.width, problem.scheme) == (width, scheme)
    assert problem.weight.shape == (3, padded)
    assert torch.equal(problem.weight[:, :columns], matrix)
    assert not bool(problem.weight[:, columns:].any())
    assert problem.importance.shape == (padded,)
    assert problem.hessian.shape == (padded, padded)
    codes = solve(Spy(), matrix, scheme, inputs).codes
    assert (codes.codes.shape, codes.scale.shape) == ((3, columns), (3, padded // width))


@settings(max_examples=60)
@given(columns=st.integers(1, 70), share=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_columns_without_inputs_count_a_little(columns: int, share: float, seed: int) -> None:
    """Importance is positive everywhere, as it was where there were inputs, and small where there were none."""
    known = statistics(partly_dead(20, columns, seed, share))
    problem = problem_of(torch.ones(2, columns), mq.Scheme(group_size=16), known)
    importance = problem.importance[:columns]
    assert float(problem.importance.min()) > 0
    raised = importance != known.importance
    assert torch.equal(raised, known.importance < importance)
    assert bool((importance[raised] <= known.importance.mean() / 1000).all())
    assert bool(raised[known.importance == 0].all())
    assert torch.equal(problem.hessian.diagonal(), problem.importance)
    rest = ~torch.eye(columns, dtype=torch.bool)
    assert torch.equal(problem.hessian[:columns, :columns][rest], known.hessian[rest])
    assert not bool(problem.hessian.fill_diagonal_(0)[columns:].any())
    assert problem.samples == 20


@pytest.mark.parametrize("needs", NEEDS)
def test_algorithms_get_what_they_need(needs: Needs) -> None:
    """No more than that, and nothing if nothing is known."""
    known = statistics(torch.randn(9, 8))
    problem = problem_of(torch.ones(2, 8), mq.Scheme(), known, needs)
    assert (problem.importance is not None) == (needs >= Needs.SQUARES)
    assert (problem.hessian is not None) == (needs is Needs.HESSIAN)
    assert problem.samples == (9 if needs else 0)
    without = problem_of(torch.ones(2, 8), mq.Scheme(), None, needs)
    assert (without.importance, without.hessian, without.samples) == (None, None, 0)
    diagonal_only = problem_of(torch.ones(2, 8), mq.Scheme(), attrs.evolve(known, hessian=None), needs)
    assert diagonal_only.hessian is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_problems_are_in_single_precision_at_least(dtype: torch.dtype) -> None:
    """Weights in double precision stay so; statistics are in single precision, whatever they were collected in."""
    matrix = torch.randn(3, 10).to(dtype)
    given = statistics(torch.randn(9, 10, dtype=torch.float64))
    problem = problem_of(matrix, mq.Scheme(group_size=4), given)
    assert problem.weight.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(problem.weight[:, :10], matrix.to(problem.weight.dtype))
    assert problem.importance.dtype == problem.hessian.dtype == torch.float32


def test_what_is_known_is_not_written_to() -> None:
    """Statistics are shared by many weights."""
    known = statistics(partly_dead(9, 12, seed=0, share=0.5))
    importance, hessian = known.importance.clone(), known.hessian.clone()
    problem = problem_of(torch.ones(2, 12), mq.Scheme(group_size=4), known)
    problem.hessian.zero_()
    problem.importance.zero_()
    assert torch.equal(known.importance, importance)
    assert torch.equal(known.hessian, hessian)


def with_(**fields: Callable[[Tensor], Tensor]) -> Callable[[GroupCodes], GroupCodes]:
    """Change fields of good codes."""
    return lambda codes: attrs.evolve(codes, **{name: change(getattr(codes, name)) for name, change in fields.items()})


def first(value: float) -> Callable[[Tensor], Tensor]:
    """Overwrite the first element."""

    def change(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed.view(-1)[0] = value
        return changed

    return change


FLAWS: list[tuple[str, Callable[[GroupCodes], GroupCodes], str, dict[str, Any]]] = [
    ("codes of another shape", with_(codes=lambda one: one[:, :-1]), r"shapes \(\(5, 11\), \(5, 3\), \(5, 3\)\)", {}),
    ("codes transposed", with_(codes=lambda one: one.T), r"shapes \(\(12, 5\), .* of a 5 x 12 matrix", {}),
    ("scale of another shape", with_(scale=lambda one: one[:, :1]), r"shapes .*\(5, 1\), \(5, 3\)", {}),
    ("scale with an axis more", with_(scale=lambda one: one.unsqueeze(-1)), r"shapes .*\(5, 3, 1\), \(5, 3\)", {}),
    ("zero_point of another shape", with_(zero_point=lambda one: one[0]), r"shapes .*\(5, 3\), \(3,\)\)", {}),
    ("codes of another dtype", with_(codes=lambda one: one.long()), r"dtypes \(torch\.int64", {}),
    ("codes in float", with_(codes=lambda one: one.float()), r"dtypes \(torch\.float32", {}),
    ("scale of another dtype", with_(scale=lambda one: one.float()), r"dtypes .*torch\.float32", {}),
    ("zero_point of another dtype", with_(zero_point=lambda one: one.to(torch.int8)), r"dtypes .*torch\.int8", {}),
    ("a code too large", with_(codes=first(16)), "a code of 16, which is more than 15", {}),
    ("a zero_point too large", with_(zero_point=first(200)), "a code of 200, which is more than 15", {}),
    ("a scale of zero", with_(scale=first(0)), "scales that are zero, NaN or Inf", {}),
    ("a scale that is NaN", with_(scale=first(math.nan)), "scales that are zero, NaN or Inf", {}),
    ("an infinite scale", with_(scale=first(-math.inf)), "scales that are zero, NaN or Inf", {}),
    ("a zero_point off the middle", with_(zero_point=first(7)), "zero_points other than 8", {"symmetric": True}),
    (
        "a zero_point off the middle of 8 bits",
        with_(zero_point=first(8)),
        "zero_points other than 128",
        {"symmetric": True, "bits": 8},
    ),
]


@pytest.mark.parametrize(("change", "text", "options"), [flaw[1:] for flaw in FLAWS], ids=[flaw[0] for flaw in FLAWS])
def test_wrong_returns_are_refused_by_name(
    change: Callable[[GroupCodes], GroupCodes], text: str, options: dict[str, Any]
) -> None:
    """Each thing that no packed matrix could hold is told, with the algorithm that returned it."""

    class Careless(WeightAlgorithm):
        name = "careless"

        def solve(self, problem: WeightProblem) -> Solution:
            return Solution(change(RoundToNearest().solve(problem).codes))

    with pytest.raises(mq.PassError, match=rf"algorithm 'careless' returned {text}.*correct its solve\(\)"):
        solve(Careless(), torch.randn(5, 12), mq.Scheme(group_size=4, **options))


def test_eight_bits_have_more_codes() -> None:
    """What is too large for 4 bits is not for 8."""
    scheme = mq.Scheme(8, group_size=4)
    assert int(solve(RoundToNearest(), torch.randn(5, 12), scheme).codes.codes.max()) > 15


def test_a_fallback_is_passed_on() -> None:
    """What an algorithm says of its codes reaches whoever asked for them."""

    class Modest(WeightAlgorithm):
        name = "modest"

        def solve(self, problem: WeightProblem) -> Solution:
            return attrs.evolve(RoundToNearest().solve(problem), fallback="it would rather not")

    assert solve(Modest(), torch.randn(5, 12), mq.Scheme()).fallback == "it would rather not"
    assert solve(RoundToNearest(), torch.randn(5, 12), mq.Scheme()).fallback == ""
