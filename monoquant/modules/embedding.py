"""Embeddings with packed weights: only the rows that are asked for are dequantized."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from monoquant.modules.packed_module import PackedModule
from monoquant.modules.packed_weight import PackedWeight


class PackedEmbedding(PackedModule):
    """Mixin of nn.Embedding."""

    packed_weight: PackedWeight

    def forward(self, input: Tensor) -> Tensor:
        """Look rows up.

        Args:
            input: int32 or int64 indices, any shape.

        Returns:
            ``[*input.shape, embedding_dim]`` in the layer's dtype.
        """
        rows = self.packed_weight.dequantized_rows(input.reshape(-1))
        return rows.view(*input.shape, self.packed_weight.columns)


class PackedEmbeddingBag(PackedModule):
    """Mixin of nn.EmbeddingBag."""

    packed_weight: PackedWeight
    mode: str
    include_last_offset: bool
    padding_idx: int | None

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Look rows up and reduce each bag.

        Args:
            input: int32 or int64 indices, ``[bags, n]``, or ``[total]`` with offsets.
            offsets: Where each bag begins.
            per_sample_weights: A factor per index, for ``mode="sum"``.

        Returns:
            ``[bags, embedding_dim]`` in the layer's dtype.
        """
        indices = input.reshape(-1)
        rows = self.packed_weight.dequantized_rows(indices)
        positions = torch.arange(len(indices), device=input.device, dtype=input.dtype)
        padding = None
        if self.padding_idx is not None:
            # Positions take the place of indices, so all that stand for padding must become one of them.
            padding = len(indices)
            positions = torch.where(indices == self.padding_idx, padding, positions)
            rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
        return functional.embedding_bag(
            positions.view_as(input),
            rows,
            offsets,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )
