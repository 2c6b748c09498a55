"""The fused kernel of nn.TransformerEncoderLayer, which reads the weights of its Linears without calling them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn import functional

from monoquant.modules.integer_compute import IntegerCompute
from monoquant.modules.kernel_compute import KernelCompute

_FEED_FORWARD = ("linear1", "linear2")


def layers_to_keep_off(model: nn.Module) -> Iterator[nn.TransformerEncoderLayer]:
    """Transformer layers whose fused kernel would dequantize what their Linears multiply as it is.

    Args:
        model: Any model.

    Yields:
        The transformer layers.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            parts = (getattr(module, name, None) for name in _FEED_FORWARD)
            if any(isinstance(part, (IntegerCompute, KernelCompute)) for part in parts):
                yield module


def keep_off(layer: nn.TransformerEncoderLayer) -> None:
    """Make a transformer layer call its Linears: it uses the fused kernel for the activations of this flag only.

    Args:
        layer: Changed in place.
    """
    layer.activation_relu_or_gelu = 0


def let_back(layer: nn.TransformerEncoderLayer) -> None:
    """Undo :func:`keep_off`, as nn.TransformerEncoderLayer sets the flag itself.

    Args:
        layer: Changed in place.
    """
    activation = layer.activation
    if activation is functional.relu or isinstance(activation, nn.ReLU):
        layer.activation_relu_or_gelu = 1
    elif activation is functional.gelu or isinstance(activation, nn.GELU):
        layer.activation_relu_or_gelu = 2
