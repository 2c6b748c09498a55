"""What a kernel is: it multiplies with packed matrices, or packs weights, where it can; others bring further ones."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, NamedTuple

import attrs
import torch
from torch import Tensor

from monoquant.numerics.metrics import Energy
from monoquant.values import Scheme

EXACT = 1e-5
"""Kernels with at most this relative error are as exact as a float32 product; sums in another order differ as much."""


class Codes(NamedTuple):
    """A packed matrix in canonical storage; :class:`monoquant.modules.packed_matrix.PackedMatrix` says what it means.

    Args:
        qweight: uint8 ``[rows, ceil(columns / 2)]``, or int8 ``[rows, columns]``.
        scale: float16, bfloat16 or float32 ``[rows, groups]``.
        zero_point: uint8 ``[ceil(rows * groups / 2)]``, or int8 ``[rows, groups]``; None when symmetric.
        columns: Input features.
        group_size: Features per group, at most ``columns``.
    """

    qweight: Tensor
    scale: Tensor
    zero_point: Tensor | None
    columns: int
    group_size: int

    @property
    def rows(self) -> int:
        """Output features."""
        return int(self.qweight.shape[0])

    @property
    def is_int4(self) -> bool:
        """Whether two codes are in a byte."""
        return self.qweight.dtype == torch.uint8


@attrs.frozen
class Product:
    """What is to be multiplied, known before any input is.

    Args:
        rows: Output features, >= 1.
        columns: Input features, >= 1.
        scheme: Bits, group size, symmetry and scale dtype of the packed matrix.
        device: Where it is.
        dtype: dtype of inputs and outputs.
    """

    rows: int
    columns: int
    scheme: Scheme
    device: torch.device
    dtype: torch.dtype

    @property
    def group_size(self) -> int:
        """Features per group, at most ``columns``."""
        return self.scheme.width(self.columns)


class Kernel(abc.ABC):
    """Base of all kernels: values without settings and without state, which classes at module level make.

    Compiled graphs, copies and pickles refer to a kernel by where its class can be imported from.
    """

    name: ClassVar[str]
    """What reports call it; no two kernels have the same."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class ProductKernel(Kernel):
    """Multiplies inputs with a packed matrix."""

    relative_error: ClassVar[float]
    """What it adds to the product, at most, on inputs of any one size: the norm of the error over that of the result.
    Kernels above 1e-5 are approximate, and ``exact=True`` forbids them."""
    preference: ClassVar[int]
    """Of those that can, the one with the largest is chosen; monoquant's own have 0 to 10."""

    @abc.abstractmethod
    def obstacle(self, product: Product) -> str | None:
        """Why it cannot multiply.

        Args:
            product: What is to be multiplied.

        Returns:
            A reason that continues "it cannot run:"; None if it can.
        """

    def derive(self, codes: Codes, product: Product) -> tuple[Tensor, ...]:
        """Rearrange the codes as this kernel, on this machine, reads them; kept beside the codes, and never saved.

        Args:
            codes: The packed matrix.
            product: What is to be multiplied.

        Returns:
            Any tensors; none (default) if it reads the codes as they are.
        """
        return ()

    @abc.abstractmethod
    def multiply(self, inputs: Tensor, codes: Codes, derived: tuple[Tensor, ...], bias: Tensor | None) -> Tensor:
        """``inputs @ weight.T + bias`` with ``weight = (q - zero_point) * scale``.

        Args:
            inputs: ``[n, columns]``, n >= 0, of the product's dtype; contiguous.
            codes: The packed matrix.
            derived: What :meth:`derive` returned for it.
            bias: ``[rows]`` in any float dtype, or None.

        Returns:
            A new tensor ``[n, rows]`` of the inputs' dtype. Rows of inputs with nan or inf give no finite numbers.
        """


class RoundingKernel(Kernel):
    """Rounds weights to the nearest codes and packs them, to the same bytes as :func:`round_to_nearest` gives."""

    preference: ClassVar[int]
    """Of those that can, the one with the largest is chosen; monoquant's own has 0."""

    @abc.abstractmethod
    def obstacle(self, dtype: torch.dtype, device: torch.device, scheme: Scheme) -> str | None:
        """Why it cannot pack.

        Args:
            dtype: Of the weights.
            device: Where they are.
            scheme: To what.

        Returns:
            A reason that continues "it cannot run:"; None if it can.
        """

    @abc.abstractmethod
    def pack(self, values: Tensor, scheme: Scheme, codes: Codes, *, measured: bool) -> Energy | None:
        """Pack some rows.

        Args:
            values: ``[rows, columns]`` of one of the dtypes that it said it can take; rows may be strided. If one is
                not finite, neither must the signal be that it returns, and the codes may be anything.
            scheme: Bits, group size, symmetry and scale dtype.
            codes: Where to: buffers of so many rows, contiguous, written completely. A zero_point nibble of the first
                row is the low one of the first byte.
            measured: Whether energies are wanted.

        Returns:
            Energies of the values and of what rounding changed in them, that is, what they differ in from the
            dequantized values in their own dtype, summed in float64; None where nobody wants them.
        """


def product_of(codes: Codes, scheme: Scheme, dtype: torch.dtype) -> Product:
    """The product that a packed matrix is for.

    Args:
        codes: The packed matrix.
        scheme: Its scheme.
        dtype: dtype of inputs and outputs.
    """
    return Product(codes.rows, codes.columns, scheme, codes.qweight.device, dtype)


def located(kernel: Kernel) -> str:
    """Where a kernel's class can be imported from, ``"module:name"``.

    Args:
        kernel: The kernel.
    """
    kind: type[Any] = type(kernel)
    return f"{kind.__module__}:{kind.__qualname__}"
