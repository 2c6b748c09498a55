"""BudgetPass with layers of all kinds: tied, never called, ruled out, without gradients, with integer inputs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from tests.passes.budgets import FINE, GOALS, MODELS, Net, Tied, batches, bits_per_weight, chosen, codes, quantize


def test_rules_win_over_the_budget() -> None:
    """What a rule keeps in float or sends to INT8 is neither weighed nor counted."""
    rules = [mq.NameRule("a", skip_to="int8"), mq.NameRule("c")]
    result = quantize(rules=rules, target_bits_per_weight=16)
    assert [one.layer for one in result.report.tradeoff.layers] == ["b"]
    records = {record.layer: record for record in result.report.layers}
    assert records["a"].scheme == mq.Int8PackPass().scheme
    assert "name matches 'a'" in records["a"].reason
    assert records["b"].scheme == mq.HalfScheme(torch.float16)
    assert records["c"].action is mq.Action.SKIP


@pytest.mark.parametrize("goal", [goal for goal, _ in GOALS], ids=[next(iter(goal)) for goal, _ in GOALS])
def test_a_budget_for_no_layer_is_refused_or_does_nothing(goal: dict[str, Any]) -> None:
    """Rules may send every layer elsewhere; then there is nothing to share out."""
    try:
        result = quantize(rules=[mq.NameRule("*", skip_to="int8")], **goal)
    except mq.MonoquantError:
        return
    assert set(chosen(result).values()) == {mq.Int8PackPass().scheme}


class Unreached(nn.Module):
    """Its second layer is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.idle = nn.Linear(96, 96), nn.Linear(96, 96)

    def forward(self, x: Tensor) -> Tensor:
        return self.called(x)


@pytest.mark.parametrize("goal", [{"target_bits_per_weight": 12.0}, {"target_sqnr_db": 60}])
def test_layers_that_no_data_reached_stay_at_the_smallest(goal: dict[str, Any]) -> None:
    """Nothing is known of what they would gain; a finding names them."""
    result = quantize(Unreached(), batches(32, 96), **goal)
    (found,) = [finding for finding in result.report.findings if finding.code == "not-weighed"]
    assert (found.layer, found.severity) == ("idle", mq.Severity.INFO)
    assert found.message == "Layers 'idle' met no calibration inputs, and take the smallest representation."
    assert chosen(result)["idle"] == FINE
    assert chosen(result)["called"] == mq.HalfScheme(torch.float16)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_model_without_gradients_is_ranked_by_layer(mode: Callable[[], Any]) -> None:
    """And says so; the budget is kept all the same."""
    model = Net()
    type_ = type("Dark", (Net,), {"forward": mode()(Net.forward)})
    model.__class__ = type_
    result = quantize(model, target_bits_per_weight=6.5)
    assert result.report.tradeoff.criterion == "layer"
    assert "ranked-by-layer" in codes(result)
    assert "ranked-by-layer" not in codes(quantize(target_bits_per_weight=6.5))
    assert bits_per_weight(result.model) <= 6.5


def test_logits_are_ranked_by_divergence() -> None:
    """Where the model names them."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Net()

        def forward(self, x: Tensor) -> Any:
            return SimpleNamespace(logits=self.body(x))

    tradeoff = quantize(Head(), target_bits_per_weight=6.5).report.tradeoff
    assert tradeoff.criterion == "kl"
    assert "KL of the model's logits, nats" in str(tradeoff)


@pytest.mark.parametrize("name", ["lstm", "gru", "attention", "convolution", "tied"])
@pytest.mark.parametrize("goal", [{"target_bits_per_weight": 6.9}, {"target_sqnr_db": 24}])
def test_other_kinds_of_layers_share_a_budget(name: str, goal: dict[str, Any]) -> None:
    """Several weights in a layer, weights of several layers: bits are those of the buffers."""
    torch.manual_seed(0)
    build, data = MODELS[name]
    result = quantize(build(), data, **goal)
    found = bits_per_weight(result.model)
    assert result.report.tradeoff.bits_per_weight == pytest.approx(found, rel=1e-12)
    assert found <= goal.get("target_bits_per_weight", 16)
    assert len({str(scheme) for scheme in chosen(result).values()}) > 1 or "target_sqnr_db" in goal


def test_tied_layers_get_one_representation() -> None:
    """And one packed weight."""
    for target in (4.5, 6.0, 9.0, 14.0):
        result = quantize(Tied(), batches(32, 96), target_bits_per_weight=target)
        assert chosen(result)["first"] == chosen(result)["second"]
        assert result.model.first.packed_weight is result.model.second.packed_weight
        assert bits_per_weight(result.model) <= target


class Language(nn.Module):
    """An embedding whose table is the head's weight; the head is named first, or last."""

    def __init__(self, head_first: bool) -> None:
        super().__init__()
        embed, head = nn.Embedding(96, 64), nn.Linear(64, 96, bias=False)
        head.weight = embed.weight
        parts = {"embed": embed, "up": nn.Linear(64, 64), "out": head}
        for name in ("out", "up", "embed") if head_first else ("embed", "up", "out"):
            self.add_module(name, parts[name])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.relu(self.up(self.embed(tokens))))


