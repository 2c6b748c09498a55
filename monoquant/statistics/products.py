"""Torch's operations that multiply a weight with inputs, read alike: rows of inputs, and the part of the weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from monoquant.numerics.matrix_form import MatrixForm
from monoquant.numerics.patches import Convolution

aten: Any = torch.ops.aten


@attrs.frozen(eq=False)
class Product:
    """``inputs @ weight``, where either factor may be a weight of a model.

    Args:
        weight: ``[columns, rows]``, a view of what may be a weight.
        inputs: ``[n, columns]``.
    """

    weight: Tensor
    inputs: Tensor


@attrs.frozen(eq=False)
class Convolved:
    """A convolution, whose patches are computed only if its weight is watched.

    Args:
        weight: As torch keeps it.
        inputs: ``[samples, channels, *spatial]``.
        geometry: How they meet.
    """

    weight: Tensor
    inputs: Tensor
    geometry: Convolution

    @property
    def form(self) -> MatrixForm:
        """The matrix that patches are multiplied with."""
        if self.geometry.transposed:
            return MatrixForm.transposed_convolution(self.weight.shape, self.geometry.groups)
        return MatrixForm.rows_first(self.weight.shape)


def products(operation: Any, arguments: Sequence[Any]) -> Iterator[Product | Convolved]:
    """The products in one operation of torch.

    Args:
        operation: An overload such as ``torch.ops.aten.mm.default``.
        arguments: Its positional arguments.

    Yields:
        Each product, with either factor as the weight; nothing for operations that are no products.
    """
    reader = _READERS.get(operation)
    if reader is not None:
        yield from reader(*arguments)


def products_within(operation: Any, arguments: Sequence[Any], result: Any) -> Iterator[Product]:
    """The products of an operation whose inputs are known only when it is done: the hidden states of a fused LSTM.

    Args:
        operation: An overload.
        arguments: Its positional arguments.
        result: What it returned.

    Yields:
        Each product; nothing for other operations.
    """
    if operation is not aten.mkldnn_rnn_layer.default:
        return
    inputs, of_inputs, of_states, *_, first = arguments[:6]
    outputs, reverse = result[0], arguments[7]
    before = first.unsqueeze(0)
    states = torch.cat([outputs[1:], before] if reverse else [before, outputs[:-1]])
    yield Product(of_inputs.t(), inputs.reshape(-1, inputs.shape[-1]))
    yield Product(of_states.t(), states.reshape(-1, states.shape[-1]))


def is_product(operation: Any) -> bool:
    """Whether an operation multiplies matrices.

    Args:
        operation: An overload such as ``torch.ops.aten.mm.default``.
    """
    return operation in _READERS


def factors_of(operation: Any, arguments: Sequence[Any]) -> Sequence[Any]:
    """The two operands that a product multiplies; what it adds is none of them.

    Args:
        operation: An overload that :func:`is_product`.
        arguments: Its positional arguments.
    """
    return arguments[1:3] if operation in _ADDING else arguments[:2]


def _matrices(left: Tensor, right: Tensor, *_options: Any) -> Iterator[Product]:
    yield Product(right, left)
    yield Product(left.t(), right.t())


def _matrices_added(_added: Tensor, left: Tensor, right: Tensor, *_options: Any) -> Iterator[Product]:
    yield from _matrices(left, right)


def _vector(matrix: Tensor, vector: Tensor, *_options: Any) -> Iterator[Product]:
    yield Product(matrix.t(), vector.unsqueeze(0))


def _vector_added(_added: Tensor, matrix: Tensor, vector: Tensor, *_options: Any) -> Iterator[Product]:
    yield from _vector(matrix, vector)


def _batches(left: Tensor, right: Tensor, *_options: Any) -> Iterator[Product]:
    for one, other in zip(left, right, strict=True):
        yield from _matrices(one, other)


def _batches_added(_added: Tensor, left: Tensor, right: Tensor, *_options: Any) -> Iterator[Product]:
    yield from _batches(left, right)


def _linear(inputs: Tensor, weight: Tensor, *_options: Any) -> Iterator[Product]:
    for part in inputs.unbind() if inputs.is_nested else (inputs,):
        yield Product(weight.t(), part.reshape(-1, part.shape[-1]))


def _grouped(inputs: Tensor, weights: Tensor, ends: Tensor | None = None, *_options: Any) -> Iterator[Product]:
    if ends is None or inputs.dim() != 2 or weights.dim() != 3:
        return
    start = 0
    for weight, end in zip(weights, ends.tolist(), strict=True):
        yield Product(weight, inputs[start:end])
        start = end


def _convolution(
    inputs: Tensor,
    weight: Tensor,
    _bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Iterator[Convolved]:
    dims = weight.dim() - 2
    geometry = Convolution(
        kernel=tuple(weight.shape[2:]),
        stride=_for_each(dims, stride),
        padding=_for_each(dims, padding),
        dilation=_for_each(dims, dilation),
        groups=groups,
        transposed=transposed,
        output_padding=_for_each(dims, output_padding) if transposed else (),
    )
    yield Convolved(weight, inputs, geometry)


def _for_each(dims: int, values: Sequence[int]) -> tuple[int, ...]:
    return tuple(values) * (dims if len(values) == 1 else 1)


_READERS: dict[Any, Callable[..., Iterator[Product | Convolved]]] = {
    aten.mm.default: _matrices,
    aten.addmm.default: _matrices_added,
    aten.mv.default: _vector,
    aten.addmv.default: _vector_added,
    aten.bmm.default: _batches,
    aten.baddbmm.default: _batches_added,
    aten.linear.default: _linear,
    aten._grouped_mm.default: _grouped,
    aten.convolution.default: _convolution,
}
_ADDING = (aten.addmm.default, aten.addmv.default, aten.baddbmm.default)
