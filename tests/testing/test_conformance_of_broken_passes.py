"""A pass that breaks its contract fails the suite, in the test of the clause it breaks, and is told the way."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant.testing import PassConformance
from monoquant.testing.zoo import Specimen

SMALL = ("Linear", "tied head")


def suite_of(given: Any, **attributes: Any) -> PassConformance:
    """The suite as an author would write it."""
    return type("TestMine", (PassConformance,), {"pass_": given, "specimens": SMALL, **attributes})()


def clauses_of(suite: Any) -> list[str]:
    return [name for name in dir(suite) if name.startswith("test_")]


@attrs.frozen
class Clips(mq.Pass):
    """A good pass, to be broken in one place each."""

    follows: ClassVar[tuple[type[mq.Pass], ...]] = (mq.SkipSelectionPass,)
    limit: float = 0.2

    def run(self, context: mq.QuantContext) -> None:
        for layer in context.quantized_layers():
            weight = context.weight(layer.name)
            context.replace_weight(layer.name, weight.clamp(-self.limit, self.limit))


@attrs.frozen
class WritesWeights(Clips):
    def run(self, context: mq.QuantContext) -> None:
        for layer in context.quantized_layers():
            context.weight(layer.name).clamp_(-self.limit, self.limit)


@attrs.frozen
class LeavesAHook(Clips):
    def run(self, context: mq.QuantContext) -> None:
        context.model.register_forward_hook(lambda *_: None)


@attrs.frozen
class LeavesTrainingOff(Clips):
    def run(self, context: mq.QuantContext) -> None:
        context.model.train()


@attrs.frozen
class CleansUpOnlyAfterSuccess(Clips):
    """Runs the model with a flag set, and does not mind that a forward may raise."""

    follows: ClassVar[tuple[type[mq.Pass], ...]] = (mq.SkipSelectionPass,)

    def run(self, context: mq.QuantContext) -> None:
        context.model.busy = True
        for _ in range(3):
            for hook in list(context.model._forward_pre_hooks.values()):
                hook(context.model, ())
        del context.model.busy


@attrs.frozen
class WritesWhilePlanning(Clips):
    def plan(self, context: mq.QuantContext) -> None:
        context.model.planned = True


@attrs.frozen
class PlansByValues(Clips):
    def plan(self, context: mq.QuantContext) -> None:
        for layer in context.undecided():
            weight = context.module(layer.name).weight
            if not weight.is_meta and weight.abs().max() > 0.3:
                context.decide(mq.Decision(layer.name, mq.Action.SKIP, "has outliers"))


@attrs.frozen
class RemembersLayers(Clips):
    seen: list[str] = attrs.field(factory=list)

    def run(self, context: mq.QuantContext) -> None:
        self.seen.extend(layer.name for layer in context.quantized_layers())


@attrs.frozen
class Random(Clips):
    def run(self, context: mq.QuantContext) -> None:
        for layer in context.quantized_layers():
            weight = context.weight(layer.name)
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(_SEEDS.pop()))
            context.replace_weight(layer.name, weight + noise)


_SEEDS = list(range(1000))


@attrs.frozen
class DrawsFromTorch(Clips):
    def run(self, context: mq.QuantContext) -> None:
        torch.rand(3)


@attrs.frozen
class NeedsCalibration(Clips):
    """Reads statistics, and does not say so."""

    def run(self, context: mq.QuantContext) -> None:
        if context.calibration is None:
            raise AssertionError("no data; To repair it: declare CalibrationPass")


@attrs.frozen
class FollowsOne(Clips):
    follows: ClassVar[Any] = mq.SkipSelectionPass


@attrs.frozen
class FollowsAField(Clips):
    follows: tuple[type[mq.Pass], ...] = (mq.SkipSelectionPass,)


@attrs.define
class Exchangeable(Clips):
    __setattr__ = object.__setattr__


@attrs.frozen
class ChangesItsMind(Clips):
    def run(self, context: mq.QuantContext) -> None:
        first = next(iter(context.quantized_layers()))
        context.plan[first.name] = mq.Decision(first.name, mq.Action.SKIP, "after all")


@attrs.frozen
class Mumbles(Clips):
    def run(self, context: mq.QuantContext) -> None:
        context.report([mq.Finding("clipped", mq.Severity.WARNING, "Some weights were clipped.")])


FROZEN, PLACE, ALONE = "test_it_is_a_frozen_value", "test_it_declares_its_place", "test_it_leaves_the_model_alone"
LATER, FORWARD = f"{ALONE}_when_a_later_pass_fails", f"{ALONE}_when_the_model_fails"
PLANS, AGAIN = "test_it_plans_without_weights", "test_it_can_be_used_again"
BROKEN: list[tuple[Any, str, str]] = [
    (WritesWeights, ALONE, r"wrote to parameter .*replace_weight"),
    (LeavesAHook, ALONE, r"the model was changed: hooks of \(root\)"),
    (DrawsFromTorch, ALONE, "torch's random state was changed"),
    (NeedsCalibration, ALONE, "no data"),
    (ChangesItsMind, ALONE, r"changed the decision on layer .*decide once, by context.decide\(\) in plan\(\)"),
    (WritesWeights, LATER, "a failed run on Linear .*values of weight.*replace_weight"),
    (LeavesTrainingOff, LATER, r"training flag of \(root\).*replace_weight"),
    (CleansUpOnlyAfterSuccess, FORWARD, r"attributes of \(root\).*'finally'"),
    (WritesWhilePlanning, PLANS, r"planning for Linear .*attributes of \(root\)"),
    (PlansByValues, PLANS, r"has outliers.*without weights.*look at values in run\(\)"),
    (RemembersLayers, AGAIN, "changed it.*never in the pass"),
    (Random, AGAIN, "another result for Linear the second time.*seed what is random"),
    (FollowsOne, PLACE, "follows of the pass .* is <class.*ClassVar"),
    (FollowsAField, PLACE, "follows of the pass .*leave the type out"),
    (Exchangeable, FROZEN, "'limit' be exchanged.*@attrs.frozen"),
    (Mumbles, "test_findings_can_be_acted_on", "WARNING without a way out.*remedy"),
    (Random, "test_in_place_gives_the_same", "another result for Linear in place"),
]


@pytest.mark.parametrize(("kind", "clause", "message"), BROKEN, ids=lambda one: getattr(one, "__name__", ""))
def test_a_broken_pass_fails_in_its_clause(kind: Any, clause: str, message: str) -> None:
    """The message says what was seen and how to repair it."""
    with pytest.raises((AssertionError, mq.PassError)) as failure:
        getattr(suite_of(kind()), clause)()
    assert re.search(message, str(failure.value), re.DOTALL), failure.value


def test_the_good_pass_that_was_broken_is_good() -> None:
    """Each of the broken ones differs from this one in one place."""
    suite = suite_of(Clips())
    for name in clauses_of(suite):
        getattr(suite, name)()


def test_every_clause_is_broken_by_one_of_them() -> None:
    """A new test of the suite needs a pass that fails it."""
    assert {clause for _, clause, _ in BROKEN} == set(clauses_of(PassConformance))


def test_an_error_of_the_pass_itself_is_not_swallowed() -> None:
    """Only what the suite raises is expected; a note tells on which model it happened."""

    @attrs.frozen
    class Raises(Clips):
        def run(self, context: mq.QuantContext) -> None:
            raise KeyError("mine")

    for clause in (ALONE, LATER, FORWARD, AGAIN, "test_in_place_gives_the_same", "test_findings_can_be_acted_on"):
        with pytest.raises(KeyError, match="mine") as caught:
            getattr(suite_of(Raises(), specimens=("GRU",)), clause)()
        assert caught.value.__notes__[-1] == "on the suite's model 'GRU'"


def test_models_of_the_author_take_part() -> None:
    """A Specimen of one's own is as good as one of the zoo."""
    asked = []

    def build() -> nn.Module:
        asked.append(1)
        return nn.Linear(32, 16)

    own = Specimen("mine", build, lambda generator: (torch.randn(3, 32, generator=generator),))
    suite_of(Clips(), specimens=(own, "GRU")).test_it_leaves_the_model_alone()
    assert asked


def test_passes_of_the_author_take_part() -> None:
    """What a pass needs besides can be given with its settings."""

    @attrs.frozen
    class NeedsRule(Clips):
        def run(self, context: mq.QuantContext) -> None:
            if context.plan["norm1"].action is not mq.Action.SKIP:
                raise KeyError("norm1")

    skip = (mq.SkipSelectionPass(mq.TypeRule(nn.LayerNorm)),)
    given = {"specimens": ("TransformerEncoderLayer",)}
    suite_of(NeedsRule(), passes=skip, **given).test_it_leaves_the_model_alone()
    with pytest.raises(KeyError, match="norm1"):
        suite_of(NeedsRule(), **given).test_it_leaves_the_model_alone()


@pytest.mark.parametrize("given", [None, Clips, "Int4PackPass"])
def test_what_is_no_pass_is_refused(given: Any) -> None:
    """Nothing, a class and a name are errors that say what to write."""
    with pytest.raises(mq.ConfigError, match="TestMine"):
        suite_of(given).test_it_is_a_frozen_value()
