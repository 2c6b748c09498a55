"""A stack of Linear layers of one shape, whose values are drawn once."""

from __future__ import annotations

import torch
from torch import nn

COLUMNS, ROWS = 4096, 11008
SPREAD = 0.02
"""Standard deviation of the weights."""


class Stack:
    """Makes stacks of so many weights.

    Args:
        weights: Of all layers together.
    """

    def __init__(self, weights: int) -> None:
        torch.manual_seed(0)
        self._weights = weights
        self._values = torch.randn(min(ROWS, max(1, weights // COLUMNS)), COLUMNS) * SPREAD

    def build(self, part: float = 1.0) -> nn.Module:
        """Layers of 4096 columns and 11008 rows; the last one has as many rows as are left.

        Args:
            part: Of the weights.
        """
        rows = int(self._weights * part) // COLUMNS
        sizes = [ROWS] * (rows // ROWS) + ([rows % ROWS] if rows % ROWS else [])
        return nn.ModuleList([self._layer(size) for size in sizes])

    def _layer(self, rows: int) -> nn.Linear:
        layer = float_layer(COLUMNS, rows)
        layer.weight = nn.Parameter(self._values[:rows].clone(), requires_grad=False)
        return layer


def float_layer(columns: int, rows: int) -> nn.Linear:
    """A layer without bias whose weight is still to be given."""
    return nn.Linear(columns, rows, bias=False, device="meta").requires_grad_(False)
