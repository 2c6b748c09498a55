"""Store weights in 16 bits of floating point."""

from __future__ import annotations

import math

import attrs
import torch

from monoquant.adapters.base import Obstacle
from monoquant.adapters.choice import Packable
from monoquant.context import QuantContext
from monoquant.errors import InputError, quoted
from monoquant.passes.pack import PackPass
from monoquant.values import AnyScheme, Finding, HalfScheme, Layer, Severity

_WIDER = "use torch.bfloat16, or INT8"


@attrs.frozen
class HalfCastPass(PackPass):
    """Keep the weights of every remaining layer as float16 or bfloat16; computed with in the layer's own dtype.

    Inputs, outputs, biases and norms stay as they are, so that layers a rule skips fit in between. A weight beyond
    float16's range would become inf: such a layer is left alone, and told; planning looks at values for that.

    Args:
        dtype: torch.float16 (default) or torch.bfloat16.
    """

    dtype: torch.dtype = torch.float16

    def __attrs_post_init__(self) -> None:
        _ = self.scheme  # refuses bad settings now rather than in the run

    @property
    def scheme(self) -> HalfScheme:
        return HalfScheme(self.dtype)

    def scheme_for(self, layer: Layer, packable: Packable, context: QuantContext) -> AnyScheme | Obstacle:
        weights = dict(zip(packable.forms, context.readable_weights(layer.name, packable.forms), strict=True))
        narrow = [name for name, weight in weights.items() if weight.element_size() <= self.dtype.itemsize]
        if narrow:
            return Obstacle(f"its {', '.join(narrow)} has 16 bits already")
        limit = torch.finfo(self.dtype).max
        largest = max(_magnitude_of(layer.name, name, weight, context) for name, weight in weights.items())
        if limit < largest < math.inf:
            return Obstacle(f"its weights reach {largest:.3g}, more than {self.dtype} can hold ({limit:.3g})", _WIDER)
        return self.scheme

    def declined(self, layer: Layer, obstacle: Obstacle, context: QuantContext) -> None:
        if obstacle.remedy == _WIDER:
            context.report([_overflow(layer.name, obstacle)])

    def requires(self, context: QuantContext) -> None:
        limit = torch.finfo(self.dtype).max
        names = [(layer.name, name) for layer in self.mine(context) for name in context.weight_names(layer.name)]
        over = list(dict.fromkeys(layer for layer, name in names if magnitude(context.weight(layer, name)) > limit))
        if over:
            raise InputError(
                f"an earlier pass replaced weights by some that {self.dtype} cannot hold: {quoted(over)}; "
                "use torch.bfloat16",
                layers=over,
            )


def _magnitude_of(layer: str, name: str, weight: torch.Tensor, context: QuantContext) -> float:
    """Largest absolute value; 0 on the meta device, where values are not known, unless somebody found out."""
    return context.magnitudes.get((layer, name), 0.0) if weight.is_meta else magnitude(weight)


def magnitude(weight: torch.Tensor) -> float:
    """Largest absolute value; nan or inf if the weight holds one.

    Args:
        weight: Any shape, real float dtype, not empty.
    """
    low, high = torch.aminmax(weight)
    return max(-float(low), float(high)) if low == low else math.nan


def _overflow(layer: str, obstacle: Obstacle) -> Finding:
    message = f"Warning: layer {quoted([layer])} stays as it is: {obstacle.reason}."
    return Finding(
        "half-overflow", Severity.WARNING, message, layer, f"{obstacle.remedy[0].upper()}{obstacle.remedy[1:]}."
    )
