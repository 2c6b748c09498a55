"""``assert_pass`` runs a pass in the shortest pipeline it declares to need, and tells every difference at once."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant.testing import assert_pass
from monoquant.testing.pipeline import pipeline_for


def model() -> nn.Sequential:
    return nn.Sequential(nn.Embedding(50, 64), nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 50))


def batches() -> list[torch.Tensor]:
    return [torch.randint(0, 50, (4, 5)) for _ in range(8)]


@attrs.frozen
class KeepLast(mq.Pass):
    """Keep the last layer in float, and say so."""

    def plan(self, context: mq.QuantContext) -> None:
        last = context.undecided()[-1].name
        context.decide(mq.Decision(last, mq.Action.SKIP, "it is the last one"))
        context.report([mq.Finding("kept-last", mq.Severity.INFO, f"Layer {last!r} was kept.", last)])


@attrs.frozen
class Clip(mq.Pass):
    """Clip large weights, and tell of each layer that had some."""

    follows: ClassVar[tuple[type[mq.Pass], ...]] = (mq.SkipSelectionPass,)
    limit: float = 0.1

    def run(self, context: mq.QuantContext) -> None:
        for layer in context.quantized_layers():
            weight = context.weight(layer.name)
            if weight.abs().max() > self.limit:
                context.replace_weight(layer.name, weight.clamp(-self.limit, self.limit))
                context.report([mq.Finding("clipped", mq.Severity.INFO, f"{layer.name} was clipped.", layer.name)])


def failure(pass_: mq.Pass, **expected: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        assert_pass(pass_, model(), **expected)
    return str(caught.value)


def test_what_is_expected_passes() -> None:
    """Layers by name, or with a part of the reason or the representation; findings by code, in any order."""
    assert_pass(KeepLast(), model(), quantized={"0", "1"}, skipped={"3"}, unsupported={"2"}, findings=["kept-last"])
    parts = {
        "skipped": {"3": "the last"},
        "unsupported": {"2": "no weight matrix"},
        "quantized": {"0": "int4", "1": ""},
    }
    result = assert_pass(KeepLast(), model(), **parts)
    assert isinstance(result, mq.QuantResult)
    assert [record.layer for record in result.report.by_action(mq.Action.SKIP)] == ["3"]
    assert_pass(Clip(limit=1.0), model(), findings=["clipped"])


def test_what_is_not_said_is_not_compared() -> None:
    """Without expectations it only has to run, and leave the model alone."""
    for pass_ in (KeepLast(), Clip(), mq.Int8PackPass(), mq.ValidationPass()):
        assert_pass(pass_, model())


def test_every_difference_is_told_at_once() -> None:
    """Missing and unexpected layers and findings, each with what it is instead."""
    told = failure(
        KeepLast(), quantized={"0", "3"}, skipped={"1": ""}, unsupported={"2": "tied"}, findings=["kept-first"]
    )
    assert told.splitlines() == [
        "KeepLast() did not do what was expected, in the pipeline [SkipSelectionPass, KeepLast, Int4PackPass]:",
        "  + quantize: '1', not expected; it is quantize (Linear weight to int4 g32 asymmetric float16)",
        "  - quantize: '3', which is skip (it is the last one)",
        "  - skip: '1', which is quantize (Linear weight to int4 g32 asymmetric float16)",
        "  + skip: '3', not expected; it is skip (it is the last one)",
        "  - unsupported: '2' with 'tied', which is unsupported (LayerNorm has no weight matrix)",
        "  - finding: 'kept-first', which the pass did not report",
        "  + finding: 'kept-last', not expected: Layer '3' was kept.",
    ]


def test_findings_are_counted() -> None:
    """Two findings of one code are not one."""
    assert "- finding: 'clipped' (2 times), which the pass did not report" in failure(
        KeepLast(), findings=["clipped"] * 2
    )
    assert_pass(Clip(limit=0.01), model(), findings=["clipped"] * 3)
    assert "+ finding: 'clipped' (2 times), not expected" in failure(Clip(limit=0.01), findings=["clipped"])


def test_findings_of_other_passes_do_not_count() -> None:
    """A rule that matches nothing is the finding of the pass that asks it."""
    asking = mq.SkipSelectionPass(mq.NameRule("typo"))
    result = assert_pass(KeepLast(), model(), passes=[asking], findings=["kept-last"])
    assert {finding.code for finding in result.report.findings} >= {"rule-unmatched", "kept-last"}
    assert_pass(asking, model(), findings=["rule-unmatched"])


def test_a_misspelt_layer_is_told_with_the_nearest() -> None:
    """A name that is none of the model's would never be found different."""
    with pytest.raises(mq.ConfigError, match=r"no layer of the model is called 'lm_hed' .*nearest: 'lm_head'"):
        assert_pass(
            KeepLast(), nn.ModuleDict({"lm_head": nn.Linear(64, 64), "up": nn.Linear(64, 64)}), skipped={"lm_hed"}
        )


def test_findings_of_others_may_not_be_removed() -> None:
    """A pass adds to what earlier ones found."""

    @attrs.frozen
    class Forgets(KeepLast):
        def prepare(self, context: mq.QuantContext) -> None:
            context.findings.clear()

    with pytest.raises(mq.PassError, match=r"Forgets.prepare took findings back"):
        assert_pass(Forgets(), model(), passes=[mq.SkipSelectionPass(mq.NameRule("typo"))])


def test_the_model_and_torch_are_left_alone() -> None:
    """Whatever else is expected."""

    @attrs.frozen
    class Rude(KeepLast):
        def run(self, context: mq.QuantContext) -> None:
            context.model[1].weight.data.zero_()
            torch.rand(1)

    told = failure(Rude())
    assert "the model was changed: values of 1.weight" in told
    assert "torch's random state was changed" in told


