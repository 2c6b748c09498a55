"""nn.Embedding and nn.EmbeddingBag."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from monoquant.adapters.base import ModuleAdapter, Obstacle, has_own_forward
from monoquant.modules.embedding import PackedEmbedding, PackedEmbeddingBag
from monoquant.modules.packed_module import PackedModule
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.values import AnyScheme


class EmbeddingAdapter(ModuleAdapter):
    """Tables of which only the rows that are looked up are dequantized."""

    multiplies = False

    def claims(self, module: nn.Module) -> bool:
        return isinstance(module, (nn.Embedding, nn.EmbeddingBag))

    def forms(self, module: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, MatrixForm] | Obstacle:
        weight = weights.get("weight")
        if weight is None or weight.dim() != 2:
            return Obstacle(f"{type(module).__name__} has no 2-D weight of its own", "store the weight as a Parameter")
        if module.max_norm is not None:
            remedy = "renormalize the weight once, and set max_norm to None"
            return Obstacle("its forward writes to its weight, because max_norm is set", remedy)
        return {"weight": MatrixForm.rows_first(weight.shape)}

    def mixin(self, module: nn.Module, scheme: AnyScheme) -> type[PackedModule]:
        if not self._gathers(module):
            return PackedModule
        return PackedEmbedding if isinstance(module, nn.Embedding) else PackedEmbeddingBag

    def compute(self, module: nn.Module, scheme: AnyScheme) -> str:
        gathers = self._gathers(module)
        return "dequantizes the rows that are looked up" if gathers else super().compute(module, scheme)

    def _gathers(self, module: nn.Module) -> bool:
        return not has_own_forward(module, nn.Embedding if isinstance(module, nn.Embedding) else nn.EmbeddingBag)
