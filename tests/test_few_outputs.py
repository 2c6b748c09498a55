"""Layers with few outputs, whose products may be near zero by chance."""

from __future__ import annotations

from typing import ClassVar

import pytest
from torch import Tensor

from monoquant.kernels import choice
from monoquant.kernels.base import Codes
from monoquant.kernels.choice import Offer
from monoquant.kernels.portable import Portable
from monoquant.measurement import multiplies_as_it_should
from monoquant.values import Scheme
from tests.kernels.matrices import packed


class RoundsInputs(Portable):
    """Rounds each input row to 8 bits, as fast kernels do."""

    name: ClassVar[str] = "rounds-inputs"
    relative_error: ClassVar[float] = 1e-2
    preference: ClassVar[int] = 60
    factor: ClassVar[float] = 1.0

    def multiply(self, inputs: Tensor, codes: Codes, derived: tuple[Tensor, ...], bias: Tensor | None) -> Tensor:
        step = inputs.abs().amax(1, keepdim=True) / 127
        return super().multiply((inputs / step).round() * step, codes, (), bias) * self.factor


class RoundsWrongly(RoundsInputs):
    """And is wrong by a tenth."""

    name: ClassVar[str] = "rounds-wrongly"
    factor: ClassVar[float] = 1.1


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 100])
def test_a_sound_kernel_passes_and_a_wrong_one_does_not(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the weights; a head with a single output is as common as any other."""
    monkeypatch.setattr(choice, "disagreement", lambda _kernel: None)  # which would find it out before
    for seed in range(30):
        matrix = packed(rows, 256, Scheme(), seed=seed)
        matrix.use(Offer([RoundsInputs()], exact=False))
        assert multiplies_as_it_should(matrix)
        matrix.use(Offer([RoundsWrongly()], exact=False))
        assert not multiplies_as_it_should(matrix)