TOKENS = [torch.randint(0, 96, (16, 6), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


@pytest.mark.parametrize("head_first", [False, True])
@pytest.mark.parametrize(
    "activations",
    [None, "dynamic", "static"],
)
def test_a_goal_keeps_integer_inputs_where_they_were(activations: Any, head_first: bool) -> None:
    """An embedding cannot multiply integers; a head that is tied to it can, and does without a goal."""
    plain = quantize(Language(head_first), TOKENS, bits=8, activations=activations)
    result = quantize(Language(head_first), TOKENS, bits=8, activations=activations, target_bits_per_weight=9)
    assert chosen(result) == chosen(plain)


def not_weighed(result: mq.QuantResult) -> list[mq.Finding]:
    return [finding for finding in result.report.findings if finding.code == "not-weighed"]


def left_out(message: str, layer: str) -> mq.Finding:
    return mq.Finding("not-weighed", mq.Severity.INFO, message, layer)


LOOKED_UP = left_out(
    "Layers 'embed' multiply nothing (rows are looked up): they are not weighed, and stay as planned.", "embed"
)


EVERYTHING = {"skip_layer_types": []}


class Untied(Language):
    """The same with a table of its own."""

    def __init__(self) -> None:
        super().__init__(head_first=False)
        self.out.weight = nn.Parameter(self.embed.weight.detach().flip(0))


def test_tables_that_rows_are_looked_up_in_are_not_weighed() -> None:
    """They stay as planned, a finding names them, and they count in no bits; the others share what there is."""
    result = quantize(Untied(), TOKENS, target_bits_per_weight=16, **EVERYTHING)
    assert not_weighed(result) == [LOOKED_UP]
    assert [one.layer for one in result.report.tradeoff.layers] == ["up", "out"]
    assert result.report.tradeoff.bits_per_weight == 16
    assert chosen(result) == {"embed": FINE, "up": mq.HalfScheme(torch.float16), "out": mq.HalfScheme(torch.float16)}


def test_a_model_of_nothing_but_tables_is_told_so_too() -> None:
    """There is nothing to choose, and no trade-off."""
    model = nn.Sequential(OrderedDict(embed=nn.Embedding(96, 64)))
    result = quantize(model, TOKENS, target_bits_per_weight=9, **EVERYTHING)
    assert not_weighed(result) == [LOOKED_UP]
    assert result.report.tradeoff is None
    assert chosen(result) == {"embed": FINE}


@pytest.mark.parametrize("activations", ["dynamic", "static"])
@pytest.mark.parametrize("head_first", [False, True])
def test_tied_layers_that_differ_are_not_weighed(head_first: bool, activations: Any) -> None:
    """One quantizes its inputs and the other has none; both are named, in the order of the model."""
    result = quantize(Language(head_first), TOKENS, bits=8, activations=activations, target_bits_per_weight=9)
    first, second = ("out", "embed") if head_first else ("embed", "out")
    message = f"Layers '{first}', '{second}' share a weight, and are represented in different ways"
    assert not_weighed(result) == [left_out(f"{message}: they are not weighed, and stay as planned.", first)]
    assert [one.layer for one in result.report.tradeoff.layers] == ["up"]
    assert result.model.embed.packed_weight is result.model.out.packed_weight


def test_nothing_is_collected_for_what_is_not_weighed() -> None:
    """Statistics of a head that stays as planned would fill memory for nobody."""
    found: list[str] = []

    class Peek(mq.Pass):
        def run(self, context: mq.QuantContext) -> None:
            found.extend(layer for layer, _ in context.wanted_moments)

    goal, pack = mq.BudgetPass(target_bits_per_weight=9), mq.Int8PackPass(activations="dynamic")
    steps = [mq.SkipSelectionPass(), mq.CalibrationPass(TOKENS), goal, pack, mq.HalfCastPass(), Peek()]
    mq.Quantizer(steps).run(Language(head_first=True))
    assert found == ["up"]


def test_a_table_that_a_head_multiplies_is_weighed() -> None:
    """With the head, by what the head meets; nobody is told anything, as of a model without tables."""
    result = quantize(Language(head_first=False), TOKENS, target_bits_per_weight=16, **EVERYTHING)
    assert not_weighed(result) == []
    assert [one.layer for one in result.report.tradeoff.layers] == ["embed", "out", "up"]
    assert set(chosen(result).values()) == {mq.HalfScheme(torch.float16)}
    assert not_weighed(quantize(target_bits_per_weight=6)) == []


@pytest.mark.parametrize("activations", [None, "dynamic", "static"])
def test_int8_is_shared_out_between_eight_bits_and_sixteen(activations: Any) -> None:
    """Layers that stay INT8 multiply integers as they would without a goal."""
    result = quantize(bits=8, activations=activations, target_bits_per_weight=11)
    assert bits_per_weight(result.model) <= 11
    assert {scheme.target for scheme in chosen(result).values()} == {"int8", "float16"}
    for scheme in chosen(result).values():
        assert scheme.target == "float16" or scheme.activations == activations


def test_sixteen_bits_leave_nothing_to_share_out() -> None:
    """Sixteen suffice, less is refused."""
    assert {scheme.target for scheme in chosen(quantize(bits=16, target_bits_per_weight=16)).values()} == {"float16"}
    with pytest.raises(mq.InputError, match=r"smallest representation takes, which is 16\.000"):
        quantize(bits=16, target_bits_per_weight=8)
