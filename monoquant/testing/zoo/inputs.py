"""Inputs that specimens are called with, drawn on the CPU whatever torch's default device is."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from monoquant.testing.zoo.specimen import Inputs


def floats(*shapes: tuple[int, ...]) -> Inputs:
    """Gaussian tensors.

    Args:
        shapes: One per argument.
    """

    def draw(generator: Generator) -> tuple[Tensor, ...]:
        return tuple(torch.randn(shape, generator=generator, device="cpu") for shape in shapes)

    return draw


def indices(count: int, *shape: int) -> Inputs:
    """One tensor of int64 indices.

    Args:
        count: They are smaller than this.
        shape: Of the tensor.
    """

    def draw(generator: Generator) -> tuple[Tensor, ...]:
        return (torch.randint(count, shape, generator=generator, device="cpu"),)

    return draw


def weighted_bags(generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """20 indices below 90, offsets of five bags (the second is empty), and a factor per index.

    Args:
        generator: Draws them.
    """
    chosen = torch.randint(90, (20,), generator=generator, device="cpu")
    offsets = torch.tensor([0, 3, 3, 11, 18], device="cpu")
    return chosen, offsets, torch.randn(20, generator=generator, device="cpu")


def one_tensor_thrice(generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value that are one object: only then attention takes its fused kernel.

    Args:
        generator: Draws it.
    """
    x = torch.randn(3, 7, 64, generator=generator, device="cpu")
    return x, x, x
