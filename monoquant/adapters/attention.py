"""nn.MultiheadAttention, which keeps its input projections as bare parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from monoquant.adapters.base import ModuleAdapter, Obstacle, has_own_forward, plain_bias
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.values import AnyScheme

_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class AttentionAdapter(ModuleAdapter):
    """The input projections; out_proj is a layer of its own."""

    def claims(self, module: nn.Module) -> bool:
        return isinstance(module, nn.MultiheadAttention)

    def forms(self, module: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, MatrixForm] | Obstacle:
        found = {name: MatrixForm.rows_first(weights[name].shape) for name in _PROJECTIONS if name in weights}
        return found or Obstacle("it has none of the projections of an nn.MultiheadAttention")

    def row_order(self, module: nn.Module) -> Literal["kept", "swapped"] | None:
        if has_own_forward(module, nn.MultiheadAttention):
            return None
        return "swapped" if getattr(module, "batch_first", False) else "kept"

    def bias_of(self, module: nn.Module, weight: str) -> str | None:
        return plain_bias(module, nn.MultiheadAttention, "in_proj_bias") if weight == "in_proj_weight" else None

    def compute(self, module: nn.Module, scheme: AnyScheme) -> str:
        return "dequantizes {size} each time torch reads it, some times in a call"
