"""Models and helpers that many tests share."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

from monoquant.testing import zoo
from monoquant.testing.fixtures import unchanged
from monoquant.testing.zoo import SmallModel

__all__ = ["unchanged"]

# Machines differ and are busy: how long an example takes says nothing about whether it is right.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Whatever weights torch draws, they are the same ones in every run."""
    torch.manual_seed(0)


@pytest.fixture
def small() -> SmallModel:
    """A small model in training mode with one frozen flag, so that restoring flags is seen."""
    return zoo.small_model()


@pytest.fixture
def tokens() -> list[Tensor]:
    """Ten batches of 12 token sequences."""
    return zoo.small_batches()


@pytest.fixture
def fresh_small() -> Callable[[], SmallModel]:
    """Build another small model with other weights, as someone who loads a file would."""
    return lambda: zoo.small_model(seed=99)


@pytest.fixture
def clone() -> Callable[[nn.Module], nn.Module]:
    """Deep copy a model."""
    return copy.deepcopy
