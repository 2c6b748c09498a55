"""The tensors of a state dict, of which only names and shapes are known."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from monoquant.adapters.base import ModuleAdapter, Obstacle
from monoquant.modules.tensor_holder import TensorHolder
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.values import AnyScheme

_BIAS = "bias"
_SMALLEST_STACKED = 64


class TensorAdapter(ModuleAdapter):
    """Every tensor with rows and columns: the first axis counts rows, as in Linear, convolutions and LSTM.

    Three axes of which the last two are 64 or longer are matrices in a stack (experts), with one row per matrix row.
    Tensors whose first axis, or all of whose others, have length 1 are broadcast or factors, and no matrices.
    """

    def claims(self, module: nn.Module) -> bool:
        return isinstance(module, TensorHolder)

    def forms(self, module: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, MatrixForm] | Obstacle:
        if isinstance(module, TensorHolder) and module.is_in_parametrization:
            remedy = "remove the parametrizations before taking the state dict, or give the model itself"
            return Obstacle("a parametrization computes a weight from it", remedy)
        matrices = {name: weight for name, weight in weights.items() if _is_matrix(name, weight)}
        if not matrices:
            return Obstacle("its tensors hold no weight matrix")
        return {name: _form(weight) for name, weight in matrices.items()}

    def compute(self, module: nn.Module, scheme: AnyScheme) -> str:
        return "runs as the module does that it is loaded into"


def _form(weight: Tensor) -> MatrixForm:
    stacked = weight.dim() == 3 and min(weight.shape[1:]) >= _SMALLEST_STACKED
    return MatrixForm.along(weight.shape, -1) if stacked else MatrixForm.rows_first(weight.shape)


def _is_matrix(name: str, weight: Tensor) -> bool:
    rows = weight.shape[0] if weight.dim() >= 2 else 1
    return rows > 1 and weight.numel() > rows and not name.startswith(_BIAS)
