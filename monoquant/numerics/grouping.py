"""Rows of a weight matrix cut into groups of input features, and into chunks that fit a cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 17
BLOCK_ELEMENTS = 1 << 20


def group_count(columns: int, group_size: int) -> int:
    """Number of groups in a row.

    Args:
        columns: Input features, >= 0.
        group_size: Features per group, >= 1; the last group may be shorter.

    Returns:
        ``ceil(columns / group_size)``.
    """
    return -(-columns // group_size)


def to_groups(matrix: Tensor, group_size: int) -> Tensor:
    """Cut each row into groups, padding a ragged last group with zeros.

    Args:
        matrix: ``[rows, columns]``, any dtype.
        group_size: Features per group; a group longer than a row is as long as the row.

    Returns:
        ``[rows, groups, min(group_size, columns)]``, same dtype; a view where nothing had to be padded.
    """
    rows, columns = matrix.shape
    width = min(group_size, columns)
    groups = group_count(columns, width)
    if groups * width != columns:
        matrix = torch.nn.functional.pad(matrix, (0, groups * width - columns))
    return matrix.reshape(rows, groups, width)


def from_groups(groups: Tensor, columns: int) -> Tensor:
    """Undo :func:`to_groups`.

    Args:
        groups: ``[rows, groups, width]``.
        columns: Features per row before padding.

    Returns:
        ``[rows, columns]``, same dtype.
    """
    return groups.flatten(1)[:, :columns]


def select_rows(buffer: Tensor, rows: slice | Tensor) -> Tensor:
    """Some rows of a buffer.

    Args:
        buffer: ``[n, ...]``.
        rows: A slice, or int32 or int64 indices; negative ones and those out of range are an IndexError, as in torch's
            embeddings.
    """
    return buffer.index_select(0, rows) if isinstance(rows, Tensor) else buffer[rows]


def chunk_rows(columns: int) -> int:
    """Rows of all chunks but the last: an even number.

    Args:
        columns: Columns of the matrix.
    """
    return max(2, CHUNK_ELEMENTS // max(columns, 1) // 2 * 2)


def row_chunks(rows: int, columns: int) -> Iterator[slice]:
    """Consecutive row ranges of about ``CHUNK_ELEMENTS`` elements, so that temporaries stay small.

    Args:
        rows: Rows of the matrix.
        columns: Columns of the matrix.

    Yields:
        Slices that cover ``range(rows)`` in order, each with an even number of rows but for the last.
    """
    step = chunk_rows(columns)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def block_rows(columns: int) -> int:
    """Rows of all blocks but the last; a block is some chunks.

    Args:
        columns: Columns of the matrix.
    """
    chunk = chunk_rows(columns)
    return chunk * max(1, BLOCK_ELEMENTS // (chunk * max(columns, 1)))


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Consecutive row ranges of about ``BLOCK_ELEMENTS`` elements: what is read or handed over at once.

    Args:
        rows: Rows of the matrix.
        columns: Columns of the matrix.

    Yields:
        Slices that cover ``range(rows)`` in order. Chunks of a block are chunks of the matrix.
    """
    step = block_rows(columns)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
