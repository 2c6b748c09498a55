"""Share precision out among layers: for a budget of bits, a quality of each layer, or what a function judges."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import attrs

from monoquant.adapters.base import Obstacle
from monoquant.budget import choose
from monoquant.context import QuantContext
from monoquant.errors import ConfigError, InputError, quoted
from monoquant.modules.packed_layer import Represented
from monoquant.passes.base import Pass
from monoquant.passes.calibration import CalibrationPass
from monoquant.passes.pack import PackPass, Represent
from monoquant.passes.skip_selection import SkipSelectionPass
from monoquant.passes.trials import Evaluate, Trials
from monoquant.report.tradeoff import Tradeoff
from monoquant.values import AnyScheme, Finding, Scheme, Severity
from monoquant.weighing import Option, Unit, Weighed, option

_MORE_BITS = 8


def _check_positive(_instance: Any, attribute: Any, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if value is not None and not (number and value > 0):
        raise ConfigError(f"{attribute.name}={value!r}: give a number above 0")


def _check_drop(_instance: Any, _attribute: Any, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if value is not None and not (number and value >= 0):
        raise ConfigError(f"tolerated_drop={value!r}: give the drop of evaluate(model) that is tolerated, >= 0")


def _check_evaluate(_instance: Any, _attribute: Any, value: Any) -> None:
    if value is not None and not callable(value):
        raise ConfigError(
            f"evaluate={value!r}: give a function evaluate(model) that returns a number, higher is better"
        )


def _check_evaluations(_instance: Any, _attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 3:
        raise ConfigError(f"max_evaluations={value!r}: give a whole number >= 3, the float model's included")


def _check_sizes(_instance: Any, _attribute: Any, sizes: Any) -> None:
    for size in sizes:
        Scheme(group_size=size)


@attrs.frozen
class BudgetPass(Pass):
    """Give each layer the representation that serves the model best, among those that the pipeline's passes pack to.

    Every layer that no rule keeps is packed in each representation: INT4 with the group size of Int4PackPass and with
    smaller ones, INT8 and 16 bits where a pass for them is there. Its noise is measured on held-out inputs, and weighed
    by what noise of that layer does to the model's output: gradients of random directions of the output (for
    ``logits``, of KL). Where a model has no gradients, relative noise of the layer's own output is all that is known.

    Give one goal, or none to only rank layers.

    Args:
        target_bits_per_weight: Bytes of all packed weights of these layers, scales and zero_points included, times 8,
            divided by their number.
        target_sqnr_db: SQNR that each layer's product must reach, as cheaply as possible.
        evaluate: ``evaluate(model)`` judges a model; higher is better. The cheapest model is searched whose value is at
            most ``tolerated_drop`` below the float model's.
        tolerated_drop: For ``evaluate``.
        max_evaluations: Most calls of ``evaluate``, that of the float model included; default 8.
        group_sizes: Group sizes to consider besides Int4PackPass's own, as far as they are smaller; default 64 and 32.
    """

    follows: ClassVar[tuple[type[Pass], ...]] = (SkipSelectionPass, CalibrationPass)
    before: ClassVar[tuple[type[Pass], ...]] = (PackPass,)
    single: ClassVar[bool] = True

    target_bits_per_weight: float | None = attrs.field(default=None, validator=_check_positive)
    target_sqnr_db: float | None = attrs.field(default=None, validator=_check_positive)
    evaluate: Evaluate | None = attrs.field(default=None, validator=_check_evaluate)
    tolerated_drop: float | None = attrs.field(default=None, validator=_check_drop)
    max_evaluations: int = attrs.field(default=8, validator=_check_evaluations)
    group_sizes: tuple[int, ...] = attrs.field(default=(64, 32), converter=tuple, validator=_check_sizes)

    def __attrs_post_init__(self) -> None:
        goals = [self.target_bits_per_weight, self.target_sqnr_db, self.evaluate]
        if sum(goal is not None for goal in goals) > 1:
            raise ConfigError(
                "target_bits_per_weight, target_sqnr_db and evaluate are different goals: give one of them"
            )
        if (self.evaluate is None) != (self.tolerated_drop is None):
            raise ConfigError("evaluate and tolerated_drop belong together: give both")

    def prepare(self, context: QuantContext) -> None:
        scaling = [one.algorithm.name for one in context.packers.values() if getattr(one, "scales_inputs", False)]
        if scaling:
            raise ConfigError(
                f"BudgetPass compares representations layer by layer, and algorithm {scaling[0]!r} changes several "
                "layers at once: choose 'gptq', 'clip_search' or 'round_to_nearest'"
            )
        for layer in (layer for group in _tied(context) for layer in group):
            context.wanted_gradients.add(context.heard_at(layer))
            for name in context.weight_names(layer):
                context.want_moments(layer, name, full=False)

    def run(self, context: QuantContext) -> None:
        represent = {target: packer.representation(context) for target, packer in context.packers.items()}
        units = [
            _unit(layers, list(self._schemes(layers[0], context)), represent, context) for layers in _tied(context)
        ]
        if not units:
            context.report([*_left_out(context)])
            return
        weighed = Weighed(units, context)
        trials = Trials(context, weighed, represent)
        chosen = self._chosen(weighed, trials)
        self._settle(weighed, chosen, context)
        context.tradeoff = weighed.tradeoff(chosen, trials.evaluations)
        context.report([*self._findings(weighed, chosen, context.tradeoff), *_left_out(context)])

    def _schemes(self, layer: str, context: QuantContext) -> Iterator[AnyScheme]:
        """What a layer may become: as planned, with smaller groups, or what the other passes make of it."""
        planned = context.plan[layer].scheme or context.scheme
        yield planned
        if isinstance(planned, Scheme) and planned.bits < _MORE_BITS:
            widest = max(form.columns for form in context.packable(layer).forms.values())
            sizes = {size for size in self.group_sizes if size < planned.width(widest)}
            for size in sorted(sizes, reverse=True):
                yield attrs.evolve(planned, group_size=size)
        described = next(one for one in context.layers if one.name == layer)
        for packer in context.packers.values():
            scheme = packer.scheme_for(described, context.packable(layer), context)
            if not isinstance(scheme, Obstacle) and scheme.bits > planned.bits:
                yield scheme

    def _chosen(self, weighed: Weighed, trials: Trials) -> list[int]:
        if self.target_sqnr_db is not None:
            return weighed.reaching(self.target_sqnr_db)
        if self.target_bits_per_weight is not None:
            weights = sum(unit.weights for unit in weighed.units)
            found = choose(weighed.costs, int(self.target_bits_per_weight * weights / 8))
            if found is None:
                least = weighed.bits(weighed.path()[0])
                raise InputError(
                    f"target_bits_per_weight={self.target_bits_per_weight} is less than the smallest representation "
                    f"takes, which is {math.ceil(least * 1000) / 1000:.3f}: give that or more, or a larger group_size"
                )
            return found
        if self.evaluate is not None and self.tolerated_drop is not None:
            return trials.search(self.evaluate, self.tolerated_drop, self.max_evaluations)
        return weighed.as_planned()

    def _settle(self, weighed: Weighed, chosen: Sequence[int], context: QuantContext) -> None:
        """Write the choice into the plan, and forget the packed weights that were not chosen."""
        kept: set[tuple[str, str, AnyScheme]] = set()
        for unit, index in zip(weighed.units, chosen, strict=True):
            scheme = unit.options[index].scheme
            for layer in unit.layers:
                keys = {(*context.leading(layer, name), scheme) for name in context.weight_names(layer)}
                kept |= keys
                if scheme != context.plan[layer].scheme:
                    kind = type(context.module(layer)).__name__
                    reason = f"{kind} {', '.join(context.weight_names(layer))} to {scheme}, chosen {self._goal}"
                    context.refine(layer, scheme, reason)
        context.represented = {key: one for key, one in context.represented.items() if key in kept}

    @property
    def _goal(self) -> str:
        if self.target_bits_per_weight is not None:
            return f"for {self.target_bits_per_weight:g} bits per weight"
        if self.target_sqnr_db is not None:
            return f"for {self.target_sqnr_db:g} dB"
        return f"for a drop of at most {self.tolerated_drop:g}"

    def _findings(self, weighed: Weighed, chosen: Sequence[int], tradeoff: Tradeoff) -> Iterator[Finding]:
        if tradeoff.criterion == "layer":
            message = "The model's output has no gradient, so layers are ranked by the noise of their own outputs."
            yield Finding("ranked-by-layer", Severity.INFO, message)
        for unit, index in zip(weighed.units, chosen, strict=True):
            reached = unit.options[index].worst_sqnr_db
            if reached is None and len(unit.options) > 1:
                message = (
                    f"Layers {quoted(unit.layers)} met no calibration inputs, and take the smallest representation."
                )
                yield Finding("not-weighed", Severity.INFO, message, unit.layers[0], "Use data that reaches them.")
            elif self.target_sqnr_db is not None and reached is not None and reached < self.target_sqnr_db:
                message = f"Warning: layer {quoted(unit.layers[:1])} reaches {reached:.2f} dB, less than asked."
                yield Finding("target-not-met", Severity.WARNING, message, unit.layers[0], "Keep it in float.")
        for number, one in enumerate(tradeoff.evaluations):
            outcome = "tolerated" if one.accepted else "too low"
            message = f"Evaluation {number}: {one.value:.6g} at {one.bits_per_weight:.3f} bits per weight, {outcome}."
            yield Finding("evaluated", Severity.INFO, message)
        if tradeoff.evaluations and not any(one.accepted for one in tradeoff.evaluations[1:]):
            message = f"CRITICAL: no representation keeps the drop within {self.tolerated_drop:g}."
            yield Finding("drop-not-met", Severity.CRITICAL, message, remedy="Tolerate more, or skip layers.")


def _left_out(context: QuantContext) -> Iterator[Finding]:
    for group in _groups(context):
        reason = _obstacle(group, context)
        if reason is not None:
            message = f"Layers {quoted(group)} {reason}: they are not weighed, and stay as planned."
            yield Finding("not-weighed", Severity.INFO, message, group[0])


def _main_layers(context: QuantContext) -> list[str]:
    """Layers that the main packing pass takes; what rules sent elsewhere stays as it is."""
    main = context.scheme.target
    planned = ((layer.name, context.plan[layer.name].scheme) for layer in context.quantized_layers())
    return [layer for layer, scheme in planned if scheme is not None and scheme.target == main]


def _tied(context: QuantContext) -> list[list[str]]:
    """The layers that are weighed, those that share weights together."""
    return [group for group in _groups(context) if _obstacle(group, context) is None]


def _groups(context: QuantContext) -> list[list[str]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for layer in _main_layers(context):
        first = min(context.leading(layer, name) for name in context.weight_names(layer))
        groups.setdefault(first, []).append(layer)
    return list(groups.values())


def _obstacle(group: Sequence[str], context: QuantContext) -> str | None:
    """Why layers that share weights are not weighed, and stay as planned."""
    if len({context.plan[layer].scheme for layer in group}) > 1:
        return "share a weight, and are represented in different ways"
    if not any(context.packable(layer).adapter.multiplies for layer in group):
        return "multiply nothing (rows are looked up)"
    return None


def _unit(
    layers: Sequence[str], schemes: Sequence[AnyScheme], represent: Mapping[str, Represent], context: QuantContext
) -> Unit:
    options: list[Option] = []
    for scheme in schemes:
        packed: dict[str, dict[str, Represented]] = {}
        for layer in layers:
            packed[layer] = context.packers[scheme.target].represented(layer, scheme, represent[scheme.target], context)
            for name, one in packed[layer].items():
                context.represented[(*context.leading(layer, name), scheme)] = one
        options.append(option(layers, scheme, packed, context))
    forms = {
        context.leading(layer, name): context.packable(layer).forms[name]
        for layer in layers
        for name in context.weight_names(layer)
    }
    weights = sum(form.rows * form.columns for form in forms.values())
    ordered = sorted(options, key=lambda one: one.size)
    return Unit(tuple(layers), weights, tuple(ordered), ordered.index(options[0]))
