"""Convolutions of one to three dimensions, plain and transposed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from monoquant.adapters.base import ModuleAdapter, Obstacle, plain_bias, torch_class
from monoquant.numerics.matrix_form import MatrixForm


class ConvolutionAdapter(ModuleAdapter):
    """nn.Conv1d to nn.ConvTranspose3d: groups run along the inputs and kernel positions of one output channel."""

    def claims(self, module: nn.Module) -> bool:
        return isinstance(module, _ConvNd)

    def forms(self, module: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, MatrixForm] | Obstacle:
        weight = weights.get("weight")
        if weight is None:
            return Obstacle(f"{type(module).__name__} has no weight of its own", "store the weight as a Parameter")
        if module.transposed:
            return {"weight": MatrixForm.transposed_convolution(weight.shape, int(module.groups))}  # type: ignore[arg-type]  # an int
        return {"weight": MatrixForm.rows_first(weight.shape)}

    def bias_of(self, module: nn.Module, weight: str) -> str | None:
        return plain_bias(module, torch_class(module))
