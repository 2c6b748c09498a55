"""From any matrix to the clean problem that algorithms solve, and back; what they return is checked here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from monoquant.algorithms.base import Needs, Solution, WeightAlgorithm, WeightProblem
from monoquant.errors import PassError
from monoquant.numerics.affine import GroupCodes
from monoquant.numerics.grouping import group_count
from monoquant.values import Scheme

_UNSEEN = 1e-4
"""Importance of a column that calibration never used, relative to the mean: data to come may use it."""


@attrs.frozen(eq=False)
class InputStatistics:
    """What is known of the inputs of a matrix.

    Args:
        samples: Input rows, > 0.
        importance: ``E[x_j^2]``, ``[columns]``, >= 0 and not all zero.
        hessian: ``E[x x^T]``, ``[columns, columns]``; None if it was not collected.
        weighted: Whether rows counted by how much they matter.
    """

    samples: int
    importance: Tensor
    hessian: Tensor | None = None
    weighted: bool = False


def solve(algorithm: WeightAlgorithm, matrix: Tensor, scheme: Scheme, known: InputStatistics | None = None) -> Solution:
    """Choose the codes of a matrix.

    Args:
        algorithm: How.
        matrix: ``[rows, columns]``, any real float dtype, finite.
        scheme: Bits, group size, symmetry and scale dtype.
        known: Statistics of its inputs; None if there are none.

    Returns:
        Codes of the matrix, without padding.

    Raises:
        PassError: When the algorithm returns what no packed matrix can hold.
    """
    problem = clean_problem(matrix, scheme, algorithm.needs, known)
    with _named_in_errors(algorithm):
        solution: object = algorithm.solve(problem)
    if not isinstance(solution, Solution):
        raise PassError(f"algorithm {algorithm.name!r} returned {solution!r}: return a Solution from its solve()")
    wrong = flaw(solution.codes, problem)
    if wrong:
        raise PassError(f"algorithm {algorithm.name!r} returned {wrong}: correct its solve()")
    codes = solution.codes
    return attrs.evolve(solution, codes=attrs.evolve(codes, codes=codes.codes[:, : matrix.shape[1]]))


def input_scale(algorithm: WeightAlgorithm, matrix: Tensor, scheme: Scheme, known: InputStatistics) -> Tensor | None:
    """Choose factors of columns.

    Args:
        algorithm: How.
        matrix: As for :func:`solve`: rows that meet the same inputs.
        scheme: Bits, group size, symmetry and scale dtype.
        known: Statistics of its inputs.

    Returns:
        float32 ``[columns]``, positive and finite; None for none.

    Raises:
        PassError: When the algorithm returns something else.
    """
    problem = clean_problem(matrix, scheme, algorithm.needs, known)
    with _named_in_errors(algorithm):
        found = algorithm.input_scale(problem)
    if found is None:
        return None
    given, columns = (tuple(found.shape), found.dtype), problem.weight.shape[1]
    if given != ((columns,), torch.float32) or not bool((torch.isfinite(found) & (found > 0)).all()):
        raise PassError(
            f"algorithm {algorithm.name!r} returned factors of shape {given[0]} and dtype {given[1]}, or some that are "
            f"not positive and finite, for {columns} columns: correct its input_scale()"
        )
    return found[: matrix.shape[1]]


@contextmanager
def _named_in_errors(algorithm: WeightAlgorithm) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        who = f"{type(algorithm).__module__}.{type(algorithm).__name__}"
        error.add_note(f"raised by the algorithm {algorithm.name!r}, {who}")
        raise


def clean_problem(matrix: Tensor, scheme: Scheme, needs: Needs, known: InputStatistics | None = None) -> WeightProblem:
    """What an algorithm is given for a matrix: no ragged group, no column without importance.

    Args:
        matrix: As for :func:`solve`.
        scheme: As for :func:`solve`.
        needs: What the algorithm wants to know.
        known: As for :func:`solve`.

    Returns:
        The problem, its last group padded with zeros.
    """
    width = scheme.width(matrix.shape[1])
    missing = group_count(matrix.shape[1], width) * width - matrix.shape[1]
    weight = functional.pad(matrix.to(torch.float64 if matrix.dtype == torch.float64 else torch.float32), (0, missing))
    problem = WeightProblem(weight, width, scheme)
    return problem if known is None or not needs else _with_statistics(problem, known, missing, needs)


def _with_statistics(problem: WeightProblem, known: InputStatistics, missing: int, needs: Needs) -> WeightProblem:
    importance = functional.pad(known.importance.to(problem.weight.device, torch.float32), (0, missing))
    floor = importance.mean() * _UNSEEN
    raised = importance.clamp_min(floor)
    hessian = None
    if needs is Needs.HESSIAN and known.hessian is not None:
        hessian = functional.pad(known.hessian.to(problem.weight.device, torch.float32), (0, missing, 0, missing))
        hessian.diagonal().copy_(raised)
    return attrs.evolve(problem, importance=raised, hessian=hessian, samples=known.samples, weighted=known.weighted)


def flaw(codes: GroupCodes, problem: WeightProblem) -> str:
    """What keeps codes from being packed.

    Args:
        codes: What an algorithm returned.
        problem: The matrix they are to stand for.

    Returns:
        A text that continues "returned"; empty where all is well.
    """
    rows, columns = problem.weight.shape
    groups = (rows, columns // problem.width)
    shapes = (tuple(codes.codes.shape), tuple(codes.scale.shape), tuple(codes.zero_point.shape))
    if shapes != ((rows, columns), groups, groups):
        return f"shapes {shapes} for codes, scale and zero_point of a {rows} x {columns} matrix"
    dtypes = (codes.codes.dtype, codes.scale.dtype, codes.zero_point.dtype)
    if dtypes != (torch.uint8, problem.scheme.scale_dtype, torch.uint8):
        return f"dtypes {dtypes} for codes, scale and zero_point"
    largest = max(int(codes.codes.max()), int(codes.zero_point.max()))
    if largest > problem.scheme.max_code:
        return f"a code of {largest}, which is more than {problem.scheme.max_code}"
    if not bool((torch.isfinite(codes.scale) & (codes.scale != 0)).all()):
        return "scales that are zero, NaN or Inf"
    if not problem.scheme.symmetric and bool((codes.scale < 0).any()):
        return "negative scales in an asymmetric scheme"
    if problem.scheme.symmetric and bool((codes.zero_point != problem.scheme.middle_code).any()):
        return f"zero_points other than {problem.scheme.middle_code} in a symmetric scheme"
    return ""
