"""First and second moments of the inputs that a weight is multiplied with, and a sample kept apart from them."""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor

from monoquant.observers import RowSampler

_ROWS_AT_ONCE = 8192
_BLOCK = 256
SAMPLE_ROWS = 256


class Moments:
    """Sums over input rows, from which the noise of any approximation of the weight follows.

    With ``H = E[x x^T]``, an error D of the weight makes noise of ``trace(D H D^T)`` on average per input row.

    Args:
        columns: Size of a row.
        full: True: all of H, ``columns ** 2`` floats. False: its diagonal.

    Attributes:
        rows: Finite rows that the sums are of.
        weighted: Whether rows counted by how much they matter.
        broken_rows: Rows with NaN or Inf, which are left out.
    """

    def __init__(self, columns: int, *, full: bool) -> None:
        self.columns, self.full = columns, full
        self.rows = self.broken_rows = 0
        self.weighted = False
        self._total = 0.0
        self._squares: Tensor | None = None
        self._sums: Tensor | None = None
        self._held_out = RowSampler(SAMPLE_ROWS)

    @property
    def hessian(self) -> Tensor:
        """``E[x x^T]``, ``[columns, columns]``; float32, float64 where inputs are. Needs ``full`` and rows."""
        upper = self._mean(self._squares).triu_()
        return upper + upper.T - torch.diag(upper.diagonal())

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

    def add(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """Count rows in.

        Args:
            inputs: ``[n, columns]``, any real float dtype; added up in float32, float64 in float64.
            weights: float32 ``[n]``, how much each row counts, 1 on average; None (default): all alike.
        """
        self.weighted |= weights is not None
        with torch.inference_mode(False), torch.no_grad():  # or a forward in inference mode would freeze the sums
            for start in range(0, len(inputs), _ROWS_AT_ONCE):
                part = slice(start, start + _ROWS_AT_ONCE)
                self._add(*self._finite(inputs[part], None if weights is None else weights[part]))

    def hold_out(self, inputs: Tensor) -> None:
        """Keep a sample of rows apart, to measure on what was not fitted to.

        Args:
            inputs: ``[n, columns]``, any real float dtype.
        """
        with torch.inference_mode(False), torch.no_grad():
            self._held_out.update(self._finite(inputs)[0])

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
        result._total += other._total
        result.weighted |= other.weighted
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

    def _finite(self, rows: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        working = rows.to(torch.float64 if rows.dtype == torch.float64 else torch.float32)
        # One sum tells whether all is finite; only then are rows looked at one by one.
        if bool(torch.isfinite(working.sum())):
            return working, weights
        finite = torch.isfinite(working).all(-1)
        self.broken_rows += int((~finite).sum())
        return working[finite], None if weights is None else weights[finite]

    def _add(self, rows: Tensor, weights: Tensor | None) -> None:
        if self._squares is None or self._sums is None:
            self._squares = rows.new_zeros((self.columns,) * (2 if self.full else 1))
            self._sums = rows.new_zeros(self.columns)
        rows = rows.to(self._squares)
        counted = rows if weights is None else rows * weights.to(rows).unsqueeze(1)
        if self.full:
            # The matrix is symmetric: only blocks on and above its diagonal are computed.
            for start in range(0, self.columns, _BLOCK):
                stop = min(start + _BLOCK, self.columns)
                self._squares[start:stop, start:].addmm_(counted[:, start:stop].T, rows[:, start:])
        else:
            self._squares += (counted * rows).sum(0)
        self._sums += counted.sum(0)
        self.rows += len(rows)
        self._total += len(rows) if weights is None else float(weights.sum())

    def _mean(self, total: Tensor | None) -> Tensor:
        if total is None or not self._total:
            raise ValueError("moments of no rows: look at .rows first")
        return total / self._total


def moment_bytes(columns: int, *, full: bool) -> int:
    """Bytes that moments take at least: those of float32 sums.

    Args:
        columns: Size of a row.
        full: As of Moments.
    """
    return 4 * columns * (columns + 1 if full else 2)
