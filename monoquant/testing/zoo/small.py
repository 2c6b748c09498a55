"""A small language model with everything that default rules, ties of training flags and ragged groups need."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

_DEVIATION = 0.1


class SmallBlock(nn.Module):
    """A residual block with a norm and two Linears, 96 -> 200 -> 96: ragged at groups of 64 and 128."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(96)
        self.up = nn.Linear(96, 200)
        self.down = nn.Linear(200, 96, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the block makes of its input."""
        made: Tensor = self.down(torch.relu(self.up(self.norm(x))))
        return x + made


class SmallModel(nn.Module):
    """Embedding, two blocks, a running buffer, and a head that the default rules keep in float; 50 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 96)
        self.blocks = nn.ModuleList([SmallBlock(), SmallBlock()])
        self.bn = nn.BatchNorm1d(96)
        self.lm_head = nn.Linear(96, 50)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``[batch, 50]`` of int64 tokens ``[batch, length]``."""
        x: Tensor = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.lm_head(self.bn(x.mean(1)))
        return logits


def small_model(seed: int = 0) -> SmallModel:
    """A SmallModel with Gaussian weights, as trained ones are rather than uniform.

    Args:
        seed: Of its weights; default 0. The global random state is left alone.

    Returns:
        In training mode, but for its second block: whoever restores flags has something to restore.
    """
    generator = Generator("cpu").manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        model = SmallModel()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, device="cpu") * _DEVIATION)
    model.blocks[1].eval()
    return model


def small_batches(seed: int = 1) -> list[Tensor]:
    """Ten batches of 12 sequences of 7 tokens for a SmallModel.

    Args:
        seed: Of the tokens; default 1.
    """
    generator = Generator("cpu").manual_seed(seed)
    return [torch.randint(0, 50, (12, 7), generator=generator, device="cpu") for _ in range(10)]
