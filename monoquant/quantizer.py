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
from monoquant.errors import ConfigError, InputError, require_flag
from monoquant.modules.tensor_holder import hold
from monoquant.passes.base import Pass
from monoquant.passes.pack import PackPass
from monoquant.registry import Registry
from monoquant.report import QuantizationInfo, QuantReport, Tradeoff
from monoquant.report.wording import texts
from monoquant.source import inventory
from monoquant.summary import build_report
from monoquant.values import Action, AnyScheme, Decision, Severity


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


def _check_order(_instance: Any, _attribute: Any, passes: tuple[Pass, ...]) -> None:
    problems = [problem for position in range(len(passes)) for problem in _order_problems(passes, position)]
    if not any(isinstance(pass_, PackPass) for pass_ in passes):
        problems.append("no pass packs anything: add Int4PackPass() or Int8PackPass()")
    if problems:
        raise ConfigError("the passes do not fit together: " + "; ".join(problems))


def _order_problems(passes: tuple[Pass, ...], position: int) -> list[str]:
    pass_, earlier, later = passes[position], passes[:position], passes[position + 1 :]
    name = _name(pass_)
    problems = [
        f"{name} needs {kind.__name__}: put one before it, at position {position + 1}"
        for kind in pass_.follows
        if not any(isinstance(other, kind) for other in passes)
    ]
    problems += [
        f"{name} stands before {kind.__name__}: move it behind"
        for kind in dict.fromkeys((*pass_.follows, *pass_.after))
        if any(isinstance(other, kind) for other in later) and not any(isinstance(other, kind) for other in earlier)
    ]
    problems += [
        f"{name} stands behind {kind.__name__}: move it before"
        for kind in pass_.before
        if any(isinstance(other, kind) for other in earlier)
    ]
    if pass_.single and any(type(other) is type(pass_) for other in earlier):
        problems.append(f"{name} is there twice: keep one")
    if type(pass_).run is Pass.run and type(pass_).plan is Pass.plan:
        problems.append(f"{name} does nothing: define run(self, context)")
    return problems


def _name(pass_: Pass) -> str:
    return type(pass_).__name__


def _check_registry(_instance: Any, _attribute: Any, value: Any) -> None:
    if not isinstance(value, Registry):
        raise ConfigError(f"registry={value!r}: give a monoquant.Registry")


@attrs.frozen
class Quantizer:
    """A pipeline of passes; reusable for any number of models.

    Args:
        passes: Passes in order; checked when the Quantizer is built.
        registry: Rules and checks besides those in the passes; default: the built-in checks, no plugins.

    Raises:
        ConfigError: When a pass is missing, misplaced, doubled or not a pass; all problems at once.
    """

    passes: tuple[Pass, ...] = attrs.field(converter=_passes, validator=_check_order)
    registry: Registry = attrs.field(factory=Registry, validator=_check_registry)

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
            return self._planned(_as_module(model)).decisions()
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
        context = self._planned(model)
        _require_work(context)
        with torch.inference_mode(False):
            self._each("prepare", context)
            for index, pass_ in enumerate(self.passes):
                if isinstance(pass_, PackPass):
                    break
                self._run_pass(index, context)
        return context

    def _run_pass(self, index: int, context: QuantContext) -> None:
        for phase in ("requires", "run", "ensures"):
            self._call(phase, index, context)

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
        context = self._planned(model)
        _require_work(context)
        target = model if inplace else copy_without_weights(model, _quantized(context))
        self._each("prepare", context)
        for index in range(len(self.passes)):
            self._run_pass(index, context)
        report = build_report(context)
        convert_in_place(target, context.packed, context.rescaling.parameters)
        return QuantResult(target, _info(report), report)

    def _planned(self, model: nn.Module) -> QuantContext:
        context = QuantContext(model, self.scheme, inventory(model), self.registry)
        self._each("plan", context)
        for layer in context.undecided():
            context.decide(_left_alone(layer.name, context))
        context.close_plan()
        return context

    def _each(self, phase: str, context: QuantContext) -> None:
        for index in range(len(self.passes)):
            self._call(phase, index, context)

    def _call(self, phase: str, index: int, context: QuantContext) -> None:
        context.forget_current_layer()
        try:
            getattr(self.passes[index], phase)(context)
        except Exception as error:
            error.add_note(self._where(phase, index, context))
            raise

    def _where(self, phase: str, index: int, context: QuantContext) -> str:
        before = ", ".join(map(_name, self.passes[:index])) or "none"
        layer = "" if context.current_layer is None else f", layer {context.current_layer!r}"
        position = f"pass {index + 1} of {len(self.passes)}; before it: {before}"
        return f"in {_name(self.passes[index])}.{phase}{layer} ({position})"


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


def _quantized(context: QuantContext) -> dict[str, tuple[str, ...]]:
    decisions = context.decisions()
    return {decision.layer: decision.weights for decision in decisions if decision.action is Action.QUANTIZE}


def _require_work(context: QuantContext) -> None:
    decisions = context.decisions()
    if _quantized(context):
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
