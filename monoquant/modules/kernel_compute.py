"""Linear-like modules that multiply with their packed weight through a kernel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from monoquant.kernels.choice import Offer
from monoquant.modules.integer_compute import IntegerCompute
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.modules.packed_module import PackedModule
from monoquant.modules.packed_weight import PackedWeight


class KernelCompute(PackedModule):
    """Mixin of modules whose call is one product with their weight, and their bias."""

    packed_weight: PackedMatrix
    inputs_first: ClassVar[bool] = False
    """Whether the weight's shape is ``[in_features, out_features]``."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            input: ``[..., in_features]`` in the layer's dtype.

        Returns:
            ``[..., out_features]``, same dtype; under autocast in its dtype, as an nn.Linear's output is.
        """
        weight: Any = self._modules["packed_weight"]  # nn.Module's __getattr__ would take as long as a small kernel
        parameters = self._parameters
        bias = parameters["bias"] if "bias" in parameters else getattr(self, "bias", None)
        if weight.inputs_first is not self.inputs_first:  # tied to a weight that was packed along the other axis
            read: Any = self.weight
            dequantized = read.t() if self.inputs_first else read
            return functional.linear(input, dequantized, bias)
        output: Tensor = weight.multiplied(input, bias)
        return output


class TransposedKernelCompute(KernelCompute):
    """The same for weights of shape ``[in_features, out_features]``."""

    inputs_first = True


def use_kernels(weights: Iterable[PackedWeight], kind: type[PackedModule], offer: Offer) -> None:
    """Choose kernels for a module's weights, if it multiplies through them.

    Args:
        weights: Its packed weights.
        kind: What its class is combined with.
        offer: Kernels to choose from.
    """
    for weight in weights if uses_kernels(kind) else ():
        if isinstance(weight, PackedMatrix):
            weight.use(offer)


def choose_kernels(model: nn.Module, offer: Offer) -> dict[str, str]:
    """Choose kernels for all modules of a model that multiply through them.

    Args:
        model: Any model.
        offer: Kernels to choose from.

    Returns:
        Names of the chosen kernels, by name of the module.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, KernelCompute) and uses_kernels(type(module)):
            module.packed_weight.use(offer)
            found[name] = module.packed_weight.kernel.name
    return found


def uses_kernels(kind: type[PackedModule]) -> bool:
    """Whether modules of a class multiply through a kernel.

    Args:
        kind: What a module's class is combined with.
    """
    return issubclass(kind, KernelCompute) and not issubclass(kind, IntegerCompute)
