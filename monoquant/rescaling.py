"""Factors that were moved from the inputs of weights into what computes them, so that weights are easier to code."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from monoquant.numerics.matrix_form import MatrixForm

Key = tuple[str, str]
"""Name of a layer, and of one of its parameters."""


@attrs.define(eq=False)
class Rescaling:
    """The same function of the model with other parameters; empty until a pass rescales something.

    Args:
        columns: By weight, what its columns are multiplied with and its inputs divided by; ``[columns]``, positive.
        rows: By weight, what its rows are divided by, and so what it computes; ``[rows]``, positive.
        parameters: New values of float parameters, in their shape and dtype.
    """

    columns: dict[Key, Tensor] = attrs.field(factory=dict)
    rows: dict[Key, Tensor] = attrs.field(factory=dict)
    parameters: dict[Key, Tensor] = attrs.field(factory=dict)

    def weight(self, key: Key, weight: Tensor, form: MatrixForm) -> Tensor:
        """A weight with its factors.

        Args:
            key: Its layer and name.
            weight: Of the form's shape, any real float dtype.
            form: How it is a matrix.

        Returns:
            Itself if it has none, else a tensor of the same shape, float32 or float64.
        """
        columns, rows = self.columns.get(key), self.rows.get(key)
        if columns is None and rows is None:
            return weight
        matrix = form.to_matrix(weight.detach()).to(_working(weight))
        if columns is not None:
            matrix = matrix * columns.to(matrix)
        if rows is not None:
            matrix = matrix / rows.to(matrix).unsqueeze(1)
        return form.from_matrix(matrix)

    def undone(self, key: Key, weight: Tensor, form: MatrixForm) -> Tensor:
        """A weight with factors as it would act on the model's own inputs.

        Args:
            key: Its layer and name.
            weight: Of the form's shape.
            form: How it is a matrix.

        Returns:
            A tensor of the same shape and dtype.
        """
        columns = self.columns.get(key)
        if columns is None:
            return weight
        matrix = form.to_matrix(weight.to(_working(weight)))
        return form.from_matrix(matrix / columns.to(matrix)).to(weight.dtype)

    def inputs(self, key: Key, inputs: Tensor) -> Tensor:
        """What a weight with factors meets instead of what the model's own weight does.

        Args:
            key: Its layer and name.
            inputs: ``[n, columns]``.
        """
        columns = self.columns.get(key)
        return inputs if columns is None else inputs.to(_working(inputs)) / columns.to(inputs.device)


def _working(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
