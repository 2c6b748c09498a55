"""Torch's elementwise operations whose result grows with an operand: a factor passes through them unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from monoquant.statistics.products import aten


@attrs.frozen(eq=False)
class Step:
    """An operation whose first result is multiplied by ``f > 0`` if one of its operands and what is added are.

    Args:
        carried: Operands with that effect, each alone.
        added: Operands that must then be multiplied as well.
    """

    carried: tuple[Any, ...]
    added: tuple[Any, ...] = ()


def step_of(operation: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> Step | None:
    """Read an operation.

    Args:
        operation: An overload such as ``torch.ops.aten.mul.Tensor``.
        arguments: Its positional arguments.
        options: Its named arguments.

    Returns:
        None for operations that are nothing of the kind, or not known to be.
    """
    reader = _READERS.get(operation)
    return None if reader is None else reader(arguments, options)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in arguments or results.

    Args:
        value: A tensor, or anything; lists, tuples and mappings are searched.
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))


def channel_axis(tensor: Tensor, size: int) -> int | None:
    """The axis along which element c is at an offset that is c modulo the size.

    Args:
        tensor: Any.
        size: Number of channels.

    Returns:
        Counted from the end; None if there is no such axis, or several.
    """
    if size < 2 or tensor.layout != torch.strided or tensor.storage_offset() % size:
        return None
    pairs = list(enumerate(zip(tensor.shape, tensor.stride(), strict=True), -tensor.dim()))
    across = [axis for axis, (length, stride) in pairs if length == size and stride == 1]
    others = [stride for axis, (length, stride) in pairs if length > 1 and axis not in across]
    return across[0] if len(across) == 1 and not any(stride % size for stride in others) else None


def _first(arguments: Sequence[Any], _options: Mapping[str, Any]) -> Step:
    return Step((arguments[0],))


def _product(arguments: Sequence[Any], _options: Mapping[str, Any]) -> Step:
    return Step((arguments[0], arguments[1]))


def _sum(arguments: Sequence[Any], options: Mapping[str, Any]) -> Step | None:
    one, other = arguments[:2]
    if options.get("alpha", 1) != 1 or not isinstance(other, Tensor):
        return None
    return Step((other,), (one,)) if other.dim() > one.dim() else Step((one,), (other,))


def _layer_norm(arguments: Sequence[Any], _options: Mapping[str, Any]) -> Step | None:
    _inputs, _shape, weight, bias, *_ = arguments
    return None if weight is None else Step((weight,), () if bias is None else (bias,))


_READERS: dict[Any, Callable[[Sequence[Any], Mapping[str, Any]], Step | None]] = {
    aten.clone.default: _first,
    aten._to_copy.default: _first,
    aten.neg.default: _first,
    aten.relu.default: _first,  # a positive factor passes it
    aten.div.Tensor: _first,
    aten.div.Scalar: _first,
    aten.mul.Tensor: _product,
    aten.mul.Scalar: _first,
    aten.add.Tensor: _sum,
    aten.native_layer_norm.default: _layer_norm,
}
