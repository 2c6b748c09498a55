"""Models, data and answers for tests of comparing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch
from torch import Tensor, nn

import monoquant as mq


@attrs.frozen(eq=False)
class Answer:
    """What models of other libraries return."""

    logits: Tensor
    hidden: Tensor


class Net(nn.Module):
    """Two Gaussian Linears around a wide middle; the answer is wrapped."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any] = lambda y, _: y, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.a, self.b, self.wrap = nn.Linear(96, 64), nn.Linear(64, 48), wrap
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Any:
        hidden = torch.relu(self.a(x))
        return self.wrap(self.b(hidden), hidden)


def batches(*shape: int, count: int = 3, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


DATA = batches(8, 96)


def compared(model: nn.Module, compare: Any = DATA, **options: Any) -> mq.QuantResult:
    quiet = {"accuracy_warning": "ignore", "plugins": False}
    return mq.quantize(model, compare=compare, **{**quiet, **options})


def answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found = model.eval()(x)
    return getattr(found, "logits", found)


def cosine(reference: Tensor, other: Tensor) -> float:
    """Cosine written a second time."""
    rows = list(zip(reference.double().flatten(0, -2), other.double().flatten(0, -2), strict=True))
    return math.fsum(float(p @ q / (p.norm() * q.norm())) for p, q in rows) / len(rows)


def generator() -> Iterator[Tensor]:
    yield from DATA
