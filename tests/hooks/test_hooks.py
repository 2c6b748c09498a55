"""What each hook is for: one test of its name, with a plugin that uses it."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import monoquant as mq
from tests.kernels.crooked import Fast

QUIET: dict[str, Any] = {"accuracy_warning": "ignore"}


def build() -> nn.Module:
    """Two Linears, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64))


def batches() -> list[torch.Tensor]:
    """Gaussian inputs, with a rare large one."""
    rows = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    rows[0, 0] = 50.0
    return [rows]


def test_monoquant_register_skip_rules() -> None:
    """Rules are asked about every layer; the decision says whose rule it was."""

    class Plugin:
        @mq.hookimpl
        def monoquant_register_skip_rules(self, scheme: mq.Scheme) -> Iterable[mq.SkipRule]:
            return [mq.NameRule("2")] if scheme.bits == 4 else []

    result = mq.quantize(build(), plugins=[Plugin()], **QUIET)
    assert result.info.skipped_layers == ["2"]
    assert result.report.by_action(mq.Action.SKIP)[0].origin == mq.Origin("Plugin")
    assert mq.quantize(build(), bits=8, plugins=[Plugin()], **QUIET).info.skipped_layers == []


def test_monoquant_register_warning_checks() -> None:
    """Checks judge the run beside the built-in ones, and a CRITICAL finding fails a build."""

    class NoBigModels(mq.WarningCheck):
        def check(self, info: mq.QuantizationInfo, gate: mq.AccuracyGate) -> Iterable[mq.Finding]:
            yield mq.Finding("too-big", mq.Severity.CRITICAL, f"CRITICAL: {info.quantized_size_mb:.3f} MiB.")

    class Plugin:
        @mq.hookimpl
        def monoquant_register_warning_checks(self, scheme: mq.Scheme) -> Iterable[mq.WarningCheck]:
            return [NoBigModels()]

    result = mq.quantize(build(), plugins=[Plugin()], **QUIET)
    (found,) = [finding for finding in result.report.findings if finding.code == "too-big"]
    assert found.origin == mq.Origin("Plugin")


def test_monoquant_register_module_adapters(tmp_path: Path) -> None:
    """Adapters are asked before the built-in ones, in quantize() and in load()."""

    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(build()[0].weight.detach().T.clone())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.table

    class Plugin:
        @mq.hookimpl
        def monoquant_register_module_adapters(self) -> Iterable[mq.ModuleAdapter]:
            return [mq.ParameterAdapter(Transposed, {"table": -2})]

    result = mq.quantize(Transposed(), plugins=[Plugin()], **QUIET)
    assert result.report.layers[0].matrices == ((96, 64),)
    assert mq.quantize(Transposed(), plugins=False, **QUIET).report.layers[0].matrices == ((64, 96),)
    mq.save(result, tmp_path / "model.safetensors")
    loaded = mq.load(tmp_path / "model.safetensors", Transposed(), plugins=[Plugin()])
    assert torch.equal(loaded.table, result.model.table)


