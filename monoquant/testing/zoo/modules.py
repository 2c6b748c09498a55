"""Modules as people write them, for which torch has no class."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class HalvingLinear(nn.Linear):
    """A Linear with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        """Half of what a Linear answers."""
        return functional.linear(input, self.weight, self.bias) / 2


class Experts(nn.Module):
    """Four experts, whose matrices are slices of 3-D parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(4, 96, 64))
        self.down = nn.Parameter(torch.empty(4, 64, 96))

    def forward(self, x: Tensor) -> Tensor:
        """Ask all of them."""
        answers = [functional.linear(torch.relu(functional.linear(x, self.up[i])), self.down[i]) for i in range(4)]
        return torch.stack(answers).mean(0)


class Gated(nn.Module):
    """A Linear and, beside it, a bare matrix and a bare vector."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(64, 48)
        self.gate = nn.Parameter(torch.empty(48, 64))
        self.shift = nn.Parameter(torch.empty(48))

    def forward(self, x: Tensor) -> Tensor:
        """Gate the answer of the Linear."""
        value: Tensor = self.value(x)
        return value * torch.sigmoid(x @ self.gate.T + self.shift)


class MatrixList(nn.Module):
    """Two matrices in a ParameterList."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ParameterList([torch.empty(64, 64), torch.empty(48, 64)])

    def forward(self, x: Tensor) -> Tensor:
        """Apply one after the other."""
        for matrix in self.steps:
            x = torch.tanh(functional.linear(x, matrix))
        return x


class MatrixDict(nn.Module):
    """A matrix and a vector in a ParameterDict."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ParameterDict({"matrix": torch.empty(48, 64), "shift": torch.empty(48)})

    def forward(self, x: Tensor) -> Tensor:
        """A product and a sum."""
        return functional.linear(x, self.parts["matrix"], self.parts["shift"])


class TiedHead(nn.Module):
    """A language model whose head has the weight of its embedding, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 64)
        self.middle = nn.Linear(64, 64)
        self.head = nn.Linear(64, 60)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token."""
        logits: Tensor = self.head(torch.tanh(self.middle(self.embed(tokens))))
        return logits


class UsedTwice(nn.Module):
    """One Linear under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        """Apply it twice."""
        answer: Tensor = self.second(torch.tanh(self.first(x)))
        return answer


class ComputedNames(nn.Module):
    """Matrices that the code reads by names that it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.w0 = nn.Parameter(torch.empty(64, 64))
        self.w1 = nn.Parameter(torch.empty(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        """Apply one after the other."""
        for i in range(2):
            x = torch.tanh(functional.linear(x, getattr(self, f"w{i}")))
        return x


class SlottedLinear(nn.Linear):
    """A Linear whose objects have a fixed layout, so that they cannot take another class."""

    __slots__ = ("note",)


class BesideLinear(nn.Module):
    """A part that cannot be packed, and a Linear that can.

    Args:
        part: Its answers have 64 features.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.head = nn.Linear(64, 16)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the part, then the Linear."""
        answer: Tensor = self.head(self.part(input))
        return answer
