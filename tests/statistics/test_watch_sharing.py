"""ProductWatch and memory: inputs that are shared, written to, freed, or counted by one layer alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.statistics.watching import FEATURES, Check, Collect, TwoLayers, rows


def in_place_after(a: nn.Linear, b: nn.Linear, x: Tensor) -> None:
    h = x.clone()
    a(h)
    h.mul_(3)
    b(h)


def in_place_through_a_view(a: nn.Linear, b: nn.Linear, x: Tensor) -> None:
    h = x.clone()
    a(h)
    h.view(-1)[:].mul_(3)
    b(h)


def in_place_by_data(a: nn.Linear, b: nn.Linear, x: Tensor) -> None:
    h = x.clone()
    a(h)
    h.data.mul_(3)
    b(h)


def in_place_by_out(a: nn.Linear, b: nn.Linear, x: Tensor) -> None:
    h = x.clone()
    a(h)
    torch.mul(h, 3, out=h)
    b(h)


def in_place_by_index(a: nn.Linear, b: nn.Linear, x: Tensor) -> None:
    h = x.clone()
    a(h)
    h[:, :] = 3 * x
    b(h)


def in_place_by_copy(a: nn.Linear, b: nn.Linear, x: Tensor) -> None:
    h = x.clone()
    a(h)
    h.copy_(3 * x)
    b(h)


def reused_buffer(a: nn.Linear, b: nn.Linear, x: Tensor) -> None:
    buffer = torch.empty_like(x)
    torch.add(x, 0, out=buffer)
    a(buffer)
    torch.mul(x, 3, out=buffer)
    b(buffer)


def in_place_by_an_activation(a: nn.Linear, b: nn.Linear, x: Tensor) -> None:
    h = x.clone()
    a(h)
    functional.threshold(h, float(x.max()) + 1, 0.0, inplace=True)
    h.add_(x).add_(2 * x)
    b(h)


def in_place_in_a_list(a: nn.Linear, b: nn.Linear, x: Tensor) -> None:
    h = x.clone()
    a(h)
    torch._foreach_mul_([h], 3)
    b(h)


@pytest.mark.parametrize(
    "run",
    [
        in_place_after,
        in_place_through_a_view,
        in_place_by_data,
        in_place_by_out,
        in_place_by_index,
        in_place_by_copy,
        reused_buffer,
        in_place_by_an_activation,
        in_place_in_a_list,
    ],
)
def test_inputs_that_are_written_to_later_are_counted_as_they_were(
    collect: Collect, assert_moments: Check, run: Callable[[nn.Linear, nn.Linear, Tensor], None]
) -> None:
    """However the writing is done, and although both layers are given the same memory."""
    x, y = rows(), rows(seed=1)
    found = collect(TwoLayers(run), x, y)
    for layer, factor in (("a", 1), ("b", 3)):
        [part] = found[layer, "weight"]
        assert_moments(part, factor * torch.cat([x, y]))
    assert found["a", "weight"][0].moments is not found["b", "weight"][0].moments


@pytest.mark.parametrize("size", [1, 40, 4000])
def test_freed_memory_never_merges_inputs(collect: Collect, assert_moments: Check, size: int) -> None:
    """An allocator gives a freed input's address to the next one, of the same shape and version."""
    addresses: list[list[int]] = []

    def run(a: nn.Linear, b: nn.Linear, x: Tensor) -> None:
        used = []
        for layer, factor in ((a, 1), (b, 2)):
            h = x * factor
            used.append(h.data_ptr())
            layer(h)
            del h
        addresses.append(used)

    batches = [rows(size, seed=seed) for seed in range(6)]
    found = collect(TwoLayers(run), *batches)
    for layer, factor in (("a", 1), ("b", 2)):
        [part] = found[layer, "weight"]
        assert_moments(part, factor * torch.cat(batches))
    assert found["a", "weight"][0].moments is not found["b", "weight"][0].moments
    assert len(addresses) == 6


def test_freed_memory_never_merges_inputs_of_many_layers(collect: Collect, assert_moments: Check) -> None:
    """Nor when more tensors came between than are kept alive."""

    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(FEATURES, 16) for _ in range(12))

        def forward(self, x: Tensor) -> None:
            for factor, layer in enumerate(self.layers, 1):
                layer(x * factor)

    batches = [rows(seed=seed) for seed in range(3)]
    found = collect(Many(), *batches)
    for factor in range(1, 13):
        [part] = found[f"layers.{factor - 1}", "weight"]
        assert_moments(part, factor * torch.cat(batches))


class Attention(nn.Module):
    """Query, key and value of one tensor; for the second call a memory may be given, as in cross attention."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(FEATURES, FEATURES) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        other = x if memory is None else memory
        q, k, v = self.q(x), self.k(other), self.v(other)
        return self.o(torch.softmax(q @ k.mT / 8, -1) @ v)


def test_layers_that_share_an_input_share_its_moments(collect: Collect, assert_moments: Check) -> None:
    """Query, key and value are one Hessian, to be kept and factored once; the output projection has another."""
    batches = [rows(seed=seed).view(4, 10, FEATURES) for seed in range(3)]
    found = {layer: parts[0] for (layer, _), parts in collect(Attention(), *batches).items()}
    assert found["q"].moments is found["k"].moments is found["v"].moments is not found["o"].moments
    assert_moments(found["q"], torch.cat(batches))


def test_layers_part_when_they_no_longer_share_an_input(collect: Collect, assert_moments: Check) -> None:
    """From then on each counts its own; what they had in common stays in both."""
    x, memory, last = rows(), rows(30, seed=1), rows(seed=2)
    found = {layer: parts[0] for (layer, _), parts in collect(Attention(), x, (x, memory), last).items()}
    assert found["k"].moments is not found["q"].moments
    assert_moments(found["q"], torch.cat([x, x, last]))
    for layer in "kv":
        assert_moments(found[layer], torch.cat([x, memory, last]))


def test_one_of_three_may_be_left_out(collect: Collect, assert_moments: Check) -> None:
    """A layer that is not called for some batches counts those it was called for."""

    class Sometimes(Attention):
        def forward(self, x: Tensor, memory: Tensor | None = None) -> Any:
            return (self.q(x), self.k(x), self.v(x) if memory is None else None)

    x, y = rows(), rows(seed=1)
    for calls in ([x, (y, y)], [(x, x), y]):
        found = {layer: parts[0] for (layer, _), parts in collect(Sometimes(), *calls).items() if parts}
        assert_moments(found["q"], torch.cat([x, y]))
        assert_moments(found["k"], torch.cat([x, y]))
        assert_moments(found["v"], x if calls[0] is x else y)
