"""The native library's functions as kernels of monoquant."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from monoquant import Codes, Energy, Product, ProductKernel, RoundingKernel, Scheme
from torch import Tensor

from monoquant_cpu.library import MOST_THREADS, Library, Unavailable, load


def obstacle_of(device: torch.device, dtype: torch.dtype, scheme: Scheme) -> str | None:
    """Why the native library cannot work on something.

    Args:
        device: Where it is.
        dtype: Of inputs, or of weights to pack.
        scheme: Of the packed matrix.

    Returns:
        A reason; None if it can.
    """
    library = load()
    if isinstance(library, Unavailable):
        return library.reason
    if device.type != "cpu":
        return f"it is for CPUs, not for {device.type}"
    if scheme.bits != 4 or dtype == torch.float64:
        return "it is for 4 bits and dtypes up to float32"
    return None


class NativeProduct(ProductKernel):
    """Reads the canonical storage as it is: nothing is derived, and no memory taken."""

    kind: ClassVar[Literal["int8", "float"]]

    def obstacle(self, product: Product) -> str | None:
        return obstacle_of(product.device, product.dtype, product.scheme)

    def multiply(self, inputs: Tensor, codes: Codes, derived: tuple[Tensor, ...], bias: Tensor | None) -> Tensor:
        output = _library().product(
            self.kind,
            inputs if inputs.dtype is torch.float32 else inputs.float(),
            codes.qweight,
            codes.scale,
            codes.zero_point,
            codes.columns,
            codes.group_size,
            bias if bias is None or bias.dtype is torch.float32 else bias.float(),
            threads=min(torch.get_num_threads(), MOST_THREADS),
        )
        return output if inputs.dtype is torch.float32 else output.to(inputs.dtype)


class CpuInt8(NativeProduct):
    """Rounds each group of inputs to 8 bits, and multiplies integers."""

    name: ClassVar[str] = "cpu-int8"
    relative_error: ClassVar[float] = 3e-2
    """Normally distributed inputs lose .007; those with outliers, which take the digits of their group, up to this."""
    preference: ClassVar[int] = 30
    kind = "int8"


class CpuFloat(NativeProduct):
    """Multiplies in float32."""

    name: ClassVar[str] = "cpu-float"
    relative_error: ClassVar[float] = 1e-6
    preference: ClassVar[int] = 20
    kind = "float"


class CpuRounding(RoundingKernel):
    """Rounds and packs weights while it reads them once."""

    name: ClassVar[str] = "cpu-rounding"
    preference: ClassVar[int] = 20

    def obstacle(self, dtype: torch.dtype, device: torch.device, scheme: Scheme) -> str | None:
        return obstacle_of(device, dtype, scheme)

    def pack(self, values: Tensor, scheme: Scheme, codes: Codes, *, measured: bool) -> Energy | None:
        energies = torch.zeros(2, dtype=torch.float64, device="cpu") if measured else None
        _library().quantize_rows(
            values if values.stride(1) == 1 else values.contiguous(),
            codes.group_size,
            codes.qweight,
            codes.scale,
            codes.zero_point,
            threads=min(torch.get_num_threads(), MOST_THREADS),
            energies=energies,
        )
        return None if energies is None else Energy(*energies.tolist())


def _library() -> Library:
    library = load()
    if isinstance(library, Unavailable):  # obstacle() has said so; who calls anyway is told once more
        raise RuntimeError(library.reason)
    return library
