"""RNN, LSTM and GRU, and their cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from monoquant.adapters.base import ModuleAdapter, Obstacle, has_own_forward, plain_bias, torch_class
from monoquant.modules.packed_module import PackedModule
from monoquant.modules.recurrent import PackedRecurrent
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.values import AnyScheme


class RecurrentAdapter(ModuleAdapter):
    """Input, hidden and projection matrices of every layer and direction."""

    def claims(self, module: nn.Module) -> bool:
        return isinstance(module, (nn.RNNBase, nn.RNNCellBase))

    def forms(self, module: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, MatrixForm] | Obstacle:
        matrices = {name: weight for name, weight in weights.items() if name.startswith("weight_")}
        if not matrices:
            return Obstacle(f"{type(module).__name__} has no weights of its own", "store the weights as Parameters")
        return {name: MatrixForm.rows_first(weight.shape) for name, weight in matrices.items()}

    def row_order(self, module: nn.Module) -> Literal["kept", "swapped"] | None:
        if has_own_forward(module, torch_class(module)):
            return None
        return "swapped" if getattr(module, "batch_first", False) else "kept"

    def bias_of(self, module: nn.Module, weight: str) -> str | None:
        return plain_bias(module, torch_class(module), weight.replace("weight", "bias", 1))

    def mixin(self, module: nn.Module, scheme: AnyScheme) -> type[PackedModule]:
        return PackedRecurrent if isinstance(module, nn.RNNBase) else PackedModule
