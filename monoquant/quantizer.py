"""The Quantizer: runs passes over a model, dry or for real."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from monoquant.adapters.base import Obstacle
from monoquant.context import QuantContext
from monoquant.conversion import convert_in_place, copy_without_weights
from monoquant.errors import ConfigError, InputError, PassError, require_flag
from monoquant.modules.tensor_holder import hold
from monoquant.passes.base import Pass
from monoquant.passes.order import Pipeline, Step, name_of, pipeline
from monoquant.passes.pack import PackPass
from monoquant.registry import Registered, Registry
from monoquant.report import QuantizationInfo, QuantReport, Tradeoff
from monoquant.report.wording import texts
from monoquant.source import inventory
from monoquant.stepping import Stepper
from monoquant.summary import build_report
from monoquant.values import CALLER, Action, AnyScheme, Decision, Finding, Severity


@attrs.frozen(eq=False)
class QuantResult:
    """A quantized model and what became of it.

    Args:
        model: The quantized model; the very object that was given if ``inplace=True``.
        info: The short summary.
        report: Everything; ``print`` it for a table.
    """

    model: nn.Module
    info: QuantizationInfo
    report: QuantReport


def _passes(given: Any) -> tuple[Pass, ...]:
    try:
        passes = tuple(given)
    except TypeError as error:
        raise ConfigError(f"{given!r}: give a list of passes") from error
    for position, pass_ in enumerate(passes, 1):
        if isinstance(pass_, type):
            raise ConfigError(f"pass {position} is the class {pass_.__name__}: give an instance, {pass_.__name__}(...)")
        if not isinstance(pass_, Pass):
            raise ConfigError(f"pass {position} is {pass_!r}: give instances of subclasses of monoquant.Pass")
    return passes


def _check_recipe(_instance: Any, _attribute: Any, value: Any) -> None:
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"recipe={value!r}: give the recipe's TOML text, which the report keeps, or None")


def _registry(given: Any) -> Registry:
    if not isinstance(given, Registry):
        raise ConfigError(f"registry={given!r}: give a monoquant.Registry")
    return given


@attrs.frozen
class Quantizer:
    """A pipeline of passes; reusable for any number of models.

    Args:
        passes: Passes in order; checked when the Quantizer is built.
        registry: Rules, checks, passes ... besides those that are given here; default: the built-in ones, no plugins.
        recipe: TOML text of the recipe that the passes follow, for the report; default None.

    Raises:
        ConfigError: When a pass is missing, misplaced, doubled or not a pass, all problems at once; or when it names
            something that the registry does not know.
        PluginError: When a pass of a plugin has no place among the others.
    """

    passes: tuple[Pass, ...] = attrs.field(converter=_passes)
    registry: Registry = attrs.field(factory=Registry, converter=_registry)
    recipe: str | None = attrs.field(default=None, validator=_check_recipe)
    _pipeline: Pipeline = attrs.field(init=False, eq=False, repr=False)

    @_pipeline.default
    def _ordered(self) -> Pipeline:
        found = pipeline(self.passes, self.registry.passes)
        return attrs.evolve(found, steps=tuple(_bound(step, self.registry) for step in found.steps))

    @property
    def scheme(self) -> AnyScheme:
        """The scheme of the first packing pass."""
        return next(pass_.scheme for pass_ in self.passes if isinstance(pass_, PackPass))

    def plan(self, model: nn.Module | Mapping[str, Tensor], *, measured: bool = False) -> tuple[Decision, ...]:
        """Dry run: what would become of every layer, decided from names, types and shapes.

        Args:
            model: The float model, or its state dict; weights on the meta device are fine. It is left alone.
            measured: True runs the passes before the first packing one as well, so that the choices of a BudgetPass,
                which need data, are in the plan; default False.

        Returns:
            Exactly one decision for every module that owns parameters, in model order.

        Raises:
            InputError: When the model cannot be quantized at all, such as lazy or quantized ones.
        """
        require_flag("measured", measured)
        if not measured:
            return self.planned(_as_module(model)).decisions()
        return self._measured(_as_module(model)).decisions()

    def weigh(self, model: nn.Module | Mapping[str, Tensor]) -> Tradeoff:
        """Rank layers by what more precision would bring, without quantizing the model.

        Args:
            model: The float model, left alone. The pipeline needs a BudgetPass; one without a goal will do.

        Returns:
            The ranking, and the curve of noise over bits per weight; ``print`` it.

        Raises:
            ConfigError: When no pass of the pipeline weighs.
            MonoquantError: As :meth:`run`.
        """
        found = self._measured(_as_module(model)).tradeoff
        if found is None:
            raise ConfigError("no pass of this pipeline weighs layers: add BudgetPass() before the packing passes")
        return found

    def _measured(self, model: nn.Module) -> QuantContext:
        context = self.planned(model)
        require_work(context)
        stepper = self._stepper(context)
        with torch.inference_mode(False):
            stepper.each("prepare")
            for index, step in enumerate(stepper.steps):
                if isinstance(step.value, PackPass):
                    break
                stepper.work(index)
        return context

    def _stepper(self, context: QuantContext) -> Stepper:
        return Stepper(self._pipeline.steps, context)

    def run(self, model: nn.Module | Mapping[str, Tensor], *, inplace: bool = False) -> QuantResult:
        """Quantize a model.

        Args:
            model: The float model, or its state dict.
            inplace: False (default): return a copy, leave ``model`` alone. True: change ``model`` itself, after all
                passes have succeeded. Either way any exception leaves it as it was.

        Returns:
            Model, info and report.

        Raises:
            MonoquantError: For bad input, a failed check or a failed gate.
            Exception: What a pass raises, with a note that names pass and layer.
        """
        require_flag("inplace", inplace)
        with torch.inference_mode(False):  # or the result could be neither trained nor loaded into
            return self._run(_as_module(model), inplace)

    def _run(self, model: nn.Module, inplace: bool) -> QuantResult:
        context = self.planned(model)
        require_work(context)
        target = model if inplace else copy_without_weights(model, quantized_weights(context))
        stepper = self._stepper(context)
        stepper.each("prepare")
        for index in range(len(stepper.steps)):
            stepper.work(index)
        report = build_report(context)
        convert_in_place(target, context.packed, context.rescaling.parameters)
        return QuantResult(target, _info(report), report)

    @property
    def steps(self) -> tuple[Step, ...]:
        """All passes with who brought them, in the order in which they run."""
        return self._pipeline.steps

    def planned(self, model: nn.Module, magnitudes: Mapping[tuple[str, str], float] | None = None) -> QuantContext:
        """A run up to the plan, for who does the work in another way.

        Args:
            model: The float model, left alone; weights on the meta device are fine.
            magnitudes: Largest absolute values of such weights, by layer and weight, where they are known; default:
                none are.

        Returns:
            The state that passes share, the plan final.
        """
        context = QuantContext(
            model, self.scheme, inventory(model), self.registry, magnitudes=magnitudes or {}, recipe=self.recipe
        )
        context.report([*self._pipeline.notes, *_blocked(self.registry), *_disabled(self.registry)])
        self._stepper(context).each("plan")
        for layer in context.undecided():
            context.decide(_left_alone(layer.name, context))
        context.close_plan()
        return context


def _bound(step: Step, registry: Registry) -> Step:
    who = f"{name_of(step.value)}.bound" + ("" if step.origin == CALLER else f" of plugin {step.origin}")
    try:
        bound: object = step.value.bound(registry)
    except Exception as error:
        if step.origin != CALLER or not isinstance(error, ConfigError):  # the caller's own settings need no address
            error.add_note(f"in {who}")
        raise
    if not isinstance(bound, Pass):
        raise PassError(f"{who} returned {bound!r}: return self, or another pass in its place")
    return Registered(bound, step.origin)


def _disabled(registry: Registry) -> list[Finding]:
    remedy = "Another kernel takes its place; repair it, or block the plugin."
    return [
        Finding("kernel-disabled", Severity.WARNING, f"Warning: kernel {one.value}.", None, remedy, one.origin)
        for one in registry.disabled
    ]


def _blocked(registry: Registry) -> list[Finding]:
    if not registry.blocked:
        return []
    message = f"Plugins that were blocked: {', '.join(map(str, registry.blocked))}."
    return [Finding("plugin-blocked", Severity.INFO, message)]


def _as_module(model: nn.Module | Mapping[str, Tensor]) -> nn.Module:
    return hold(model) if isinstance(model, Mapping) else model


def _left_alone(layer: str, context: QuantContext) -> Decision:
    """What becomes of a layer that no pass has decided on."""
    target = context.targets.get(layer)
    nobody = Obstacle(f"no pass of this pipeline packs {target.to if target else 'it'}", "add a pass that does")
    obstacle = context.obstacles.get(layer, nobody)
    if target is None:
        return Decision(layer, Action.UNSUPPORTED, obstacle.reason, remedy=obstacle.remedy)
    reason = f"{target.reason}; not to {target.to}, because {obstacle.reason}"
    return Decision(layer, Action.SKIP, reason, target.rule, target.origin, obstacle.remedy)


def quantized_weights(context: QuantContext) -> dict[str, tuple[str, ...]]:
    """Names of the weights that will be packed, by layer.

    Args:
        context: The run; the plan is final.
    """
    decisions = context.decisions()
    return {decision.layer: decision.weights for decision in decisions if decision.action is Action.QUANTIZE}


def require_work(context: QuantContext) -> None:
    """Refuse models of which nothing would be packed.

    Args:
        context: The run; the plan is final.

    Raises:
        InputError: With the reason for each layer.
    """
    decisions = context.decisions()
    if quantized_weights(context):
        return
    reasons = "\n".join(f"- {decision}" for decision in decisions) or "- it has no parameters at all"
    reasons += "".join(f"\n- {text}" for text in texts(context.findings))
    raise InputError(
        f"no layer of the model can be quantized:\n{reasons}\ngive a model with weight matrices, or skip fewer",
        layers=[decision.layer for decision in decisions],
    )


def _info(report: QuantReport) -> QuantizationInfo:
    info = QuantizationInfo.from_report(report)
    info.warnings.extend(texts([finding for finding in report.findings if finding.severity > Severity.INFO]))
    return info
