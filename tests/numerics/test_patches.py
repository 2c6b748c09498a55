"""Unfolded convolutions: products of patches with the weight's matrix are what torch computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Generator, Tensor, nn
from torch.nn import functional

from monoquant.numerics.matrix_form import MatrixForm
from monoquant.numerics.patches import Convolution

PLAIN = (functional.conv1d, functional.conv2d, functional.conv3d)
TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)


@st.composite
def geometries(draw: DrawFn, transposed: bool) -> Convolution:
    """Convolutions of one to three dimensions, each with its own numbers."""
    dims = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    stride, dilation = each(1, 3), each(1, 3)
    extra = tuple(draw(st.integers(0, max(one, other) - 1)) for one, other in zip(stride, dilation, strict=True))
    return Convolution(
        kernel=each(1, 3),
        stride=stride,
        padding=each(0, 2),
        dilation=dilation,
        groups=draw(st.integers(1, 3)),
        transposed=transposed,
        output_padding=extra if transposed else (),
    )


def product(geometry: Convolution, inputs: Tensor, weight: Tensor) -> Tensor:
    """Patches times the weight's matrix: ``[samples * positions, channels]``."""
    form = MatrixForm.rows_first(weight.shape)
    if geometry.transposed:
        form = MatrixForm.transposed_convolution(weight.shape, geometry.groups)
    groups = form.to_matrix(weight).chunk(geometry.groups)
    answers: list[list[Tensor]] = [[] for _ in groups]
    for group, patches in geometry.patches(inputs):
        answers[group].append(patches @ groups[group].T)
    assert {len(one) for one in answers} == {len(inputs)}
    return torch.cat([torch.cat(one) for one in answers], 1)


def convolved(geometry: Convolution, inputs: Tensor, weight: Tensor) -> Tensor:
    """The same by torch."""
    options: dict[str, Any] = {"stride": geometry.stride, "padding": geometry.padding, "dilation": geometry.dilation}
    function = (TRANSPOSED if geometry.transposed else PLAIN)[len(geometry.kernel) - 1]
    if geometry.transposed:
        options["output_padding"] = geometry.output_padding
    answer = function(inputs, weight, groups=geometry.groups, **options)
    return answer.movedim(1, -1).reshape(-1, answer.shape[1])


@pytest.mark.parametrize("transposed", [False, True])
@settings(max_examples=150)
@given(data=st.data(), channels=st.integers(1, 2), outputs=st.integers(1, 2), samples=st.integers(1, 2))
def test_patches_times_weight_is_the_convolution(
    transposed: bool, data: Any, channels: int, outputs: int, samples: int
) -> None:
    """Of any geometry, by sample, position and output channel; in double precision, where nothing hides."""
    geometry = data.draw(geometries(transposed))
    reach = [spacing * (size - 1) + 1 for spacing, size in zip(geometry.dilation, geometry.kernel, strict=True)]
    # A transposed convolution must have something left of its output, a plain one must fit into its padded input.
    least = [max(1, size - 2 * margin) for size, margin in zip(reach, geometry.padding, strict=True)]
    if transposed:
        least = [
            max(1, -(-(2 * margin + 1 - size - extra) // step) + 1)
            for size, margin, step, extra in zip(
                reach, geometry.padding, geometry.stride, geometry.output_padding, strict=True
            )
        ]
    spatial = [size + data.draw(st.integers(0, 3)) for size in least]
    generator = Generator().manual_seed(data.draw(st.integers(0, 2**32 - 1)))
    groups = geometry.groups
    shape = (groups * channels, outputs) if transposed else (groups * outputs, channels)
    weight = torch.randn(*shape, *geometry.kernel, generator=generator, dtype=torch.float64)
    inputs = torch.randn(samples, groups * channels, *spatial, generator=generator, dtype=torch.float64)
    expected = convolved(geometry, inputs, weight)
    torch.testing.assert_close(product(geometry, inputs, weight), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)])
def test_inputs_are_left_alone(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """They are the model's, and patches may be written to without changing them."""
    geometry = Convolution(
        (3, 3), layer.stride, (1, 1), (1, 1), 2, layer.transposed, (1, 1) if layer.transposed else ()
    )
    inputs = torch.randn(2, 4, 5, 5)
    before = inputs.clone()
    for _, patches in geometry.patches(inputs):
        patches.zero_()
    assert torch.equal(inputs, before)
