"""A stack of packed matrices that dequantizes one by one, as the weights of experts are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from monoquant.modules.packed_weight import PackedWeight


def is_stack(packed: PackedWeight) -> bool:
    """Whether a weight is a stack along its first axis, each item of which is some consecutive rows.

    Args:
        packed: The weight.
    """
    form = packed.form
    return len(form.shape) >= 3 and form.split == form.shape and form.order[0] == 0 and form.row_axes >= 2


_BINARY = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow")
_OPERATORS = (
    *(f"__{side}{name}__" for name in _BINARY for side in ("", "r")),
    *(f"__{name}__" for name in ("neg", "pos", "abs", "invert", "eq", "ne", "lt", "le", "gt", "ge")),
)


def _with_operators(kind: type[StackedWeight]) -> type[StackedWeight]:
    """Give a class the operators of tensors; Python looks them up on the class, where ``__getattr__`` is not asked."""
    for operator in _OPERATORS:
        setattr(kind, operator, _delegated(operator))
    return kind


def _delegated(operator: str) -> Callable[..., Any]:
    def operate(self: StackedWeight, *others: Any) -> Any:
        return getattr(self.dequantize(), operator)(*_dequantized(others))

    return operate


@_with_operators
class StackedWeight:
    """Stands for the dequantized tensor ``[n, ...]``: ``stack[i]`` dequantizes item i, anything else all of it.

    Torch functions take it like a tensor, and it has a tensor's methods; it is none, so ``isinstance`` says no.

    Args:
        packed: A stack.
    """

    def __init__(self, packed: PackedWeight) -> None:
        self._packed = packed

    @property
    def shape(self) -> torch.Size:
        """As of a tensor."""
        return torch.Size(self._packed.form.shape)

    @property
    def dtype(self) -> torch.dtype:
        """As of a tensor."""
        return self._packed.dtype

    @property
    def device(self) -> torch.device:
        """As of a tensor."""
        return self._packed.layout.device

    def dequantize(self) -> Tensor:
        """The whole tensor."""
        return self._packed.dequantize()

    __hash__ = object.__hash__  # as tensors, which compare by element, are hashed by identity

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Tensor:
        single = (isinstance(index, int) and not isinstance(index, bool)) or (
            isinstance(index, Tensor) and index.dim() == 0 and index.dtype != torch.bool
        )
        return self._item(index) if single else self.dequantize()[index]

    def _item(self, index: int | Tensor) -> Tensor:
        if isinstance(index, int) and not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for a stack of {len(self)}")
        form = self._packed.form
        held = torch.arange(form.rows, device=self.device).view(len(self), -1)[index]
        reordered = [form.split[axis] for axis in form.order[1:]]
        back = sorted(range(len(reordered)), key=form.order[1:].__getitem__)
        return self._packed.dequantized_rows(held).reshape(reordered).permute(back).contiguous()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dequantize(), name)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return function(*_dequantized(args), **_dequantized(dict(kwargs or {})))

    def __repr__(self) -> str:
        return f"StackedWeight({'x'.join(map(str, self.shape))}, {self._packed.scheme})"


def _dequantized(value: Any) -> Any:
    if isinstance(value, StackedWeight):
        return value.dequantize()
    if isinstance(value, (tuple, list)):
        return type(value)(map(_dequantized, value))
    if isinstance(value, dict):
        return {key: _dequantized(item) for key, item in value.items()}
    return value
