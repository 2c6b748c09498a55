"""Weights of any shape as matrices, and back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from monoquant.errors import ConfigError
from monoquant.numerics.matrix_form import MatrixForm

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple)


@st.composite
def forms(draw: st.DrawFn) -> MatrixForm:
    """Every way to build a form."""
    shape = draw(shapes)
    kind = draw(st.sampled_from(("rows first", "along", "transposed")))
    if kind == "rows first":
        return MatrixForm.rows_first(shape)
    if kind == "along":
        return MatrixForm.along(shape, draw(st.integers(-len(shape), len(shape) - 1)))
    groups = draw(st.integers(1, 4))
    return MatrixForm.transposed_convolution((groups * shape[0], draw(st.integers(1, 4)), *shape[1:]), groups)


@given(forms())
def test_there_and_back_is_exact(form: MatrixForm) -> None:
    """Every element has one place in the matrix."""
    tensor = torch.arange(math.prod(form.shape)).reshape(form.shape)
    matrix = form.to_matrix(tensor)
    assert matrix.shape == (form.rows, form.columns)
    assert sorted(matrix.flatten().tolist()) == list(range(tensor.numel()))
    assert torch.equal(form.from_matrix(matrix), tensor)
    assert form.from_matrix(matrix).is_contiguous()


def test_rows_are_output_channels_of_a_convolution() -> None:
    """One row of the matrix scales one output channel."""
    conv = nn.Conv2d(4, 6, (2, 3), groups=2, bias=False)
    form = MatrixForm.rows_first(conv.weight.shape)
    assert_rows_are_channels(conv, form)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_rows_are_output_channels_of_a_transposed_convolution(groups: int) -> None:
    """Although its weight keeps inputs first and only the channels of one group."""
    conv = nn.ConvTranspose2d(6, 12, (2, 3), groups=groups, bias=False)
    assert_rows_are_channels(conv, MatrixForm.transposed_convolution(conv.weight.shape, groups))


def assert_rows_are_channels(conv: nn.Module, form: MatrixForm) -> None:
    x = torch.randn(2, conv.in_channels, 5, 6)
    before = conv(x)
    for channel in range(conv.out_channels):
        matrix = form.to_matrix(conv.weight.detach()).clone()
        matrix[channel] *= 2
        with torch.no_grad():
            after = torch.func.functional_call(conv, {"weight": form.from_matrix(matrix)}, (x,))
        changed = [index for index in range(conv.out_channels) if not torch.equal(before[:, index], after[:, index])]
        assert changed == [channel]


def test_along_puts_one_axis_across() -> None:
    """The columns of the matrix run along the chosen axis."""
    tensor = torch.randn(3, 4, 5)
    for axis in range(3):
        rows = MatrixForm.along(tensor.shape, axis).to_matrix(tensor)
        assert torch.equal(rows, tensor.movedim(axis, -1).reshape(-1, tensor.shape[axis]))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (((3, 4), (3, 5), (0, 1), 1), "do not rearrange"),
        (((3, 4), (3, 4), (0, 0), 1), "do not rearrange"),
        (((3, 4), (3, 4), (0, 1), 3), "row_axes=3"),
        (((3, 4), (3, 4), (0, 1), -1), "row_axes=-1"),
    ],
)
def test_what_is_no_rearrangement_is_refused(arguments: tuple[object, ...], text: str) -> None:
    """A form read from a damaged file must not pass."""
    with pytest.raises(ConfigError, match=text):
        MatrixForm(*arguments)


def test_an_axis_that_is_not_there_is_refused() -> None:
    """With the shape, so that the mistake is seen."""
    with pytest.raises(ConfigError, match=r"axis=2: a tensor of shape \(3, 4\)"):
        MatrixForm.along((3, 4), 2)


@given(forms())
def test_position_is_where_to_matrix_puts_an_element(form: MatrixForm) -> None:
    """Each element of a tensor is found in the matrix at the place that is said, whatever shape the question has."""
    elements = torch.arange(math.prod(form.shape))
    matrix = form.to_matrix(elements.view(form.shape))
    rows, columns = form.position(elements)
    assert torch.equal(matrix[rows, columns], elements)
    assert (rows.shape, columns.shape) == (elements.shape, elements.shape)
    for one, other in zip(form.position(elements.view(1, -1, 1)), (rows, columns), strict=True):
        assert torch.equal(one, other.view(1, -1, 1))
