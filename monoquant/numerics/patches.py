"""Convolutions as products: what each output position is multiplied with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.nn import functional


@attrs.frozen
class Convolution:
    """The geometry of a convolution of one to three dimensions.

    Args:
        kernel: Kernel size per dimension.
        stride: As torch's; so are the next five.
        padding: Zeros on both sides per dimension.
        dilation: Distance of kernel positions.
        groups: Groups of channels.
        transposed: Whether it is a transposed convolution.
        output_padding: Of transposed convolutions only.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def patches(self, inputs: Tensor) -> Iterator[tuple[int, Tensor]]:
        """What each output position is multiplied with, sample by sample so that memory stays bounded.

        Args:
            inputs: ``[samples, channels, *spatial]``.

        Yields:
            Group, and ``[positions, channels / groups * prod(kernel)]`` in the order of a weight's columns.
        """
        padded = self._spread(inputs) if self.transposed else functional.pad(inputs, _sides(self.padding))
        for sample in padded:
            windows = self._windows(sample)
            for group, part in enumerate(windows.chunk(self.groups)):
                dims = len(self.kernel)
                positions = part.permute(*range(1, dims + 1), 0, *range(dims + 1, 2 * dims + 1))
                yield group, positions.reshape(-1, part.shape[0] * _product(self.kernel))

    def _windows(self, sample: Tensor) -> Tensor:
        """``[channels, *positions, *kernel]``, a view."""
        for axis, (size, step, spacing) in enumerate(zip(self.kernel, self._steps, self.dilation, strict=True), 1):
            sample = sample.unfold(axis, spacing * (size - 1) + 1, step)
        windows = sample[_every(self.dilation)]
        return windows.flip(list(range(-len(self.kernel), 0))) if self.transposed else windows

    @property
    def _steps(self) -> tuple[int, ...]:
        return (1,) * len(self.kernel) if self.transposed else self.stride

    def _spread(self, inputs: Tensor) -> Tensor:
        """Inputs of a transposed convolution with zeros between them, as a plain one of stride 1 takes them."""
        spatial = inputs.shape[2:]
        spread = [(size - 1) * step + 1 for size, step in zip(spatial, self.stride, strict=True)]
        result = inputs.new_zeros(*inputs.shape[:2], *spread)
        result[_every(self.stride)] = inputs
        reach = [spacing * (size - 1) for spacing, size in zip(self.dilation, self.kernel, strict=True)]
        before = [length - cut for length, cut in zip(reach, self.padding, strict=True)]
        after = [length + extra for length, extra in zip(before, self.output_padding, strict=True)]
        return functional.pad(result, [side for pair in zip(before[::-1], after[::-1], strict=True) for side in pair])


def _every(steps: Sequence[int]) -> Any:
    """An index of every so many elements along the last axes."""
    return (..., *(slice(None, None, step) for step in steps))


def _sides(padding: Sequence[int]) -> list[int]:
    return [size for size in reversed(padding) for _ in range(2)]


def _product(sizes: Sequence[int]) -> int:
    return int(torch.Size(sizes).numel())
