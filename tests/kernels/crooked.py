"""Kernels for the tests of how kernels are chosen, called and tried; at the top of a module, as kernels must be."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from monoquant.kernels.base import Codes, Product, RoundingKernel
from monoquant.kernels.portable import Portable, dequantized
from monoquant.numerics.affine import round_to_nearest
from monoquant.numerics.metrics import Energy, measure
from monoquant.numerics.packing import pack_nibbles
from monoquant.values import Scheme


class Fast(Portable):
    """As exact as the portable one, and preferred to it; it derives the sum of the codes of each row."""

    name: ClassVar[str] = "fast"
    preference: ClassVar[int] = 50

    def derive(self, codes: Codes, product: Product) -> tuple[Tensor, ...]:
        return (codes.qweight.sum(1),)

    def multiply(self, inputs: Tensor, codes: Codes, derived: tuple[Tensor, ...], bias: Tensor | None) -> Tensor:
        (sums,) = derived
        assert torch.equal(sums, codes.qweight.sum(1)), "what was derived is that of other codes"
        return super().multiply(inputs, codes, (), bias)


class Rough(Portable):
    """Preferred to all others, and approximate."""

    name: ClassVar[str] = "rough"
    relative_error: ClassVar[float] = 0.1
    preference: ClassVar[int] = 90

    def multiply(self, inputs: Tensor, codes: Codes, derived: tuple[Tensor, ...], bias: Tensor | None) -> Tensor:
        return super().multiply(inputs, codes, (), bias) * 1.05


class Picky(Fast):
    """Multiplies float32 only."""

    name: ClassVar[str] = "picky"
    preference: ClassVar[int] = 95

    def obstacle(self, product: Product) -> str | None:
        return None if product.dtype == torch.float32 else "it is for float32"


class Wrong(Fast):
    """Adds one to each output."""

    name: ClassVar[str] = "wrong"

    def multiply(self, inputs: Tensor, codes: Codes, derived: tuple[Tensor, ...], bias: Tensor | None) -> Tensor:
        return super().multiply(inputs, codes, derived, bias) + 1


class WrongInLargeMatrices(Fast):
    """Adds one to each output, where nobody tries it."""

    name: ClassVar[str] = "wrong-in-large-matrices"

    def multiply(self, inputs: Tensor, codes: Codes, derived: tuple[Tensor, ...], bias: Tensor | None) -> Tensor:
        return super().multiply(inputs, codes, derived, bias) + (codes.columns > 500)


class Flat(Portable):
    """Answers in another shape."""

    name: ClassVar[str] = "flat"

    def multiply(self, inputs: Tensor, codes: Codes, derived: tuple[Tensor, ...], bias: Tensor | None) -> Tensor:
        return super().multiply(inputs, codes, (), bias).flatten()


class HidesNan(Portable):
    """Takes nan for zero."""

    name: ClassVar[str] = "hides-nan"

    def multiply(self, inputs: Tensor, codes: Codes, derived: tuple[Tensor, ...], bias: Tensor | None) -> Tensor:
        return super().multiply(inputs.nan_to_num(), codes, (), bias)


class Raises(Portable):
    """Does not work here."""

    name: ClassVar[str] = "raises"

    def multiply(self, inputs: Tensor, codes: Codes, derived: tuple[Tensor, ...], bias: Tensor | None) -> Tensor:
        raise OSError("illegal instruction")


class Rounds(RoundingKernel):
    """Packs 4 bits as it should."""

    name: ClassVar[str] = "rounds"
    preference: ClassVar[int] = 50

    def obstacle(self, dtype: torch.dtype, device: torch.device, scheme: Scheme) -> str | None:
        return None if scheme.bits == 4 else "it is for 4 bits"

    def pack(self, values: Tensor, scheme: Scheme, codes: Codes, *, measured: bool) -> Energy | None:
        found = round_to_nearest(values, scheme)
        codes.qweight.copy_(pack_nibbles(found.codes))
        codes.scale.copy_(found.scale)
        if codes.zero_point is not None:
            codes.zero_point.copy_(pack_nibbles(found.zero_point.flatten()))
        return measure(values, dequantized(codes)) if measured else None


class RoundsDown(Rounds):
    """Leaves the scales alone."""

    name: ClassVar[str] = "rounds-down"

    def pack(self, values: Tensor, scheme: Scheme, codes: Codes, *, measured: bool) -> Energy | None:
        kept = codes.scale.clone()
        energy = super().pack(values, scheme, codes, measured=measured)
        codes.scale.copy_(kept)
        return energy


class MeasuresNothing(Rounds):
    """Says that nothing was lost."""

    name: ClassVar[str] = "measures-nothing"

    def pack(self, values: Tensor, scheme: Scheme, codes: Codes, *, measured: bool) -> Energy | None:
        super().pack(values, scheme, codes, measured=measured)
        return Energy() if measured else None
