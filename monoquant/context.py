"""What the passes of one run share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
from torch import Tensor, nn

from monoquant.errors import PassError
from monoquant.measurement import Measurement
from monoquant.modules.packed_int4 import PackedInt4
from monoquant.observers import InputSample
from monoquant.registry import Registry
from monoquant.report import CalibrationFacts, ValidationResult
from monoquant.source import tensor_identity
from monoquant.values import Action, Decision, Finding, Layer, Scheme


@attrs.frozen(eq=False)
class PackedLayer:
    """A layer's packed weight, not yet in the model.

    Args:
        weight: The packed matrix; the same object for layers whose weights are tied.
        digest: What ``weight.digest()`` must be, taken from the codes before they were packed.
    """

    weight: PackedInt4
    digest: str


@attrs.define(eq=False)
class QuantContext:
    """The one mutable object of a run. Passes add to it; only the Quantizer writes to a model.

    Args:
        model: The user's model; read it, never write to it. (set by Quantizer; read by all passes)
        scheme: The scheme of the packing pass. (set by Quantizer; read by all passes)
        layers: Every module that owns parameters. (set by Quantizer; read by all passes)
        registry: Rules and checks from plugins. (set by Quantizer; read by SkipSelectionPass, AccuracyWarningPass)
        plan: Decisions by layer name; use :meth:`decide`. (written in the plan phase by SkipSelectionPass and packing
            passes; read by all passes)
        wanted: Statistics that passes asked for; use :meth:`want`. (written in the prepare phase; read by
            CalibrationPass)
        samples: Sampled input rows by layer name. (written by CalibrationPass; read by ValidationPass)
        calibration: Facts about the data. (written by CalibrationPass; read by the report)
        packed: Packed weights by layer name. (written by packing passes; read by ValidationPass and Quantizer)
        measurements: Damage by layer name. (written by ValidationPass; read by the report)
        validation: Totals and failed checks. (written by ValidationPass; read by the report)
        findings: What a person should know. (written by all passes; read by the report)
    """

    model: nn.Module
    scheme: Scheme
    layers: tuple[Layer, ...]
    registry: Registry
    plan: dict[str, Decision] = attrs.field(factory=dict, init=False)
    wanted: list[InputSample] = attrs.field(factory=list, init=False)
    samples: dict[str, Tensor] = attrs.field(factory=dict, init=False)
    calibration: CalibrationFacts | None = attrs.field(default=None, init=False)
    packed: dict[str, PackedLayer] = attrs.field(factory=dict, init=False)
    measurements: dict[str, Measurement] = attrs.field(factory=dict, init=False)
    validation: ValidationResult | None = attrs.field(default=None, init=False)
    findings: list[Finding] = attrs.field(factory=list, init=False)
    _replaced_weights: dict[str, Tensor] = attrs.field(factory=dict, init=False)
    _planning: bool = attrs.field(default=True, init=False)
    _current_layer: str | None = attrs.field(default=None, init=False)

    def module(self, layer: str) -> nn.Module:
        """The live module of a layer.

        Args:
            layer: Its name.
        """
        return self.model.get_submodule(layer)

    def decide(self, decision: Decision) -> None:
        """Give a layer its one answer; only in the plan phase.

        Args:
            decision: The answer; its layer must have none yet.

        Raises:
            PassError: When planning is over, the layer is unknown, or it has an answer already.
        """
        name = decision.layer
        if not self._planning:
            raise PassError(f"the plan is final: decide on layer {name!r} in plan(), not in run()", layers=[name])
        if name not in {layer.name for layer in self.layers}:
            raise PassError(f"no layer is called {name!r}: decide on the layers in context.layers", layers=[name])
        if name in self.plan:
            raise PassError(f"layer {name!r} is decided already ({self.plan[name]}): ask undecided()", layers=[name])
        self.plan[name] = decision

    def undecided(self) -> list[Layer]:
        """Layers without an answer so far, in model order."""
        return [layer for layer in self.layers if layer.name not in self.plan]

    def close_plan(self) -> None:
        """End the plan phase; called by the Quantizer."""
        self._planning = False

    def decisions(self) -> tuple[Decision, ...]:
        """The plan in model order."""
        return tuple(self.plan[layer.name] for layer in self.layers if layer.name in self.plan)

    def quantized_layers(self) -> Iterator[Layer]:
        """Layers the plan quantizes, in model order.

        An exception while one of them is being worked on carries a note with its name.
        """
        for layer in self.layers:
            decision = self.plan.get(layer.name)
            if decision is not None and decision.action is Action.QUANTIZE:
                self._current_layer = layer.name
                yield layer
        self._current_layer = None

    @property
    def current_layer(self) -> str | None:
        """Name of the layer a pass is working on, for error notes."""
        return self._current_layer

    def forget_current_layer(self) -> None:
        """Tell that a new pass begins; called by the Quantizer."""
        self._current_layer = None

    def weight(self, layer: str) -> Tensor:
        """The float weight that will be packed: the model's, unless a pass replaced it.

        Args:
            layer: Name of a layer the plan quantizes.

        Returns:
            ``[out_features, in_features]``; do not write to it.
        """
        replaced = self._replaced_weights.get(layer)
        return self.original_weight(layer) if replaced is None else replaced

    def original_weight(self, layer: str) -> Tensor:
        """The model's own float weight, which the damage is measured against.

        Args:
            layer: Name of a layer that has a ``weight``.
        """
        weight = self.module(layer).weight
        if not isinstance(weight, Tensor):
            raise PassError(f"layer {layer!r} has no weight tensor", layers=[layer])
        return weight.detach()

    def replace_weight(self, layer: str, weight: Tensor) -> None:
        """Pack another matrix in place of the model's weight, also for layers that are tied to it.

        The model is not touched.

        Args:
            layer: Name of a layer that is not packed yet.
            weight: Same shape as :meth:`weight`, any real float dtype, finite.

        Raises:
            PassError: When the layer is packed already or the shape differs.
        """
        if layer in self.packed:
            raise PassError(f"layer {layer!r} is packed already: put this pass before the packing one", layers=[layer])
        expected = tuple(self.original_weight(layer).shape)
        if tuple(weight.shape) != expected:
            given = tuple(weight.shape)
            raise PassError(f"weight for layer {layer!r} has shape {given}, not {expected}", layers=[layer])
        self._replaced_weights.update(dict.fromkeys(self._layers_with_weight_of(layer), weight))

    def _layers_with_weight_of(self, layer: str) -> list[str]:
        identity = tensor_identity(self.original_weight(layer))
        ties = next(found.ties for found in self.layers if found.name == layer)
        quantized = [name for name in ties if self.plan[name].action is Action.QUANTIZE]
        return [layer, *(name for name in quantized if tensor_identity(self.original_weight(name)) == identity)]

    def want(self, request: InputSample) -> None:
        """Ask that calibration collects a statistic of every quantized layer's inputs.

        Args:
            request: What to collect.
        """
        self.wanted.append(request)

    def report(self, findings: Sequence[Finding]) -> None:
        """Add findings, each once.

        Args:
            findings: What a person should know.
        """
        self.findings.extend(finding for finding in findings if finding not in self.findings)
