"""The life of a plugin that implements every hook: what is called, when, and how often."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from monoquant.hooks import specs
from monoquant.numerics.matrix_form import MatrixForm
from tests.kernels.crooked import Fast

EVENTS: list[str] = []


class Rule(mq.SkipRule):
    """Keeps nothing."""

    def reason(self, layer: mq.Layer) -> str | None:
        EVENTS.append(f"rule: layer {layer.name}")
        return None


class Check(mq.WarningCheck):
    """Finds nothing."""

    def check(self, info: mq.QuantizationInfo, gate: mq.AccuracyGate) -> Iterable[mq.Finding]:
        EVENTS.append("check")
        return []


class Adapter(mq.ModuleAdapter):
    """Claims nothing."""

    def claims(self, module: nn.Module) -> bool:
        EVENTS.append(f"adapter: {type(module).__name__}")
        return False

    def forms(self, module: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, MatrixForm] | mq.Obstacle:
        raise NotImplementedError


@attrs.frozen
class Algorithm(mq.WeightAlgorithm):
    """Rounds to nearest."""

    name = "lifelong"

    def solve(self, problem: mq.WeightProblem) -> mq.Solution:
        EVENTS.append("algorithm")
        return mq.RoundToNearest().solve(problem)


class Observer(mq.RangeObserver):
    """Knows the range beforehand."""

    def _reset(self, channels: int) -> None: ...

    def _observe(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        EVENTS.append("observer")

    def _absorb(self, other: Observer) -> None: ...

    def _limits(self) -> tuple[Tensor, Tensor]:
        return torch.tensor([-4.0]), torch.tensor([4.0])


@attrs.frozen
class OwnPass(mq.Pass):
    """Does nothing in every phase."""

    follows = (mq.SkipSelectionPass,)
    before = (mq.PackPass,)

    def bound(self, registry: mq.Registry) -> OwnPass:
        EVENTS.append("pass: bound")
        return self

    def plan(self, context: mq.QuantContext) -> None:
        EVENTS.append("pass: plan")

    def prepare(self, context: mq.QuantContext) -> None:
        EVENTS.append("pass: prepare")

    def requires(self, context: mq.QuantContext) -> None:
        EVENTS.append("pass: requires")

    def run(self, context: mq.QuantContext) -> None:
        EVENTS.append("pass: run")

    def ensures(self, context: mq.QuantContext) -> None:
        EVENTS.append("pass: ensures")


class TextExporter(mq.Exporter):
    """Writes the report's first line."""

    name = "line"
    suffixes = (".line",)

    def write(self, result: mq.QuantResult, path: Path) -> None:
        EVENTS.append("exporter")
        path.write_text(str(result.report).split("\n")[0])


class LineReporter(mq.Reporter):
    """The same as text."""

    name = "line"
    suffixes = (".line",)

    def render(self, report: mq.QuantReport) -> str:
        EVENTS.append("reporter")
        return str(report).split("\n")[0]


class Everything:
    """Implements every hook, and writes down when it is called."""

    @mq.hookimpl
    def monoquant_register_skip_rules(self, scheme: mq.Scheme) -> Iterable[mq.SkipRule]:
        EVENTS.append("skip_rules")
        return [Rule()]

    @mq.hookimpl
    def monoquant_register_warning_checks(self, scheme: mq.Scheme) -> Iterable[mq.WarningCheck]:
        EVENTS.append("warning_checks")
        return [Check()]

    @mq.hookimpl
    def monoquant_register_module_adapters(self) -> Iterable[mq.ModuleAdapter]:
        EVENTS.append("module_adapters")
        return [Adapter()]

    @mq.hookimpl
    def monoquant_register_algorithms(self) -> Iterable[mq.WeightAlgorithm]:
        EVENTS.append("algorithms")
        return [Algorithm()]

    @mq.hookimpl
    def monoquant_register_observers(self) -> Iterable[mq.ObserverKind]:
        EVENTS.append("observers")
        return [mq.ObserverKind("lifelong", functools.partial(Observer, channel_axis=None))]

    @mq.hookimpl
    def monoquant_register_passes(self, scheme: mq.Scheme) -> Iterable[mq.Pass]:
        EVENTS.append("passes")
        return [OwnPass()]

    @mq.hookimpl
    def monoquant_register_kernels(self) -> Iterable[mq.Kernel]:
        EVENTS.append("kernels")
        return [Fast()]

    @mq.hookimpl
    def monoquant_register_exporters(self) -> Iterable[mq.Exporter]:
        EVENTS.append("exporters")
        return [TextExporter()]

    @mq.hookimpl
    def monoquant_register_reporters(self) -> Iterable[mq.Reporter]:
        EVENTS.append("reporters")
        return [LineReporter()]

    @mq.hookimpl
    def monoquant_before_pass(self, pass_: mq.Pass, context: mq.QuantContext) -> None:
        EVENTS.append(f"before {type(pass_).__name__}")

    @mq.hookimpl
    def monoquant_after_pass(self, pass_: mq.Pass, context: mq.QuantContext, error: BaseException | None) -> None:
        EVENTS.append(f"after {type(pass_).__name__}{'' if error is None else ' failed'}")


