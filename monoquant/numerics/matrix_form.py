"""A weight of any shape seen as a matrix: output channels down, input features across."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from monoquant.errors import ConfigError


def _check_order(form: MatrixForm, _attribute: Any, order: tuple[int, ...]) -> None:
    if math.prod(form.split) != math.prod(form.shape) or sorted(order) != list(range(len(form.split))):
        raise ConfigError(f"split {form.split} and order {order} do not rearrange a tensor of shape {form.shape}")


def _check_row_axes(form: MatrixForm, _attribute: Any, row_axes: int) -> None:
    if not 0 <= row_axes <= len(form.split):
        raise ConfigError(f"row_axes={row_axes}: the tensor is split into {len(form.split)} axes")


@attrs.frozen
class MatrixForm:
    """How the elements of a tensor are the elements of a matrix; both ways are exact.

    Args:
        shape: Shape of the tensor.
        split: Shape it is viewed in first.
        order: Axes of that view in their new order.
        row_axes: How many of the reordered axes count rows; the others count columns.
    """

    shape: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...] = attrs.field(validator=_check_order)
    row_axes: int = attrs.field(validator=_check_row_axes)

    @classmethod
    def rows_first(cls, shape: Sequence[int]) -> MatrixForm:
        """The first axis counts rows, all others columns: Linear ``[out, in]``, convolutions, embeddings.

        Args:
            shape: Shape of the tensor, at least one axis.
        """
        return cls(tuple(shape), tuple(shape), tuple(range(len(shape))), 1)

    @classmethod
    def along(cls, shape: Sequence[int], axis: int) -> MatrixForm:
        """One axis holds the input features, all others count rows.

        Args:
            shape: Shape of the tensor.
            axis: The axis of the input features; negative ones count from the end.
        """
        if not -len(shape) <= axis < len(shape):
            raise ConfigError(f"axis={axis}: a tensor of shape {tuple(shape)} has no such axis")
        columns = axis % len(shape)
        order = (*(other for other in range(len(shape)) if other != columns), columns)
        return cls(tuple(shape), tuple(shape), order, len(shape) - 1)

    @classmethod
    def transposed_convolution(cls, shape: Sequence[int], groups: int) -> MatrixForm:
        """A ``[in, out / groups, *kernel]`` weight by output channel.

        Args:
            shape: Shape of the tensor.
            groups: Groups of the convolution, a divisor of ``in``.
        """
        inputs, outputs, *kernel = shape
        split = (groups, inputs // groups, outputs, *kernel)
        return cls(tuple(shape), split, (0, 2, 1, *range(3, len(split))), 2)

    @property
    def rows(self) -> int:
        """Rows of the matrix."""
        # A list rather than a generator, which torch.compile cannot take.
        return math.prod([self.split[axis] for axis in self.order[: self.row_axes]])

    @property
    def columns(self) -> int:
        """Columns of the matrix."""
        return math.prod([self.split[axis] for axis in self.order[self.row_axes :]])

    def position(self, flat_index: Tensor) -> tuple[Tensor, Tensor]:
        """Where elements of the tensor are in the matrix.

        Args:
            flat_index: int64, indices into the contiguous tensor.

        Returns:
            Their rows and columns, same shape.
        """
        index = torch.unravel_index(flat_index, self.split)
        position = torch.zeros_like(flat_index)
        for axis in self.order:
            position = position * self.split[axis] + index[axis]
        return position // self.columns, position % self.columns

    def to_matrix(self, tensor: Tensor) -> Tensor:
        """Rearrange a tensor.

        Args:
            tensor: Of the form's shape, any dtype.

        Returns:
            ``[rows, columns]``, same dtype; a view where the strides allow one.
        """
        return tensor.reshape(self.split).permute(self.order).reshape(self.rows, self.columns)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """Undo :meth:`to_matrix`.

        Args:
            matrix: ``[rows, columns]``, any dtype.

        Returns:
            A contiguous tensor of the form's shape, same dtype.
        """
        reordered = matrix.reshape([self.split[axis] for axis in self.order])
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return reordered.permute(inverse).reshape(self.shape).contiguous(memory_format=torch.contiguous_format)