def test_a_decision_that_was_not_planned_is_told() -> None:
    """The dry run is a promise."""

    @attrs.frozen
    class Late(Clip):
        def run(self, context: mq.QuantContext) -> None:
            context.plan["1"] = mq.Decision("1", mq.Action.SKIP, "late")

    with pytest.raises(mq.PassError, match=r"Late.run changed the decision on layer '1'"):
        assert_pass(Late(), model())


def test_a_parameter_outside_the_report_is_told() -> None:
    """Also a pass that adds a parameter to the model is found out by it."""

    @attrs.frozen
    class Adds(Clip):
        def run(self, context: mq.QuantContext) -> None:
            context.model.add_module("extra", nn.Linear(2, 2))

    assert "parameter 'extra.weight' belongs to no layer of the report" in failure(Adds())


class Settled(mq.Pass):
    """A pass that cannot be built without settings."""

    def __init__(self, size: int) -> None:
        super().__init__()

    def run(self, context: mq.QuantContext) -> None:
        pass


@attrs.frozen
class NeedsSettled(Clip):
    follows: ClassVar[tuple[type[mq.Pass], ...]] = (Settled,)


@attrs.frozen
class NeedsNeedsSettled(Clip):
    follows: ClassVar[tuple[type[mq.Pass], ...]] = (NeedsSettled, mq.PackPass)


@attrs.frozen
class First(Clip):
    follows: ClassVar[tuple[type[mq.Pass], ...]] = ()
    before: ClassVar[tuple[type[mq.Pass], ...]] = (mq.SkipSelectionPass,)


@attrs.frozen
class BehindPacking(Clip):
    after: ClassVar[tuple[type[mq.Pass], ...]] = (mq.PackPass,)

    def run(self, context: mq.QuantContext) -> None:
        """Weights are packed by now."""


@attrs.frozen
class Circular(Clip):
    before: ClassVar[tuple[type[mq.Pass], ...]] = (mq.SkipSelectionPass,)


def kinds(*arguments: Any) -> list[str]:
    return [type(pass_).__name__ for pass_ in pipeline_for(*arguments)]


@pytest.mark.parametrize(
    ("pass_", "expected"),
    [
        (KeepLast(), ["SkipSelectionPass", "KeepLast", "Int4PackPass"]),
        (First(), ["First", "SkipSelectionPass", "Int4PackPass"]),
        (BehindPacking(), ["SkipSelectionPass", "Int4PackPass", "BehindPacking"]),
        (mq.SkipSelectionPass(), ["SkipSelectionPass", "Int4PackPass"]),
        (mq.HalfCastPass(), ["SkipSelectionPass", "HalfCastPass"]),
        (mq.ValidationPass(), ["SkipSelectionPass", "Int4PackPass", "ValidationPass"]),
        (mq.AccuracyWarningPass(), ["SkipSelectionPass", "Int4PackPass", "AccuracyWarningPass"]),
        (mq.BudgetPass(), ["SkipSelectionPass", "CalibrationPass", "BudgetPass", "Int4PackPass"]),
        (mq.Int8PackPass(activations="static"), ["SkipSelectionPass", "CalibrationPass", "Int8PackPass"]),
        (mq.CalibrationPass([1]), ["SkipSelectionPass", "CalibrationPass", "Int4PackPass"]),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, mq.Pass) else "",
)
def test_the_pipeline_is_the_shortest_that_is_declared(pass_: mq.Pass, expected: list[str]) -> None:
    """What it follows, what that follows, and packing; the Quantizer takes it."""
    pipeline = pipeline_for(pass_, (), batches())
    assert [type(one).__name__ for one in pipeline] == expected
    assert sum(one is pass_ for one in pipeline) == 1
    mq.Quantizer(pipeline)


def test_passes_that_are_given_are_used() -> None:
    """They take the place of what would be built, in the order that all agree with."""
    packing, settled = mq.Int8PackPass(), Settled(3)
    pipeline = pipeline_for(NeedsNeedsSettled(), [packing, settled])
    assert [type(one).__name__ for one in pipeline] == [
        "SkipSelectionPass",
        "Int8PackPass",
        "Settled",
        "NeedsSettled",
        "NeedsNeedsSettled",
    ]
    assert pipeline[1] is packing
    assert pipeline[2] is settled
    assert kinds(Clip(), [mq.ValidationPass()]) == ["SkipSelectionPass", "Int4PackPass", "ValidationPass", "Clip"]


def test_what_cannot_be_built_is_asked_for() -> None:
    """Data and settings are the author's to give; a circle cannot be ordered at all."""
    with pytest.raises(mq.ConfigError, match=r"BudgetPass follows CalibrationPass: give calibration_data="):
        assert_pass(mq.BudgetPass(), model())
    with pytest.raises(mq.ConfigError, match=r"NeedsSettled follows Settled, .* give passes=\[Settled\(\.\.\.\)\]"):
        assert_pass(NeedsSettled(), model())
    with pytest.raises(mq.ConfigError, match="each want to stand before another: correct follows"):
        assert_pass(Circular(), model())


def test_calibration_data_reaches_the_pass() -> None:
    """A pass that follows CalibrationPass has statistics to work with."""
    result = assert_pass(mq.BudgetPass(), model(), calibration_data=batches(), findings=["not-weighed"])
    assert result.report.tradeoff is not None


def test_rules_of_a_registry_take_part() -> None:
    """As in a run with plugins."""
    registry = mq.Registry(skip_rules=[mq.Registered(mq.TypeRule(nn.Embedding), mq.Origin("example", "1"))])
    assert_pass(Clip(), model(), skipped={"0": "type is Embedding"}, registry=registry)
