"""What every stored weight is to the rest: a tensor of some shape that dequantizes, hashes and moves as one."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from monoquant.errors import ConfigError
from monoquant.modules.exact_buffers import ExactBuffers
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.numerics.memory import byte_view
from monoquant.values import AnyScheme

_WHOLE_NUMBERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@attrs.frozen(eq=False)
class Intended:
    """What a packed weight must hold, known apart from how it was packed.

    Args:
        holds: Whether a packed weight holds that; takes as long as packing, so ask only where it matters.
    """

    holds: Callable[[PackedWeight], bool]

    @classmethod
    def of_digest(cls, digest: str) -> Intended:
        """What has a digest.

        Args:
            digest: As :meth:`PackedWeight.digest` computes it.
        """
        return cls(lambda packed: packed.digest() == digest)


class PackedWeight(ExactBuffers, abc.ABC):
    """Base of the modules that hold one packed weight. Its buffers are the same bytes on every machine.

    Args:
        form: Shape of the weight, and its matrix.
        scheme: How the weight is represented.
        dtype: dtype of the weight when dequantized. Follows ``.to(dtype)``.

    Attributes:
        layout: int32, what the other buffers mean: format version, bits, rows, columns and more.
    """

    layout: Tensor

    def __init__(self, form: MatrixForm, scheme: AnyScheme, dtype: torch.dtype) -> None:
        super().__init__()
        if not dtype.is_floating_point:
            raise ConfigError(f"dtype={dtype}: give a floating-point dtype")
        self.form, self.scheme, self.dtype = form, scheme, dtype
        self.was_trainable = True  # what a float parameter in its place will be

    @property
    def rows(self) -> int:
        """Rows of the weight as a matrix."""
        return self.form.rows

    @property
    def columns(self) -> int:
        """Columns of the weight as a matrix."""
        return self.form.columns

    @abc.abstractmethod
    def dequantized_rows(self, rows: slice | Tensor) -> Tensor:
        """Some rows of the weight as a matrix.

        Args:
            rows: A slice, or int32 or int64 indices ``[n]``.

        Returns:
            ``[n, columns]`` in the weight's dtype.
        """

    @abc.abstractmethod
    def digest(self) -> str:
        """SHA-256 over the unpacked content, equal for equal meaning."""

    @abc.abstractmethod
    def layout_values(self) -> list[int]:
        """What ``layout`` must hold."""

    @abc.abstractmethod
    def buffer_dtypes(self) -> dict[str, torch.dtype]:
        """Dtypes of the other buffers by name."""

    def dequantize(self) -> Tensor:
        """The weight in floating point.

        Returns:
            A tensor of the form's shape in ``self.dtype``.
        """
        return self.form.from_matrix(self.dequantized_rows(slice(None)))

    def extra_repr(self) -> str:
        return f"{'x'.join(map(str, self.form.shape))}, {self.scheme}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedWeight:
        probe = torch.empty(0, dtype=self.dtype, device=self.layout.device)
        super()._apply(fn, recurse)
        self.dtype = fn(probe).dtype
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        error_messages: list[str] = args[-1] if args else kwargs["error_msgs"]
        problems = self._state_problems(state_dict, prefix)
        if problems:
            error_messages.extend(problems)
            return
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _state_problems(self, state_dict: dict[str, Any], prefix: str) -> list[str]:
        problems = []
        layout = state_dict.get(f"{prefix}layout")
        if layout is not None and layout.tolist() != self.layout_values():
            names = "format version, bits, rows, columns, group size, symmetric"
            problems.append(f"{prefix}layout ({names}) is {layout.tolist()}, this layer has {self.layout_values()}")
        for name, dtype in self.buffer_dtypes().items():
            found = state_dict.get(prefix + name)
            if found is not None and found.dtype != dtype:
                problems.append(f"{prefix}{name} has dtype {found.dtype}, this layer has {dtype}")
        return problems


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bytes: other than for ``torch.equal``, 0.0 and -0.0 differ.

    Args:
        one: Any shape.
        other: Of the same dtype.
    """
    whole = _WHOLE_NUMBERS[one.element_size()]
    return torch.equal(one.view(whole), other.view(whole))


def hash_tensors(state: hashlib._Hash, tensors: Sequence[Tensor]) -> None:
    """Add the bytes of tensors to a hash.

    Args:
        state: The hash.
        tensors: On any device.
    """
    for tensor in tensors:
        contiguous = tensor.detach().cpu().contiguous()
        state.update(byte_view(contiguous))
