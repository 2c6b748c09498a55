"""A weight stored in 16 bits of floating point."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from monoquant.errors import ConfigError
from monoquant.modules.packed_weight import Intended, PackedWeight, hash_tensors, same_bits
from monoquant.numerics.grouping import select_rows
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.values import HALF_DTYPES, HalfScheme

FORMAT_VERSION = 1


class HalfWeight(PackedWeight):
    """A weight kept as float16 or bfloat16 and cast to the layer's dtype when it is read.

    Args:
        form: Shape of the weight, and its matrix (which rows go together when only some are read).
        scheme: float16 or bfloat16.
        dtype: dtype of the weight when read; default torch.float32. Follows ``.to(dtype)``, the storage does not.
        device: Where the buffers live; default: torch's default device.

    Attributes:
        values: ``[rows, columns]`` in the scheme's dtype.
        layout: int32 ``[5]``: format version, 16 bits, rows, columns, 0 for float16 or 1 for bfloat16.
    """

    values: Tensor
    scheme: HalfScheme
    kept_exact = ("values",)

    def __init__(
        self,
        form: MatrixForm,
        scheme: HalfScheme,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        if not isinstance(scheme, HalfScheme):
            raise ConfigError(f"scheme={scheme!r}: give a HalfScheme")
        super().__init__(form, scheme, dtype)
        self.register_buffer("values", torch.zeros(form.rows, form.columns, dtype=scheme.dtype, device=device))
        self.register_buffer("layout", torch.tensor(self.layout_values(), dtype=torch.int32, device=device))

    @classmethod
    def pack(cls, weight: Tensor, scheme: HalfScheme, form: MatrixForm) -> tuple[HalfWeight, Intended]:
        """Cast a weight to the nearest values.

        Args:
            weight: A tensor of the form's shape, any real float dtype; finite, and within the scheme's range.
            scheme: float16 or bfloat16.
            form: How the tensor is a matrix.

        Returns:
            The stored weight, and what it must hold.
        """
        packed = cls(form, scheme, dtype=weight.dtype, device=weight.device)
        packed.values.copy_(form.to_matrix(weight.detach()))
        return packed, Intended(lambda held: _is_cast(held, form.to_matrix(weight.detach()).to(scheme.dtype)))

    def digest(self) -> str:
        state = hashlib.sha256()
        hash_tensors(state, [self.values])
        return state.hexdigest()

    def dequantized_rows(self, rows: slice | Tensor) -> Tensor:
        return select_rows(self.values, rows).to(self.dtype)

    def layout_values(self) -> list[int]:
        return [FORMAT_VERSION, 16, self.rows, self.columns, HALF_DTYPES.index(self.scheme.dtype)]

    def buffer_dtypes(self) -> dict[str, torch.dtype]:
        return {"values": self.scheme.dtype}


def _is_cast(packed: PackedWeight, values: Tensor) -> bool:
    return isinstance(packed, HalfWeight) and same_bits(packed.values, values)
