"""Fixtures of pytest; they are there where a test module or a conftest asks for them, and nowhere else.

Either name the module in the conftest at the root of your tests, ``pytest_plugins = ["monoquant.testing.fixtures"]``,
or import the fixtures that you need. There is no entry point: it would import torch in every run of pytest.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from monoquant.testing import zoo
from monoquant.testing.unchanged import ModelState, assert_unchanged
from monoquant.testing.zoo import Specimen

__all__ = ["small_batches", "small_model", "specimen", "unchanged"]


@pytest.fixture
def small_model() -> nn.Module:
    """A small language model, see :class:`monoquant.testing.zoo.SmallModel`; in training mode, but for one block."""
    return zoo.small_model()


@pytest.fixture
def small_batches() -> list[Tensor]:
    """Calibration data for ``small_model``: ten batches of 12 sequences of 7 tokens."""
    return zoo.small_batches()


@pytest.fixture(params=zoo.specimens(), ids=str)
def specimen(request: pytest.FixtureRequest) -> Specimen:
    """Each specimen of the zoo in turn: a test that takes it runs once for every kind of module."""
    found: Specimen = request.param
    return found


@pytest.fixture
def unchanged() -> Callable[[nn.Module], Callable[[], None]]:
    """Remember a model now, get a function that fails if anything of it has changed since.

    Example::

        def test_my_pass_leaves_the_model_alone(small_model, unchanged):
            check = unchanged(small_model)
            quantize_somehow(small_model)
            check()
    """

    def remember(model: nn.Module) -> Callable[[], None]:
        before = ModelState.of(model)
        return lambda: assert_unchanged(model, before)

    return remember
