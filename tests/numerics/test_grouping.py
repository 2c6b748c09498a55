"""Rows cut into groups, and matrices cut into chunks of rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monoquant.numerics import grouping
from monoquant.numerics.grouping import from_groups, group_count, row_chunks, to_groups

quick = settings(deadline=None, max_examples=150)
rows = st.integers(0, 6)
columns = st.integers(1, 70)
group_sizes = st.integers(1, 100)


def numbered(rows: int, columns: int) -> torch.Tensor:
    return torch.arange(1, rows * columns + 1).reshape(rows, columns)


@quick
@given(rows=rows, columns=columns, group_size=group_sizes)
def test_from_groups_undoes_to_groups(rows: int, columns: int, group_size: int) -> None:
    """Ragged, exact and too long groups alike give the matrix back, one without rows included."""
    matrix = numbered(rows, columns)
    assert torch.equal(from_groups(to_groups(matrix, group_size), columns), matrix)


@quick
@given(rows=rows, columns=columns, group_size=group_sizes)
def test_each_element_lands_in_the_group_of_its_column(rows: int, columns: int, group_size: int) -> None:
    """Column ``c`` is element ``c % size`` of group ``c // size`` of its own row, and padding is zero."""
    groups = to_groups(numbered(rows, columns), group_size)
    width = min(group_size, columns)
    assert groups.shape == (rows, group_count(columns, width), width)
    for column in range(columns):
        assert torch.equal(groups[:, column // width, column % width], numbered(rows, columns)[:, column])
    assert int((groups == 0).sum()) == groups.numel() - rows * columns


@quick
@given(columns=st.integers(0, 10_000), group_size=st.integers(1, 1000))
def test_group_count_is_just_enough(columns: int, group_size: int) -> None:
    """The groups hold all columns, and one group fewer would not."""
    count = group_count(columns, group_size)
    assert (count - 1) * group_size < columns <= count * group_size


def test_exact_groups_are_a_view() -> None:
    """Where nothing is padded nothing is copied."""
    matrix = numbered(4, 64)
    assert to_groups(matrix, 16).data_ptr() == matrix.data_ptr()
    assert to_groups(matrix, 64).data_ptr() == matrix.data_ptr()


@quick
@given(rows=st.integers(0, 500), columns=st.integers(0, 300), limit=st.integers(1, 5000))
def test_row_chunks_cover_every_row_once(rows: int, columns: int, limit: int) -> None:
    """The chunks in order are all rows, each starts at an even row, and each respects the limit if two rows do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "CHUNK_ELEMENTS", limit)
        chunks = list(row_chunks(rows, columns))
    assert [row for chunk in chunks for row in range(rows)[chunk]] == list(range(rows))
    assert all(chunk.start % 2 == 0 for chunk in chunks)
    assert all((chunk.stop - chunk.start) * columns <= max(limit, 2 * columns) for chunk in chunks)


def test_chunks_of_a_usual_layer_are_large() -> None:
    """A 4096x4096 layer is cut into dozens of chunks: neither large temporaries nor thousands of calls."""
    assert 16 <= len(list(row_chunks(4096, 4096))) <= 512
