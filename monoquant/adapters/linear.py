"""nn.Linear with all its subclasses, and the transposed Conv1D of HuggingFace's GPT-2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from monoquant.adapters.base import ModuleAdapter, Obstacle, has_own_forward, plain_bias
from monoquant.modules.integer_compute import Int8Dynamic, Int8Static
from monoquant.modules.kernel_compute import TransposedKernelCompute
from monoquant.modules.linear import (
    HalfLinear,
    Int4Linear,
    Int8DynamicLinear,
    Int8Linear,
    Int8StaticLinear,
)
from monoquant.modules.packed_module import PackedModule
from monoquant.numerics.integer_product import MAX_FEATURES
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.values import AnyScheme, HalfScheme

INTEGER_COMPUTE = {
    "dynamic": "multiplies integers, each input row quantized on each call",
    "static": "multiplies integers, inputs quantized to the calibrated range",
}


class LinearAdapter(ModuleAdapter):
    """nn.Linear: dequantized, or multiplied in integers. Subclasses with a forward of their own keep it."""

    takes_rows = True

    def claims(self, module: nn.Module) -> bool:
        return isinstance(module, nn.Linear)

    def forms(self, module: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, MatrixForm] | Obstacle:
        weight = weights.get("weight")
        if weight is None or weight.dim() != 2:
            return Obstacle(f"{type(module).__name__} has no 2-D weight of its own", "store the weight as a Parameter")
        return {"weight": MatrixForm.rows_first(weight.shape)}

    def mixin(self, module: nn.Module, scheme: AnyScheme) -> type[PackedModule]:
        if has_own_forward(module, nn.Linear):
            return PackedModule
        if isinstance(scheme, HalfScheme):
            return HalfLinear
        if scheme.activations is not None:
            return Int8DynamicLinear if scheme.activations == "dynamic" else Int8StaticLinear
        return Int4Linear if scheme.bits == 4 else Int8Linear

    def compute(self, module: nn.Module, scheme: AnyScheme) -> str:
        return _compute(scheme) or super().compute(module, scheme)

    def bias_of(self, module: nn.Module, weight: str) -> str | None:
        return plain_bias(module, nn.Linear)

    def row_order(self, module: nn.Module) -> Literal["kept", "swapped"] | None:
        return None if has_own_forward(module, nn.Linear) else "kept"

    def read_by_owner(self, module: nn.Module) -> bool:
        return isinstance(module, NonDynamicallyQuantizableLinear)

    def integer_obstacle(self, module: nn.Module, forms: Mapping[str, MatrixForm]) -> str | None:
        if self.read_by_owner(module):
            return "attention reads its weight without calling it"
        return _integer_obstacle(module, nn.Linear, forms)


class TransposedLinearAdapter(ModuleAdapter):
    """``transformers.pytorch_utils.Conv1D``, a Linear that keeps its weight as ``[in, out]``."""

    takes_rows = True

    def claims(self, module: nn.Module) -> bool:
        return _conv1d(module) is not None

    def forms(self, module: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, MatrixForm] | Obstacle:
        weight = weights.get("weight")
        if weight is None or weight.dim() != 2:
            return Obstacle("Conv1D has no 2-D weight of its own", "store the weight as a Parameter")
        return {"weight": MatrixForm.along(weight.shape, 0)}

    def bias_of(self, module: nn.Module, weight: str) -> str | None:
        known = _conv1d(module)
        return None if known is None else plain_bias(module, known)

    def row_order(self, module: nn.Module) -> Literal["kept", "swapped"] | None:
        known = _conv1d(module)
        return None if known is None or has_own_forward(module, known) else "kept"

    def mixin(self, module: nn.Module, scheme: AnyScheme) -> type[PackedModule]:
        known = _conv1d(module)
        if isinstance(scheme, HalfScheme) or known is None or has_own_forward(module, known):
            return PackedModule
        if scheme.activations is None:
            return TransposedKernelCompute
        return Int8Dynamic if scheme.activations == "dynamic" else Int8Static

    def compute(self, module: nn.Module, scheme: AnyScheme) -> str:
        return _compute(scheme) or super().compute(module, scheme)

    def integer_obstacle(self, module: nn.Module, forms: Mapping[str, MatrixForm]) -> str | None:
        known = _conv1d(module)
        return None if known is None else _integer_obstacle(module, known, forms)


def _conv1d(module: nn.Module) -> type[nn.Module] | None:
    # By name, because transformers is no dependency.
    kinds = (kind for kind in type(module).__mro__ if kind.__name__ == "Conv1D")
    return next((kind for kind in kinds if kind.__module__.startswith("transformers.")), None)


def _compute(scheme: AnyScheme) -> str | None:
    return None if isinstance(scheme, HalfScheme) else INTEGER_COMPUTE.get(scheme.activations or "")


def _integer_obstacle(module: nn.Module, known: type[nn.Module], forms: Mapping[str, MatrixForm]) -> str | None:
    if has_own_forward(module, known):
        return f"{type(module).__name__} has a forward of its own"
    features = forms["weight"].columns
    if features > MAX_FEATURES:
        return f"sums over {features} features may not fit 32-bit integers, those over {MAX_FEATURES} do"
    return None