ASKED = ["skip_rules", "warning_checks", "module_adapters", "algorithms", "observers", "passes", "kernels"]


@pytest.fixture(autouse=True)
def no_events() -> None:
    """Each test begins a life."""
    EVENTS.clear()


@pytest.fixture
def manager() -> mq.PluginManager:
    """With the plugin, and without installed ones."""
    return mq.PluginManager([Everything()], discover=False)


def build() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64))


def around(name: str, *events: str) -> list[str]:
    return [f"before {name}", *events, f"after {name}"]


def test_the_plugin_implements_every_hook(manager: mq.PluginManager) -> None:
    """A hook cannot be added without a place in this life."""
    (info,) = manager.describe()
    assert list(info.hooks) == specs.hook_names()
    assert sorted(EVENTS) == sorted([*ASKED, "exporters", "reporters"])  # listing asks for everything, once


def test_the_whole_order_of_an_int4_run(manager: mq.PluginManager, tmp_path: Path) -> None:
    """From registration to the report; nothing is asked when the plugin is loaded."""
    assert EVENTS == []
    result = mq.quantize(build(), algorithm="lifelong", plugins=manager, accuracy_warning="ignore")
    assert [
        *ASKED,
        "pass: bound",
        *("rule: layer 0", "rule: layer 2") * 2,  # the second time to tell whether it matched anything at all
        "pass: plan",
        "adapter: Linear",
        "adapter: Linear",
        "pass: prepare",
        *around("SkipSelectionPass"),
        *around("OwnPass", "pass: requires", "pass: run", "pass: ensures"),
        *around("Int4PackPass", "algorithm", "algorithm"),
        *around("Int8PackPass"),
        *around("HalfCastPass"),
        *around("HalfCastPass"),
        *around("ValidationPass"),
        *around("AccuracyWarningPass", "check"),
    ] == EVENTS
    EVENTS.clear()
    mq.save(result, tmp_path / "model.line", plugins=manager)
    assert mq.render_report(result.report, "line", plugins=manager) == (tmp_path / "model.line").read_text()
    mq.save(result, tmp_path / "model.safetensors", plugins=manager)
    mq.load(tmp_path / "model.safetensors", build(), plugins=manager)
    asked, claims = EVENTS[:7], EVENTS[7:]
    assert asked == ["exporters", "exporter", "reporters", "reporter", "exporters", "module_adapters", "kernels"]
    assert set(claims) == {"adapter: Linear"}
    EVENTS.clear()
    result.model(torch.randn(3, 64))
    assert EVENTS == []  # no hook in any forward


def test_the_whole_order_of_a_static_int8_run(manager: mq.PluginManager) -> None:
    """Observers are fed in calibration, where passes are watched as everywhere."""
    data = [torch.randn(60, 64, generator=torch.Generator().manual_seed(0))]
    options: dict[str, Any] = {"bits": 8, "activations": "static", "calibration_data": data}
    mq.quantize(build(), observer="lifelong", plugins=manager, accuracy_warning="ignore", **options)
    assert EVENTS[: len(ASKED) + 1] == [*ASKED, "pass: bound"]
    worked = EVENTS[EVENTS.index("before SkipSelectionPass") :]
    assert worked == [
        *around("SkipSelectionPass"),
        *around("OwnPass", "pass: requires", "pass: run", "pass: ensures"),
        *around("CalibrationPass", "observer", "observer"),
        *around("Int8PackPass"),
        *around("HalfCastPass"),
        *around("HalfCastPass"),
        *around("ValidationPass"),
        *around("AccuracyWarningPass", "check"),
    ]


def test_the_order_of_a_run_that_fails(manager: mq.PluginManager) -> None:
    """The failing pass is the last one that is watched."""
    model = build()
    with torch.no_grad():
        model[2].weight[0, 0] = torch.inf
    with pytest.raises(mq.InputError):
        mq.quantize(model, plugins=manager, accuracy_warning="ignore")
    assert EVENTS[-1] == "pass: prepare"  # refused before any pass worked

    class Failing(mq.Pass):
        follows = (mq.PackPass,)

        def run(self, context: mq.QuantContext) -> None:
            raise KeyError("lost")

    EVENTS.clear()
    passes = [mq.SkipSelectionPass(), mq.Int4PackPass(), Failing(), mq.ValidationPass()]
    with pytest.raises(KeyError):
        mq.Quantizer(passes, manager.registry(mq.Scheme())).run(build())
    assert EVENTS[-4:] == ["before Int4PackPass", "after Int4PackPass", "before Failing", "after Failing failed"]
