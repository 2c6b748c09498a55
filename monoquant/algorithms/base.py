"""What an algorithm is: it chooses the codes of a clean matrix."""

from __future__ import annotations

import abc
import enum
from typing import ClassVar

import attrs
from torch import Tensor

from monoquant.numerics.affine import GroupCodes
from monoquant.values import Scheme


class Needs(enum.IntEnum):
    """What an algorithm wants to know of a weight's inputs x."""

    NOTHING = 0
    SQUARES = 1
    """``E[x_j^2]`` of each column."""
    HESSIAN = 2
    """``E[x x^T]``."""


@attrs.frozen(eq=False)
class WeightProblem:
    """A matrix to find codes for. The caller has seen to shapes, dtypes, ragged groups and columns without inputs.

    Args:
        weight: float32 ``[rows, columns]``, finite; float64 where the model's weight is. ``columns`` is a multiple of
            ``width``: a ragged last group is padded with zeros.
        width: Columns per group.
        scheme: Bits, symmetry and scale dtype.
        importance: float32 ``[columns]``, ``E[x_j^2]``, all positive; None if inputs are not known.
        hessian: float32 ``[columns, columns]``, ``E[x x^T]``, its diagonal positive; None if it was not asked for.
        samples: Input rows the statistics are of; 0 without.
        weighted: Whether those rows counted by how much they matter to the model's output.
    """

    weight: Tensor
    width: int
    scheme: Scheme
    importance: Tensor | None = None
    hessian: Tensor | None = None
    samples: int = 0
    weighted: bool = False


@attrs.frozen(eq=False)
class Solution:
    """Codes for a matrix.

    Args:
        codes: uint8 codes ``[rows, columns]``; scale in the scheme's dtype, finite and not zero, and uint8 zero_point,
            both ``[rows, groups]``.
        fallback: Why the codes are round_to_nearest's instead; empty where they are the algorithm's own.
    """

    codes: GroupCodes
    fallback: str = ""


class WeightAlgorithm(abc.ABC):
    """Base of all algorithms: a frozen value without state, so that equal problems have equal solutions.

    ``monoquant.testing.AlgorithmConformance`` tests what is asked of one.
    """

    name: ClassVar[str]
    """What reports call it."""
    needs: ClassVar[Needs] = Needs.NOTHING
    """What it wants to know of the inputs; where nothing is known, round_to_nearest is used, and a finding says so."""

    scales_inputs: ClassVar[bool] = False
    """Whether :meth:`input_scale` may return something."""

    @property
    def weighs_rows(self) -> bool:
        """Whether input rows are to count by how much they matter to the model's output; takes a backward pass."""
        return False

    def input_scale(self, problem: WeightProblem) -> Tensor | None:
        """Choose factors of columns, which make the matrix easier to code; asked only where they can be undone exactly.

        The matrix that :meth:`solve` is given afterwards has them in it, and its inputs are divided by them.

        Args:
            problem: Rows that meet the same inputs, a sample of them where they are many; not to be written to.

        Returns:
            float32 ``[columns]``, positive and finite; None (default) for none.
        """
        return None

    @abc.abstractmethod
    def solve(self, problem: WeightProblem) -> Solution:
        """Choose codes.

        Args:
            problem: The matrix; not to be written to.
        """
