"""First and second moments of the inputs that a weight is multiplied with, and a sample kept apart from them."""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor

from monoquant.observers import RowSampler

_ROWS_AT_ONCE = 8192
SAMPLE_ROWS = 256


class Moments:
    """Sums over input rows, from which the noise of any approximation of the weight follows.

    With ``H = E[x x^T]``, an error D of the weight makes noise of ``trace(D H D^T)`` on average per input row.

    Args:
        columns: Size of a row.
        full: True: all of H, ``columns ** 2`` floats. False: its diagonal.

    Attributes:
        rows: Finite rows that the sums are of.
        broken_rows: Rows with NaN or Inf, which are left out.
    """

    def __init__(self, columns: int, *, full: bool) -> None:
        self.columns, self.full = columns, full
        self.rows = self.broken_rows = 0
        self._squares: Tensor | None = None
        self._sums: Tensor | None = None
        self._held_out = RowSampler(SAMPLE_ROWS)

    @property
    def hessian(self) -> Tensor:
        """``E[x x^T]``, ``[columns, columns]``; float32, float64 where inputs are. Needs ``full`` and rows."""
        return self._mean(self._squares)

    @property
    def importance(self) -> Tensor:
        """``E[x_j^2]``, ``[columns]``."""
        squares = self._mean(self._squares)
        return squares.diagonal() if self.full else squares

    @property
    def mean(self) -> Tensor:
        """``E[x]``, ``[columns]``."""
        return self._mean(self._sums)

    @property
    def held_out(self) -> Tensor | None:
        """Rows that are not in the sums, ``[n, columns]``; None if none were kept apart."""
        return self._held_out.result()

    def add(self, inputs: Tensor) -> None:
        """Count rows in.

        Args:
            inputs: ``[n, columns]``, any real float dtype; added up in float32, float64 in float64.
        """
        for start in range(0, len(inputs), _ROWS_AT_ONCE):
            self._add(self._finite(inputs[start : start + _ROWS_AT_ONCE]))

    def hold_out(self, inputs: Tensor) -> None:
        """Keep a sample of rows apart, to measure on what was not fitted to.

        Args:
            inputs: ``[n, columns]``, any real float dtype.
        """
        self._held_out.update(self._finite(inputs))

    def merged(self, other: Moments) -> Moments:
        """Of the rows of both.

        Args:
            other: Of as many columns, and as full.
        """
        result = copy.deepcopy(self)
        for name in ("_squares", "_sums"):
            mine, theirs = getattr(result, name), getattr(other, name)
            setattr(result, name, theirs if mine is None else mine if theirs is None else mine + theirs)
        result.rows += other.rows
        result.broken_rows += other.broken_rows
        if other.held_out is not None:
            result._held_out.update(other.held_out)
        return result

    def divided(self, factors: Tensor) -> Moments:
        """Of the same rows, their columns divided.

        Args:
            factors: ``[columns]``, positive.
        """
        result = copy.copy(self)
        if self._squares is not None and self._sums is not None:
            by = factors.to(self._squares)
            result._squares = self._squares / (torch.outer(by, by) if self.full else by.square())
            result._sums = self._sums / by
        result._held_out = self._held_out.mapped(lambda rows: rows / factors.to(rows))
        return result

    def copied(self) -> Self:
        """With sums of its own."""
        return copy.deepcopy(self)

    def _finite(self, rows: Tensor) -> Tensor:
        working = rows.to(torch.float64 if rows.dtype == torch.float64 else torch.float32)
        # One sum tells whether all is finite; only then are rows looked at one by one.
        if bool(torch.isfinite(working.sum())):
            return working
        finite = torch.isfinite(working).all(-1)
        self.broken_rows += int((~finite).sum())
        return working[finite]

    def _add(self, rows: Tensor) -> None:
        if self._squares is None or self._sums is None:
            self._squares = rows.new_zeros((self.columns,) * (2 if self.full else 1))
            self._sums = rows.new_zeros(self.columns)
        rows = rows.to(self._squares)
        if self.full:
            self._squares.addmm_(rows.T, rows)
        else:
            self._squares += rows.square().sum(0)
        self._sums += rows.sum(0)
        self.rows += len(rows)

    def _mean(self, total: Tensor | None) -> Tensor:
        if total is None or not self.rows:
            raise ValueError("moments of no rows: look at .rows first")
        return total / self.rows


def moment_bytes(columns: int, *, full: bool) -> int:
    """Bytes that moments take at least: those of float32 sums.

    Args:
        columns: Size of a row.
        full: As of Moments.
    """
    return 4 * columns * (columns + 1 if full else 2)