@attrs.frozen
class Coarse(mq.WeightAlgorithm):
    """Codes 0 only, so that its work is seen."""

    name = "coarse"

    def solve(self, problem: mq.WeightProblem) -> mq.Solution:
        rows, columns = problem.weight.shape
        groups = (rows, columns // problem.width)
        codes = torch.zeros(rows, columns, dtype=torch.uint8)
        scale = torch.ones(groups, dtype=problem.scheme.scale_dtype)
        return mq.Solution(mq.GroupCodes(codes, scale, torch.zeros(groups, dtype=torch.uint8)))


def test_monoquant_register_algorithms() -> None:
    """An algorithm is found by its name, wherever names are taken, and the report says that it chose the codes."""

    class Plugin:
        @mq.hookimpl
        def monoquant_register_algorithms(self) -> Iterable[mq.WeightAlgorithm]:
            return [Coarse()]

    result = mq.quantize(build(), algorithm="coarse", plugins=[Plugin()], **QUIET)
    assert {record.algorithm for record in result.report.layers} == {"coarse"}
    assert not result.model[0].weight.any()
    registry = mq.PluginManager([Plugin()], discover=False).registry(mq.Scheme())
    spelt_out = mq.Quantizer([mq.SkipSelectionPass(), mq.Int4PackPass(algorithm="coarse")], registry)
    assert not spelt_out.run(build()).model[0].weight.any()
    assert mq.quantize(build(), plugins=[Plugin()], **QUIET).report.layers[0].algorithm == "round_to_nearest"


class HalfRange(mq.RangeObserver):
    """A given share of the largest value it saw."""

    def __init__(self, share: float = 0.5, *, channel_axis: int | None = None) -> None:
        super().__init__(channel_axis=channel_axis)
        self._share = share

    def _reset(self, channels: int) -> None:
        self._largest = torch.zeros(channels, dtype=torch.float64)

    def _observe(self, rows: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> None:
        self._largest = torch.maximum(self._largest, torch.maximum(-low, high))

    def _absorb(self, other: HalfRange) -> None:
        self._largest = torch.maximum(self._largest, other._largest)

    def _limits(self) -> tuple[torch.Tensor, torch.Tensor]:
        return -self._largest * self._share, self._largest * self._share


def test_monoquant_register_observers() -> None:
    """An observer is found by its name; a fresh one watches each layer."""

    class Plugin:
        @mq.hookimpl
        def monoquant_register_observers(self) -> Iterable[mq.ObserverKind]:
            return [mq.ObserverKind("tenth", functools.partial(HalfRange, 0.1))]

    options: dict[str, Any] = {"bits": 8, "activations": "static", "calibration_data": batches(), **QUIET}
    result = mq.quantize(build(), observer="tenth", plugins=[Plugin()], **options)
    assert float(result.model[0].packed_input.scale) * 255 == torch.tensor(10.0)
    own = mq.quantize(build(), observer=mq.ObserverKind("mine", HalfRange), plugins=False, **options)
    assert float(own.model[0].packed_input.scale) * 255 == torch.tensor(50.0)
    _, info = mq.static_quantize(build(), batches(), observer="tenth", plugins=[Plugin()], **QUIET)
    assert info.selected_layers == ["0", "2"]


@attrs.frozen
class ZeroPass(mq.Pass):
    """Take all weights away before packing."""

    follows = (mq.SkipSelectionPass,)
    before = (mq.PackPass,)

    def run(self, context: mq.QuantContext) -> None:
        for layer in context.quantized_layers():
            context.replace_weight(layer.name, torch.zeros_like(context.weight(layer.name)))


def test_monoquant_register_passes() -> None:
    """A pass takes part in every run, in the place that it declares, and the report says so."""

    class Plugin:
        @mq.hookimpl
        def monoquant_register_passes(self, scheme: mq.Scheme) -> Iterable[mq.Pass]:
            return [ZeroPass()]

    result = mq.quantize(build(), plugins=[Plugin()], **QUIET)
    assert not result.model[0].weight.any()
    (found,) = [finding for finding in result.report.findings if finding.code == "pass-added"]
    assert str(found) == "Pass ZeroPass took part, behind SkipSelectionPass."
    assert found.origin == mq.Origin("Plugin")


@attrs.frozen
class KeepFirst(mq.Pass):
    """Decides and reports, and leaves it to others to say who did."""

    follows = (mq.SkipSelectionPass,)
    before = (mq.PackPass,)
    origin: mq.Origin | None = None

    def plan(self, context: mq.QuantContext) -> None:
        said = {} if self.origin is None else {"origin": self.origin}
        context.decide(mq.Decision("0", mq.Action.SKIP, "first", **said))
        context.report([mq.Finding("first-kept", mq.Severity.INFO, "Kept.", "0", **said)] * 2)

    def run(self, context: mq.QuantContext) -> None:
        said = {} if self.origin is None else {"origin": self.origin}
        context.report([mq.Finding("first-kept", mq.Severity.INFO, "Kept.", "0", **said)])


@pytest.mark.parametrize("named", [None, mq.Origin("a table of ours")])
def test_what_a_pass_of_a_plugin_says_is_the_plugins(named: mq.Origin | None) -> None:
    """Its decisions and findings have its name, unless they have one; those of other passes keep theirs."""

    class Plugin:
        @mq.hookimpl
        def monoquant_register_passes(self) -> Iterable[mq.Pass]:
            return [KeepFirst(named)]

    report = mq.quantize(build(), plugins=[Plugin()], **QUIET).report
    expected = named or mq.Origin("Plugin")
    assert [record.origin for record in report.layers] == [expected, mq.Origin("monoquant")]
    assert [finding.origin for finding in report.findings if finding.code == "first-kept"] == [expected]
    others = {one.origin.name for one in report.findings if one.code == "rule-unmatched"}
    assert "monoquant" in others
    assert str(expected) not in others


def test_monoquant_register_kernels() -> None:
    """The preferred kernel multiplies, and the report names it."""

    class Plugin:
        @mq.hookimpl
        def monoquant_register_kernels(self) -> Iterable[mq.Kernel]:
            return [Fast()]

    result = mq.quantize(build(), plugins=[Plugin()], exact=True, **QUIET)
    assert [record.compute for record in result.report.layers] == ["multiplied by fast"] * 2
    assert result.model[0].packed_weight.kernel == Fast()


class NamesExporter(mq.Exporter):
    """Writes the names of the quantized layers."""

    name = "names"
    suffixes = (".names",)

    def write(self, result: mq.QuantResult, path: Path) -> None:
        path.write_text(" ".join(result.info.selected_layers))


def test_monoquant_register_exporters(tmp_path: Path) -> None:
    """A format is found by its name or by the end of the path."""

    class Plugin:
        @mq.hookimpl
        def monoquant_register_exporters(self) -> Iterable[mq.Exporter]:
            return [NamesExporter()]

    result = mq.quantize(build(), plugins=False, **QUIET)
    mq.save(result, tmp_path / "a.names", plugins=[Plugin()])
    mq.save(result, tmp_path / "b", format="names", plugins=[Plugin()])
    assert (tmp_path / "a.names").read_text() == (tmp_path / "b").read_text() == "0 2"


class CountReporter(mq.Reporter):
    """Counts layers."""

    name = "count"
    suffixes = (".count",)

    def render(self, report: mq.QuantReport) -> str:
        return f"{len(report.layers)} layers"


def test_monoquant_register_reporters(tmp_path: Path) -> None:
    """A form of the report is found by its name or by the end of the path."""

    class Plugin:
        @mq.hookimpl
        def monoquant_register_reporters(self) -> Iterable[mq.Reporter]:
            return [CountReporter()]

    report = mq.quantize(build(), plugins=False, **QUIET).report
    assert mq.render_report(report, "count", plugins=[Plugin()]) == "2 layers"
    mq.save_report(report, tmp_path / "a.count", plugins=[Plugin()])
    mq.save_report(report, tmp_path / "b.txt", "count", plugins=[Plugin()])
    assert (tmp_path / "a.count").read_text() == (tmp_path / "b.txt").read_text() == "2 layers"


def test_monoquant_before_pass() -> None:
    """It sees every pass that is about to work, and what the context holds by then."""
    seen: list[tuple[str, int]] = []

    class Plugin:
        @mq.hookimpl
        def monoquant_before_pass(self, pass_: mq.Pass, context: mq.QuantContext) -> None:
            seen.append((type(pass_).__name__, len(context.packed)))

    passes = [mq.SkipSelectionPass(), mq.Int4PackPass(), mq.ValidationPass()]
    registry = mq.PluginManager([Plugin()], discover=False).registry(mq.Scheme())
    quantizer = mq.Quantizer(passes, registry)
    quantizer.plan(build())
    assert seen == []
    quantizer.run(build())
    assert seen == [("SkipSelectionPass", 0), ("Int4PackPass", 0), ("ValidationPass", 2)]


def test_monoquant_after_pass() -> None:
    """It sees every pass that has worked, or what it failed with."""
    seen: list[tuple[str, int, str]] = []

    class Plugin:
        @mq.hookimpl
        def monoquant_after_pass(self, pass_: mq.Pass, context: mq.QuantContext, error: BaseException | None) -> None:
            seen.append((type(pass_).__name__, len(context.packed), repr(error)))

    class Broken(mq.Pass):
        follows = (mq.PackPass,)

        def run(self, context: mq.QuantContext) -> None:
            raise KeyError("lost")

    passes = [mq.SkipSelectionPass(), mq.Int4PackPass(), Broken()]
    registry = mq.PluginManager([Plugin()], discover=False).registry(mq.Scheme())
    try:
        mq.Quantizer(passes, registry).run(build())
    except KeyError:
        seen.append(("caller", 0, ""))
    names = ("SkipSelectionPass", 0, "None"), ("Int4PackPass", 2, "None"), ("Broken", 2, "KeyError('lost')")
    assert seen == [*names, ("caller", 0, "")]
