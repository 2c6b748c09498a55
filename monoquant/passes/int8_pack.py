"""Pack weights to INT8 by round-to-nearest, and let products run in integers where that is asked for and possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import attrs
import torch
from torch import nn

from monoquant.adapters.choice import Packable
from monoquant.context import QuantContext
from monoquant.errors import ConfigError, InputError, quoted
from monoquant.modules.integer_compute import InputQuantizer
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.modules.packed_weight import PackedWeight
from monoquant.observers import InputRange
from monoquant.passes.base import Pass
from monoquant.passes.calibration import CalibrationPass
from monoquant.passes.code_pack import refuse_large_scales
from monoquant.passes.pack import PackPass
from monoquant.passes.skip_selection import SkipSelectionPass
from monoquant.ranges import AutoObserver, ObserverKind, RangeObserver
from monoquant.registry import Registry
from monoquant.values import AnyScheme, Finding, Layer, Scheme, Severity

_SIGN = 128
"""Observers count codes from 0, integer products take signed ones."""


def _check_observer(_instance: Any, _attribute: Any, value: Any) -> None:
    if not isinstance(value, (str, ObserverKind)):
        raise ConfigError(f"observer={value!r}: give a name, such as 'histogram', or an ObserverKind")


@attrs.frozen
class Int8PackPass(PackPass):
    """Turn the weights of every remaining layer into 8-bit codes, and inputs too if asked for.

    Layers that cannot multiply integers (convolutions, attention, subclasses with a forward of their own, ...) keep
    float inputs and dequantize their INT8 weight; each is told by a ``float-compute`` finding.

    Args:
        group_size: Input features per scale; None (default): one scale per output channel.
        symmetric: True (default): codes -128..127. False: a zero_point per group.
        scale_dtype: torch.float32 (default), torch.bfloat16 or torch.float16.
        activations: None (default): weights only. ``"dynamic"``: each input row is quantized on each call.
            ``"static"``: inputs are quantized with a range from calibration, which must stand earlier.
        observer: How ``"static"`` finds ranges: ``"minmax"`` (default), ``"moving_average"``, ``"histogram"``,
            ``"auto"`` (experimental), the name of one that a plugin brings, or an ObserverKind of your own.
    """

    single: ClassVar[bool] = True

    group_size: int | None = None
    symmetric: bool = True
    scale_dtype: torch.dtype = torch.float32
    activations: Literal["dynamic", "static"] | None = None
    observer: str | ObserverKind = attrs.field(default="minmax", validator=_check_observer)

    def __attrs_post_init__(self) -> None:
        _ = self.scheme  # refuses bad settings now rather than in the run
        if self.observer != "minmax" and self.activations != "static":
            raise ConfigError(f"observer={self.observer!r} does nothing without activations='static'")

    def bound(self, registry: Registry) -> Int8PackPass:
        return attrs.evolve(self, observer=registry.observer(self.observer)) if self.activations == "static" else self

    @property
    def follows(self) -> tuple[type[Pass], ...]:  # type: ignore[override]  # depends on a setting
        """Static ranges come from calibration."""
        return (SkipSelectionPass, CalibrationPass) if self.activations == "static" else (SkipSelectionPass,)

    @property
    def scheme(self) -> Scheme:
        return Scheme(8, self.group_size, self.symmetric, self.scale_dtype, self.activations)

    def scheme_for(self, layer: Layer, packable: Packable, context: QuantContext) -> Scheme:
        if self.activations is None:
            return self.scheme
        obstacle = packable.adapter.integer_obstacle(context.module(layer.name), packable.forms)
        return self.scheme if obstacle is None else self.scheme.storage

    def notes(self, layer: Layer, packable: Packable, scheme: AnyScheme, context: QuantContext) -> list[Finding]:
        found = super().notes(layer, packable, scheme, context)
        if self.activations is None:
            return found
        obstacle = packable.adapter.integer_obstacle(context.module(layer.name), packable.forms)
        return found if obstacle is None else [*found, _float_compute(layer.name, obstacle)]

    def refuse_extremes(self, ranges: Sequence[tuple[str, float]]) -> None:
        super().refuse_extremes(ranges)
        refuse_large_scales(ranges, self.scheme)

    def prepare(self, context: QuantContext) -> None:
        super().prepare(context)
        for layer in self._static_layers(context):
            context.want(layer, self._request(layer, context))

    def requires(self, context: QuantContext) -> None:
        missing = [layer for layer in self._static_layers(context) if self._observer(layer, context) is None]
        if missing:
            raise InputError(
                f"calibration never called these layers, so their inputs have no range: {quoted(missing)}; "
                "use data that reaches them, skip them, or use activations='dynamic'",
                layers=missing,
            )
        self._refuse_broken_inputs(context)

    def _refuse_broken_inputs(self, context: QuantContext) -> None:
        observers = {layer: self._observer(layer, context) for layer in self._static_layers(context)}
        broken = [layer for layer, observer in observers.items() if observer is not None and observer.non_finite]
        if broken:
            raise InputError(
                f"calibration gave NaN or Inf to these layers: {quoted(broken)}; repair the data or the model",
                layers=broken,
            )

    def extras(self, layer: str, weights: Mapping[str, PackedWeight], context: QuantContext) -> Mapping[str, nn.Module]:
        observer = self._observer(layer, context) if layer in self._static_layers(context) else None
        weight = weights.get("weight")
        if observer is None or not isinstance(weight, PackedMatrix):
            return {}
        scale, zero_point = observer.range().affine(8)
        if isinstance(observer, AutoObserver):
            context.report([_choice(layer, observer)])
        return {"packed_input": InputQuantizer(scale, zero_point - _SIGN, weight)}

    def _static_layers(self, context: QuantContext) -> list[str]:
        decisions = context.plan.values()
        schemes = {one.layer: one.scheme for one in decisions if isinstance(one.scheme, Scheme)}
        return [layer for layer, scheme in schemes.items() if scheme.activations == "static"]

    def _request(self, layer: str, context: QuantContext) -> InputRange:
        return InputRange(context.registry.observer(self.observer), context.packable(layer).forms["weight"].columns)

    def _observer(self, layer: str, context: QuantContext) -> RangeObserver | None:
        return context.observer(layer, self._request(layer, context))


def _float_compute(layer: str, obstacle: str) -> Finding:
    message = f"Layer {quoted([layer])} has INT8 weights and computes in float: {obstacle}."
    return Finding("float-compute", Severity.INFO, message, layer)


def _choice(layer: str, observer: AutoObserver) -> Finding:
    message = f"The input range of layer {quoted([layer])} is that of {observer.choice} (experimental): "
    return Finding("observer-choice", Severity.INFO, message + observer.reason, layer)
