"""Pack Linear weights to group-wise INT4 by round-to-nearest."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import Tensor

from monoquant.context import PackedLayer, QuantContext
from monoquant.errors import InputError, PassError, quoted
from monoquant.modules.linear_like import obstacle_to_packing
from monoquant.modules.packed_int4 import PackedInt4
from monoquant.numerics.affine import MAX_CODE
from monoquant.passes.base import PackPass, Pass
from monoquant.passes.calibration import CalibrationPass
from monoquant.passes.skip_selection import SkipSelectionPass
from monoquant.source import tensor_identity
from monoquant.values import Action, Decision, Finding, Layer, Scheme, Severity


@attrs.frozen
class Int4PackPass(PackPass):
    """Turn the weight of every remaining Linear into 4-bit codes with a scale per group of input features.

    Args:
        group_size: Input features per group, >= 1; default 128. Ragged last groups are fine.
        symmetric: False (default): codes 0..15 with a zero_point per group. True: codes -8..7.
        scale_dtype: torch.float16 (default), torch.bfloat16 or torch.float32.
    """

    follows: ClassVar[tuple[type[Pass], ...]] = (SkipSelectionPass,)
    after: ClassVar[tuple[type[Pass], ...]] = (CalibrationPass,)
    single: ClassVar[bool] = True

    group_size: int = 128
    symmetric: bool = False
    scale_dtype: torch.dtype = torch.float16

    def __attrs_post_init__(self) -> None:
        _ = self.scheme  # refuses bad settings now rather than in the run

    @property
    def scheme(self) -> Scheme:
        return Scheme(4, self.group_size, self.symmetric, self.scale_dtype)

    def plan(self, context: QuantContext) -> None:
        candidates = []
        for layer in context.undecided():
            obstacle = obstacle_to_packing(context.module(layer.name))
            if obstacle is None:
                candidates.append(layer)
            else:
                context.decide(Decision(layer.name, Action.UNSUPPORTED, obstacle.reason, remedy=obstacle.remedy))
        for layer in candidates:
            context.decide(self._decision(layer, {candidate.name for candidate in candidates}, context))

    def _decision(self, layer: Layer, packable: set[str], context: QuantContext) -> Decision:
        for other in layer.ties:
            decision = context.plan.get(other)
            if decision is not None and other not in packable and _holds_weight_of(layer, other, context):
                return _follow(layer, decision)
        return Decision(layer.name, Action.QUANTIZE, f"Linear weight to {self.scheme}", scheme=self.scheme)

    def prepare(self, context: QuantContext) -> None:
        layers = [layer.name for layer in context.quantized_layers()]
        meta = [name for name in layers if context.weight(name).is_meta]
        if meta:
            raise InputError(f"weights on the meta device: {quoted(meta)}; load real weights first", layers=meta)
        self._refuse_extremes(layers, context)
        context.report([_untied(name) for name in _sharing_in_another_layout(layers, context)])

    def _refuse_extremes(self, layers: list[str], context: QuantContext) -> None:
        broken, too_large = [], []
        for name in layers:
            low, high = torch.aminmax(context.weight(name))
            span = high.double() / MAX_CODE - low.double() / MAX_CODE
            if not torch.isfinite(span):
                broken.append(name)
            elif span > torch.finfo(self.scale_dtype).max:
                too_large.append(name)
        if broken:
            raise InputError(f"weights with NaN or Inf: {quoted(broken)}; repair the model or skip them", layers=broken)
        if too_large:
            remedy = "use scale_dtype=torch.float32 or skip them"
            raise InputError(
                f"weights too large for {self.scale_dtype} scales: {quoted(too_large)}; {remedy}", layers=too_large
            )

    def run(self, context: QuantContext) -> None:
        for layer in context.quantized_layers():
            twin = _packed_twin(layer, context)
            if twin is None:
                weight = context.weight(layer.name)
                packed, digest = PackedInt4.pack(weight, self.scheme)
                packed.dtype = context.original_weight(layer.name).dtype
                twin = PackedLayer(packed, digest)
                context.report(_underflow(layer.name, packed.scale))
            context.packed[layer.name] = twin

    def ensures(self, context: QuantContext) -> None:
        missing = [layer.name for layer in context.quantized_layers() if layer.name not in context.packed]
        if missing:
            raise PassError(f"not packed although planned: {quoted(missing)}", layers=missing)


def _holds_weight_of(layer: Layer, other: str, context: QuantContext) -> bool:
    weight = tensor_identity(context.original_weight(layer.name))
    return any(tensor_identity(parameter) == weight for parameter in context.module(other).parameters(recurse=False))


def _packed_twin(layer: Layer, context: QuantContext) -> PackedLayer | None:
    weight = tensor_identity(context.weight(layer.name))
    twins = [other for other in layer.ties if other in context.packed]
    return next((context.packed[other] for other in twins if tensor_identity(context.weight(other)) == weight), None)


def _sharing_in_another_layout(layers: list[str], context: QuantContext) -> list[str]:
    """Layers whose weight is the same elements as another parameter, seen in another shape or order."""
    views: dict[int, set[tuple[object, ...]]] = {}
    for parameter in context.model.parameters():
        if parameter.layout == torch.strided:
            views.setdefault(parameter.data_ptr(), set()).add(tensor_identity(parameter))
    return [name for name in layers if len(views[context.original_weight(name).data_ptr()]) > 1]


def _untied(layer: str) -> Finding:
    message = f"Warning: the weight of layer {layer!r} shares memory with another parameter in another layout."
    remedy = "The packed weight is one of its own: the tie ends, and no memory is shared."
    return Finding("untied", Severity.WARNING, message, layer, remedy)


def _follow(layer: Layer, leader: Decision) -> Decision:
    tie = f"its weight is tied to {leader.layer!r}"
    if leader.action is Action.SKIP:
        reason = f"{tie}, which stays in float: {leader.reason}"
        return Decision(layer.name, Action.SKIP, reason, leader.rule, leader.origin)
    reason = f"{tie}, which cannot be packed: {leader.reason}"
    return Decision(layer.name, Action.UNSUPPORTED, reason, remedy="untie them, at the price of a second copy")


def _underflow(layer: str, scale: Tensor) -> list[Finding]:
    tiny = int((scale.abs() < torch.finfo(scale.dtype).tiny).sum())
    if not tiny:
        return []
    message = f"Warning: {tiny} of {scale.numel()} group scales of layer {layer!r} are subnormal in {scale.dtype}."
    remedy = "Use scale_dtype=torch.float32 or torch.bfloat16 for full precision."
    return [Finding("scale-underflow", Severity.WARNING, message, layer, remedy)]
