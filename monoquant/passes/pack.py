"""The base of the passes that turn float weights into packed ones: who is packed, checked, and tied to whom."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from monoquant.adapters.base import Obstacle
from monoquant.adapters.choice import Packable
from monoquant.adapters.code import writer_of
from monoquant.context import QuantContext
from monoquant.errors import InputError, PassError, quoted
from monoquant.kernels.base import Product
from monoquant.kernels.choice import Offer, describe
from monoquant.modules.kernel_compute import use_kernels, uses_kernels
from monoquant.modules.packed_layer import PackedLayer, Represented
from monoquant.modules.packed_module import is_trainable
from monoquant.modules.packed_weight import Intended, PackedWeight
from monoquant.modules.storage import content_bytes, empty_weight, pack_weight
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.passes.base import Pass
from monoquant.passes.calibration import CalibrationPass
from monoquant.passes.kernel_notes import notes_on_kernels
from monoquant.passes.skip_selection import SkipSelectionPass
from monoquant.passes.ties import follow, followers, sharing_in_another_layout, untied
from monoquant.report.table import format_bytes
from monoquant.values import Action, AnyScheme, Decision, Finding, Layer, Scheme, Severity

Represent = Callable[[str, str, AnyScheme], Represented]
"""From the name of a layer, that of one of its weights and a scheme to the packed weight."""


@attrs.frozen
class PackPass(Pass):
    """Base of the packing passes. A subclass names its scheme.

    The first one in a pipeline takes all layers that no rule keeps; the others take what rules send to them
    (``skip_to="int8"``).
    """

    follows: ClassVar[tuple[type[Pass], ...]] = (SkipSelectionPass,)
    after: ClassVar[tuple[type[Pass], ...]] = (CalibrationPass,)

    @property
    def scheme(self) -> AnyScheme:
        """How the pass represents the layers it packs."""
        raise NotImplementedError(f"{type(self).__name__} must define its scheme")

    def offer(self, context: QuantContext) -> Offer:
        """Kernels that may multiply with what the pass packs; by default those as exact as float32.

        Args:
            context: Shared state.
        """
        return context.registry.offer(exact=True)

    def compute(self, layer: str, packable: Packable, scheme: AnyScheme, context: QuantContext) -> str:
        """How a layer will run, for the report.

        Args:
            layer: Its name.
            packable: How it is packed.
            scheme: The representation of its weights.
            context: Shared state.
        """
        module = context.module(layer)
        weights = context.readable_weights(layer, packable.forms)
        if isinstance(scheme, Scheme) and uses_kernels(packable.adapter.mixin(module, scheme)):
            (form,), (weight,) = packable.forms.values(), weights
            # Weights without a device are planned for the one where most are quantized.
            device = torch.device("cpu") if weight.is_meta else weight.device
            product = Product(form.rows, form.columns, scheme, device, weight.dtype)
            return describe(self.offer(context).best(product))
        size = sum(weight.numel() * weight.element_size() for weight in weights)
        return packable.adapter.compute(module, scheme).format(size=format_bytes(size))

    def scheme_for(self, layer: Layer, packable: Packable, context: QuantContext) -> AnyScheme | Obstacle:
        """How one layer is represented; most passes represent all alike.

        Args:
            layer: A layer that can be packed.
            packable: How.
            context: Shared state.
        """
        return self.scheme

    def declined(self, layer: Layer, obstacle: Obstacle, context: QuantContext) -> None:
        """Tell what a person should know of a layer that the pass cannot take; most passes need not.

        Args:
            layer: The layer.
            obstacle: Why.
            context: Shared state; the plan is open.
        """

    def plan(self, context: QuantContext) -> None:
        context.packers.setdefault(self.scheme.target, self)
        taken: dict[str, tuple[Packable, AnyScheme]] = {}
        for layer in self._open(context):
            outcome = self._examine(layer, context)
            if isinstance(outcome, Obstacle):
                context.decline(layer.name, outcome)
                self.declined(layer, outcome, context)
            else:
                taken[layer.name] = outcome
        for name, leader in followers(self._open(context), taken, context).items():
            follow(name, leader, context)
            del taken[name]
        for layer in self._open(context):
            if layer.name in taken:
                packable, scheme = taken[layer.name]
                compute = self.compute(layer.name, packable, scheme, context)
                context.decide(_decision(layer, packable, scheme, compute, context))
                context.report(self.notes(layer, packable, scheme, context))

    def _open(self, context: QuantContext) -> list[Layer]:
        own, main = self.scheme.target, context.scheme.target
        targets = {layer: target.to for layer, target in context.targets.items()}
        return [layer for layer in context.undecided() if targets.get(layer.name, main) == own]

    def _examine(self, layer: Layer, context: QuantContext) -> tuple[Packable, AnyScheme] | Obstacle:
        packable = context.examine(layer.name)
        if isinstance(packable, Obstacle):
            return packable
        scheme = self.scheme_for(layer, packable, context)
        if isinstance(scheme, Obstacle):
            return scheme
        return _growth(layer.name, packable, scheme, context) or (packable, scheme)

    def notes(self, layer: Layer, packable: Packable, scheme: AnyScheme, context: QuantContext) -> list[Finding]:
        """What a person should know of a decision.

        Args:
            layer: A layer that was just decided to be packed.
            packable: How.
            scheme: As what.
            context: Shared state.
        """
        return [*_caveat(layer, packable, context), *_written_by_owner(layer, packable, context)]

    def mine(self, context: QuantContext) -> Iterator[Layer]:
        """Layers that the plan gives to this pass, in model order.

        Args:
            context: Shared state; the plan is final. An exception while a layer is being worked on names it.
        """
        for layer in context.quantized_layers():
            scheme = context.plan[layer.name].scheme
            if scheme is not None and scheme.target == self.scheme.target:
                yield layer

    def prepare(self, context: QuantContext) -> None:
        layers = [layer.name for layer in self.mine(context)]
        weights = [(layer, context.weight(layer, name)) for layer in layers for name in context.weight_names(layer)]
        meta = list(dict.fromkeys(layer for layer, weight in weights if weight.is_meta))
        if meta:
            raise InputError(f"weights on the meta device: {quoted(meta)}; load real weights first", layers=meta)
        self.refuse_extremes([(layer, range_of(weight)) for layer, weight in weights])
        context.report([untied(name) for name in sharing_in_another_layout(layers, context)])

    def refuse_extremes(self, ranges: Sequence[tuple[str, float]]) -> None:
        """Refuse weights that the scheme cannot hold; all layers at once.

        Args:
            ranges: Layer names, each with the range of one of the layer's weights.

        Raises:
            InputError: For weights with NaN or Inf.
        """
        broken = [layer for layer, width in ranges if not math.isfinite(width)]
        if broken:
            layers = list(dict.fromkeys(broken))
            raise InputError(f"weights with NaN or Inf: {quoted(layers)}; repair the model or skip them", layers=layers)

    def run(self, context: QuantContext) -> None:
        represent = self.representation(context)
        for layer in self.mine(context):
            scheme = context.plan[layer.name].scheme or self.scheme
            weights = self.represented(layer.name, scheme, represent, context)
            context.packed[layer.name] = self.assembled(layer.name, scheme, weights, context)
            for one in weights.values():
                context.report([*one.findings, *_underflow(layer.name, one.weight)])
                if one.algorithm:
                    context.note_algorithm(layer.name, one.algorithm, one.input_rows)
        context.report(notes_on_kernels([context.packed[layer.name] for layer in self.mine(context)]))

    def pack_empty(self, context: QuantContext) -> None:
        """Give the context packed layers without values, on the meta device, so that it is known what they will weigh.

        Args:
            context: Shared state; the plan is final.
        """
        empty: dict[tuple[object, ...], Represented] = {}
        for layer in [one.name for one in self.mine(context)]:
            scheme, forms = context.plan[layer].scheme or self.scheme, context.packable(layer).forms
            weights = {}
            for name in context.weight_names(layer):
                key = (*context.leading(layer, name), forms[name])
                weight = empty_weight(forms[name], scheme, context.original_weight(layer, name).dtype)
                weights[name] = empty.setdefault(key, Represented(weight, _UNCHECKED))
            context.packed[layer] = self.assembled(layer, scheme, weights, context)

    def represented(
        self, layer: str, scheme: AnyScheme, represent: Represent, context: QuantContext
    ) -> dict[str, Represented]:
        """All weights of a layer, packed; a weight that was packed before is not packed again.

        Args:
            layer: Name of a layer the plan quantizes.
            scheme: A representation that this pass knows.
            represent: What :meth:`representation` returned.
            context: Shared state.
        """
        forms = context.packable(layer).forms
        found: dict[str, Represented] = {}
        for name in context.weight_names(layer):
            leading = context.leading(layer, name)
            known = _twin(layer, name, forms[name], scheme, context) or context.represented.get((*leading, scheme))
            if known is not None and leading != (layer, name):
                known = attrs.evolve(known, biases={})  # those of the other layer
            if known is None or (known.weight.form != forms[name] and _multiplies_integers(scheme)):
                known = represent(layer, name, scheme)
                _adjust(known.weight, layer, name, context)
            found[name] = known
        return found

    def assembled(
        self, layer: str, scheme: AnyScheme, weights: Mapping[str, Represented], context: QuantContext
    ) -> PackedLayer:
        """What a layer becomes with its packed weights.

        Args:
            layer: Name of a layer the plan quantizes.
            scheme: The representation of its weights.
            weights: By name.
            context: Shared state.
        """
        packed = {name: one.weight for name, one in weights.items()}
        mixin = context.packable(layer).adapter.mixin(context.module(layer), scheme)
        use_kernels(packed.values(), mixin, self.offer(context))
        return PackedLayer(
            weights=packed,
            mixin=mixin,
            extras=self.extras(layer, packed, context),
            intended={name: one.intended for name, one in weights.items()},
            biases={name: value for one in weights.values() for name, value in one.biases.items()},
        )

    def representation(self, context: QuantContext) -> Represent:
        """What turns one weight into a packed one; rounding to nearest, unless a subclass knows better.

        Args:
            context: Shared state.
        """

        def represent(layer: str, name: str, scheme: AnyScheme) -> Represented:
            form, kernels = context.packable(layer).forms[name], context.registry.rounding_kernels
            return Represented(*pack_weight(context.weight(layer, name), scheme, form, kernels))

        return represent

    def extras(self, layer: str, weights: Mapping[str, PackedWeight], context: QuantContext) -> Mapping[str, nn.Module]:
        """Submodules that a packed layer needs besides its weights; most need none.

        Args:
            layer: Name of a layer of this pass.
            weights: Its packed weights by name.
            context: Shared state.
        """
        return {}

    def ensures(self, context: QuantContext) -> None:
        missing = [layer.name for layer in self.mine(context) if layer.name not in context.packed]
        if missing:
            raise PassError(f"not packed although planned: {quoted(missing)}", layers=missing)


_UNCHECKED = Intended(lambda _packed: True)


def range_of(weight: Tensor) -> float:
    """Largest minus smallest value of a weight, zero included: what its codes must span.

    Args:
        weight: Any shape, real float dtype, not empty.

    Returns:
        A float64 number; nan or inf if the weight holds one.
    """
    low, high = torch.aminmax(weight)
    return float(high.double().clamp_min(0) - low.double().clamp_max(0)) if low == low else math.nan


def _twin(layer: str, name: str, form: MatrixForm, scheme: AnyScheme, context: QuantContext) -> Represented | None:
    """The packed weight of a layer that this one is tied to."""
    for other, key in context.tied_weights(layer, name)[1:]:
        twin = context.packed.get(other)
        # Integer products need the rows where they are; other layers take a shared weight in any form.
        if twin is not None and (twin.weights[key].form == form or not _multiplies_integers(scheme)):
            algorithm, rows = context.algorithms.get(other, ""), context.input_rows.get(other)
            return Represented(twin.weights[key], twin.intended[key], algorithm=algorithm, input_rows=rows)
    return None


def _adjust(packed: PackedWeight, layer: str, name: str, context: QuantContext) -> None:
    packed.dtype = context.original_weight(layer, name).dtype
    packed.was_trainable = is_trainable(context.module(layer), name)


def _growth(layer: str, packable: Packable, scheme: AnyScheme, context: QuantContext) -> Obstacle | None:
    """Rows so short that their scales outweigh what the codes save, whatever group size was asked for."""
    if isinstance(scheme, Scheme) and any(scheme.width(one.columns) < one.columns for one in packable.forms.values()):
        return None
    weights = context.readable_weights(layer, packable.forms)
    before = sum(weight.numel() * weight.element_size() for weight in weights)
    after = sum(content_bytes(form, scheme) for form in packable.forms.values())
    if after < before:
        return None
    return Obstacle(f"packed it would be no smaller: {format_bytes(before)} -> {format_bytes(after)}")


def _multiplies_integers(scheme: AnyScheme) -> bool:
    return isinstance(scheme, Scheme) and scheme.activations is not None


def _decision(layer: Layer, packable: Packable, scheme: AnyScheme, compute: str, context: QuantContext) -> Decision:
    names = tuple(packable.forms)
    what = "weight" if names == ("weight",) else ", ".join(names)
    reason = f"{layer.type.__name__} {what} to {scheme}"
    target = context.targets.get(layer.name)
    if target is None:
        return Decision(layer.name, Action.QUANTIZE, reason, scheme=scheme, weights=names, compute=compute)
    reason = f"{reason}, because {target.reason}"
    return Decision(
        layer.name, Action.QUANTIZE, reason, target.rule, target.origin, scheme=scheme, weights=names, compute=compute
    )


def _caveat(layer: Layer, packable: Packable, context: QuantContext) -> list[Finding]:
    caveat = packable.adapter.caveat(context.module(layer.name))
    if not caveat:
        return []
    message = f"Layer {quoted([layer.name])} ({layer.type.__name__} {', '.join(packable.forms)}): {caveat}."
    remedy = "Keep what is not multiplied, such as tables of biases, with skip_layer_names or skip_layer_types."
    return [Finding("unknown-kind", Severity.INFO, message, layer.name, remedy)]


def _written_by_owner(layer: Layer, packable: Packable, context: QuantContext) -> list[Finding]:
    owner, _, name = layer.name.rpartition(".")
    kind = type(context.module(owner)) if name else nn.Module
    writer = writer_of(kind, packable.forms, name)
    if writer is None:
        return []
    message = f"Warning: {kind.__name__}.{writer} writes to a weight of layer {layer.name!r}; once packed, it cannot."
    remedy = "Merge its parts for good first, or keep the layer in float."
    return [Finding("written-by-owner", Severity.WARNING, message, layer.name, remedy)]


def _underflow(layer: str, packed: PackedWeight) -> list[Finding]:
    scale = packed._buffers.get("scale")
    return [] if scale is None else underflow(layer, subnormal(scale), scale)


def subnormal(scale: Tensor) -> int:
    """How many scales have lost precision because they are so small.

    Args:
        scale: Any shape, float16, bfloat16 or float32.
    """
    return int((scale.abs() < torch.finfo(scale.dtype).tiny).sum())


def underflow(layer: str, tiny: int, scale: Tensor) -> list[Finding]:
    """What a person should know of scales that have lost precision.

    Args:
        layer: Whose.
        tiny: How many, as :func:`subnormal` counts them.
        scale: All of them; may be on the meta device.
    """
    if not tiny:
        return []
    message = f"Warning: {tiny} of {scale.numel()} group scales of layer {layer!r} are subnormal in {scale.dtype}."
    remedy = "Use scale_dtype=torch.float32 or torch.bfloat16 for full precision."
    return [Finding("scale-underflow", Severity.WARNING, message, layer, remedy)]
