"""Kernels are tried before they are used."""

from __future__ import annotations

import re

import pytest

from monoquant.kernels.base import Kernel
from monoquant.kernels.checking import disagreement
from monoquant.kernels.choice import BUILT_IN_KERNELS
from tests.kernels import crooked


@pytest.mark.parametrize("kernel", [*BUILT_IN_KERNELS, crooked.Fast(), crooked.Rough(), crooked.Rounds()], ids=repr)
def test_sound_kernels_agree(kernel: Kernel) -> None:
    """monoquant's own compute here what they should; so do approximate ones, within the error that they declare."""
    assert disagreement(kernel) is None


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (crooked.Wrong(), "relative error of"),
        (crooked.Flat(), r"has shape \("),
        (crooked.HidesNan(), "hides a nan"),
        (crooked.Raises(), "raised OSError: illegal instruction"),
        (crooked.RoundsDown(), "gives another scale"),
        (crooked.MeasuresNothing(), "measures"),
    ],
    ids=repr,
)
def test_unsound_ones_do_not(kernel: Kernel, reason: str) -> None:
    """A wrong product, a wrong shape, a lost nan, an exception, wrong bytes: each is told."""
    found = disagreement(kernel)
    assert found is not None
    assert re.search(reason, found)
