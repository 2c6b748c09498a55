"""Tensors of a source read in blocks, into the same memory each time, while somebody watches."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from monoquant.disk.header import Stored
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.progress import Progress
from monoquant.streaming.source import TensorSource

BLOCK_BYTES = 1 << 22


class BlockReader:
    """Reads blocks; each is valid until the next but one is read.

    Args:
        source: Where from.
        progress: True writes a line to stderr, a function is called as ``progress(bytes, total)``.

    Attributes:
        total: Bytes that will be read, as far as that is known.
    """

    def __init__(self, source: TensorSource, progress: bool | Progress) -> None:
        self.source = source
        self.total = sum(stored.size for stored in source.tensors.values())
        self._done = 0
        self._shows_line = progress is True
        self._show = progress if callable(progress) else _write_line
        self._is_silent = progress is False
        self._buffers = [torch.empty(BLOCK_BYTES, dtype=torch.uint8, device="cpu") for _ in range(2)]

    def blocks(self, stored: Stored) -> Iterator[Tensor]:
        """All bytes of a tensor.

        Args:
            stored: Which.

        Yields:
            uint8, one axis.
        """
        for start in range(0, stored.size, BLOCK_BYTES):
            yield self._read(stored, start, min(BLOCK_BYTES, stored.size - start))

    def rows(self, stored: Stored, form: MatrixForm, at_once: int) -> Iterator[Tensor]:
        """All rows of a tensor as a matrix.

        Args:
            stored: Which.
            form: How it is a matrix.
            at_once: Rows of each block but the last.

        Yields:
            ``[n, columns]`` in the tensor's dtype.
        """
        if not lies_by_rows(form):
            whole = torch.empty(form.shape, dtype=stored.dtype, device="cpu")
            self.source.read(stored, 0, whole)
            self._count(stored.size)
            yield from torch.split(form.to_matrix(whole), at_once)
            return
        row = form.columns * stored.dtype.itemsize
        for start in range(0, form.rows, at_once):
            size = min(at_once, form.rows - start)
            block = self._read(stored, start * row, size * row)
            yield block.view(stored.dtype).view(size, form.columns)

    def extremes(self, stored: Stored) -> tuple[float, float]:
        """Least and largest value of a tensor; nan if it holds one.

        Args:
            stored: A tensor of a real float dtype, not empty.
        """
        self.total += stored.size
        low, high = math.inf, -math.inf
        for block in self.blocks(stored):
            values = block.view(stored.dtype)
            least, largest = float(values.amin()), float(values.amax())
            if math.isnan(least) or math.isnan(largest):
                low = high = math.nan
            elif not math.isnan(low):
                low, high = min(low, least), max(high, largest)
        return low, high

    def close(self) -> None:
        """End the line on stderr."""
        if self._shows_line:
            sys.stderr.write("\n")

    def _read(self, stored: Stored, start: int, size: int) -> Tensor:
        self._buffers.reverse()
        if size > len(self._buffers[0]):
            self._buffers[0] = torch.empty(size, dtype=torch.uint8, device="cpu")
        block = self._buffers[0][:size]
        self.source.read(stored, start, block)
        self._count(size)
        return block

    def _count(self, size: int) -> None:
        self._done += size
        if not self._is_silent:
            self._show(self._done, self.total)


def lies_by_rows(form: MatrixForm) -> bool:
    """Whether the rows of the matrix follow one another in the tensor.

    Args:
        form: How the tensor is a matrix.
    """
    return list(form.order) == sorted(form.order)


def _write_line(done: int, total: int) -> None:
    sys.stderr.write(f"\rquantizing: {done >> 20} of {total >> 20} MiB")
    sys.stderr.flush()
