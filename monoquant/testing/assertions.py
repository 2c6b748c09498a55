"""Assert what a pass does to a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
from torch import nn

from monoquant.context import QuantContext
from monoquant.errors import ConfigError
from monoquant.name_patterns import nearest_names
from monoquant.passes.base import Pass
from monoquant.quantizer import Quantizer, QuantResult
from monoquant.registry import Registry
from monoquant.report import LayerReport, QuantReport
from monoquant.source import own_tensors
from monoquant.testing.pipeline import pipeline_for
from monoquant.testing.unchanged import ModelState, torch_settings
from monoquant.values import Action, Finding

Layers = Collection[str] | Mapping[str, str]


def assert_pass(
    pass_: Pass,
    model: nn.Module,
    *,
    quantized: Layers | None = None,
    skipped: Layers | None = None,
    unsupported: Layers | None = None,
    findings: Iterable[str] | None = None,
    passes: Sequence[Pass] = (),
    calibration_data: Iterable[Any] | None = None,
    registry: Registry | None = None,
) -> QuantResult:
    """Run a pass in the shortest pipeline it declares to need, and compare what comes of it with what is expected.

    The pipeline holds what the pass ``follows``, and a packing pass. It has no skip rules, so that what is skipped is
    the doing of your pass. What is None is not compared. That the model and torch's settings are left alone, and that
    the report covers every parameter, is always checked; that the pass writes only what it may, by the Quantizer.

    Args:
        pass_: The pass.
        model: A float model that the pass should run on; left alone.
        quantized: Names of all layers that are quantized, or a mapping from name to a part of the representation, such
            as ``"int8"``. The root is ``""``.
        skipped: Names of all layers that are skipped, or a mapping from name to a part of the reason.
        unsupported: The same for layers that cannot be packed.
        findings: Codes of all findings that this pass reports, one per finding, in any order.
        passes: Passes to use in the pipeline, such as a SkipSelectionPass with rules; default: what is needed.
        calibration_data: Batches, needed where something follows CalibrationPass.
        registry: Rules and checks of plugins; default none.

    Returns:
        Model, info and report, to look into for more.

    Raises:
        AssertionError: Telling every difference.
        ConfigError: When a name is none of the model's, or the pipeline cannot be built.
        Exception: What the run raises.

    Example::

        assert_pass(ClipOutliersPass(), model, quantized={"0", "2"}, findings=["outliers-clipped"])
    """
    expected = {Action.QUANTIZE: quantized, Action.SKIP: skipped, Action.UNSUPPORTED: unsupported}
    before, after = _Mark(), _Mark()
    pipeline = pipeline_for(pass_, passes, calibration_data)
    at = next(index for index, one in enumerate(pipeline) if one is pass_)
    marked = [*pipeline[:at], before, pass_, after, *pipeline[at + 1 :]]
    quantizer = Quantizer(marked, Registry() if registry is None else registry)
    state, settings = ModelState.of(model), torch_settings()
    result = quantizer.run(model)
    _check_names(expected.values(), result.report)
    problems = [f"the model was changed: {difference}" for difference in state.differences(model)]
    problems += [f"torch's {name} was changed" for name, value in torch_settings().items() if value != settings[name]]
    problems += _uncovered(model, result.report)
    for action, wanted in expected.items():
        problems += [] if wanted is None else _layer_differences(action, wanted, result.report)
    found = _added(before, after)
    problems += [] if findings is None else _finding_differences(Counter(findings), found)
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        names = ", ".join(type(one).__name__ for one in pipeline)
        raise AssertionError(f"{pass_!r} did not do what was expected, in the pipeline [{names}]:\n{listed}")
    return result


@attrs.frozen
class _Mark(Pass):
    """Stands before and behind the pass, and remembers in each phase which findings there are."""

    findings: list[tuple[Finding, ...]] = attrs.field(factory=list)

    def plan(self, context: QuantContext) -> None:
        self.findings.append(tuple(context.findings))

    def prepare(self, context: QuantContext) -> None:
        self.findings.append(tuple(context.findings))

    def run(self, context: QuantContext) -> None:
        self.findings.append(tuple(context.findings))


def _added(before: _Mark, after: _Mark) -> list[Finding]:
    phases = zip(before.findings, after.findings, strict=True)
    return [finding for earlier, later in phases for finding in later[len(earlier) :]]


def _check_names(expected: Iterable[Layers | None], report: QuantReport) -> None:
    known = [record.layer for record in report.layers]
    wrong = [name for names in expected if names is not None for name in names if name not in known]
    if wrong:
        told = "; ".join(f"{name!r} (nearest: {', '.join(map(repr, nearest_names(name, known)))})" for name in wrong)
        raise ConfigError(f"no layer of the model is called {told}: give names as the report has them")


def _uncovered(model: nn.Module, report: QuantReport) -> list[str]:
    modules = (model.get_submodule(record.layer) for record in report.layers)
    covered = {id(tensor) for module in modules for tensor in own_tensors(module).values()}
    missing = [name for name, parameter in model.named_parameters() if id(parameter) not in covered]
    return [f"parameter {name!r} belongs to no layer of the report" for name in missing]


def _layer_differences(action: Action, wanted: Layers, report: QuantReport) -> Iterator[str]:
    parts: Mapping[str, str] = wanted if isinstance(wanted, Mapping) else dict.fromkeys(wanted, "")
    for record in report.layers:
        if record.layer in parts and record.action is not action:
            yield f"- {action}: {record.name!r}, which is {_told(record)}"
        elif record.layer in parts and parts[record.layer] not in _words(record):
            yield f"- {action}: {record.name!r} with {parts[record.layer]!r}, which is {_told(record)}"
        elif record.layer not in parts and record.action is action:
            yield f"+ {action}: {record.name!r}, not expected; it is {_told(record)}"


def _words(record: LayerReport) -> str:
    return str(record.scheme) if record.action is Action.QUANTIZE else record.reason


def _told(record: LayerReport) -> str:
    return f"{record.action} ({record.reason})"


def _finding_differences(wanted: Counter[str], found: Sequence[Finding]) -> Iterator[str]:
    codes = Counter(finding.code for finding in found)
    for code, count in (wanted - codes).items():
        yield f"- finding: {code!r}{_times(count)}, which the pass did not report"
    for code, count in (codes - wanted).items():
        text = next(str(finding) for finding in found if finding.code == code)
        yield f"+ finding: {code!r}{_times(count)}, not expected: {text}"


def _times(count: int) -> str:
    return "" if count == 1 else f" ({count} times)"
