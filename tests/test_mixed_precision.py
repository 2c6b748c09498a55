"""Rules that reduce a layer less instead of not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import monoquant as mq
from monoquant.container import write_container
from monoquant.recipes import Recipe, plan_recipe
from monoquant.rules import most_careful
from monoquant.values import TARGETS


class Tied(nn.Module):
    """An embedding whose table is the head, two Linears and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 32)
        self.up = nn.Linear(32, 64)
        self.down = nn.Linear(64, 32)
        self.norm = nn.LayerNorm(32)
        self.lm_head = nn.Linear(32, 60, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.lm_head(self.norm(self.down(torch.relu(self.up(x)))))


def schemes(model: nn.Module | None = None, **options: Any) -> dict[str, str]:
    result = mq.quantize(model or Tied(), accuracy_warning="ignore", **options)
    return {record.layer: str(record.scheme).split()[0] for record in result.report.layers}


def test_each_rule_has_its_own_target() -> None:
    """This rule's layers INT8, those bfloat16, these float, the rest INT4."""
    rules = [mq.NameRule("up", skip_to="int8"), mq.TypeRule(nn.Embedding, skip_to="bfloat16"), mq.NameRule("norm")]
    model = nn.ModuleDict({"up": nn.Linear(32, 32), "e": nn.Embedding(40, 32), "rest": nn.Linear(32, 32)})
    assert schemes(model, rules=rules) == {"up": "int8", "e": "bfloat16", "rest": "int4"}


def test_skip_to_applies_to_the_options_and_their_defaults() -> None:
    """What cannot be reduced that way stays in float by the same rule, and says why not."""
    result = mq.quantize(Tied(), skip_to="int8", accuracy_warning="ignore")
    records = {record.layer: record for record in result.report.layers}
    assert {name: str(record.scheme).split()[0] for name, record in records.items()} == {
        "embed": "int8",
        "up": "int4",
        "down": "int4",
        "norm": "None",
        "lm_head": "int8",
    }
    assert records["norm"].action is mq.Action.SKIP
    assert records["norm"].reason == "type is LayerNorm; not to int8, because LayerNorm has no weight matrix"
    assert records["lm_head"].rule == "NameRule('lm_head', skip_to='int8')"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_scale_dtype_that_is_given_is_that_of_all_scales(dtype: torch.dtype, tmp_path: Path) -> None:
    """In memory, of a file, and in a plan; the default of INT8 is its own."""
    result = mq.quantize(Tied(), skip_to="int8", scale_dtype=dtype, accuracy_warning="ignore")
    write_container(tmp_path / "float.safetensors", {f"{name}.weight": torch.randn(64, 64) for name in "ab"}, {})
    options = {"skip_to": "int8", "skip_layer_names": ["b"], "scale_dtype": dtype, "accuracy_warning": "ignore"}
    of_file = mq.quantize_file(tmp_path / "float.safetensors", tmp_path / "small.safetensors", **options)
    name = str(dtype).removeprefix("torch.")
    plan = plan_recipe(Recipe.from_toml(f'[scheme]\nscale_dtype = "{name}"\n[skip_defaults]\nto = "int8"\n'), Tied())
    for records in (result.report.layers, of_file.layers, plan.decisions):
        found = {one.scheme.bits: one.scheme.scale_dtype for one in records if isinstance(one.scheme, mq.Scheme)}
        assert found == {4: dtype, 8: dtype}
    assert result.model.lm_head.packed_weight.scale.dtype == dtype
    assert mq.quantize(Tied(), skip_to="int8", accuracy_warning="ignore").model.lm_head.packed_weight.scale.dtype == (
        torch.float32
    )


def test_tied_layers_get_one_target_and_one_copy() -> None:
    """The rule names the head only; the embedding that is tied to it follows."""
    result = mq.quantize(
        Tied(),
        rules=[mq.NameRule("lm_head", skip_to="int8")],
        skip_layer_types=[nn.LayerNorm],
        modules_to_not_convert=[],
        accuracy_warning="ignore",
    )
    model = result.model
    assert model.embed.packed_weight is model.lm_head.packed_weight
    assert "tied to 'lm_head'" in next(record.reason for record in result.report.layers if record.layer == "embed")


def test_of_two_targets_for_one_weight_the_more_careful_wins() -> None:
    """One copy cannot be both."""
    rules = [mq.NameRule("lm_head", skip_to="int8"), mq.NameRule("embed", skip_to="float16")]
    found = schemes(rules=rules, skip_layer_types=[], modules_to_not_convert=[])
    assert (found["embed"], found["lm_head"]) == ("float16", "float16")


def test_a_tied_layer_that_stays_float_keeps_the_other_in_float() -> None:
    """Although a rule would have it in INT8."""
    rules = [mq.NameRule("lm_head", skip_to="int8"), mq.NameRule("embed")]
    found = schemes(rules=rules, skip_layer_types=[], modules_to_not_convert=[])
    assert (found["embed"], found["lm_head"]) == ("None", "None")


@given(st.lists(st.sampled_from((None, *TARGETS)), min_size=1, max_size=4))
def test_combined_rules_keep_most_of_a_layer(targets: list[str | None]) -> None:
    """Float before 16 bits before 8, in any order of the rules."""
    rule: mq.SkipRule = mq.AnyRule([mq.NameRule("up", skip_to=target) for target in targets])
    layer = mq.Layer("up", nn.Linear, (4, 4))
    assert rule.target(layer) == most_careful(targets)
    assert mq.AllRule([mq.NameRule("up", skip_to=target) for target in targets]).target(layer) == most_careful(targets)
    order = [None, "bfloat16", "float16", "int8"]
    assert order.index(most_careful(targets)) == min(map(order.index, targets))


def test_a_rule_that_does_not_match_has_no_say() -> None:
    """Only the reasons that apply decide."""
    rule = mq.NameRule("other") | mq.NameRule("up", skip_to="int8")
    assert rule.target(mq.Layer("up", nn.Linear, (4, 4))) == "int8"


def test_a_rule_turned_around_has_a_target_of_its_own() -> None:
    """``~NameRule("up", skip_to=...)`` is about other layers than the rule in it."""
    assert (~mq.NameRule("up", skip_to="int8")).target(mq.Layer("down", nn.Linear, (4, 4))) is None
    rule = mq.NotRule(mq.NameRule("up"), skip_to="int8")
    assert rule.target(mq.Layer("down", nn.Linear, (4, 4))) == "int8"
    assert repr(rule) == "NotRule(NameRule('up'), skip_to='int8')"


@pytest.mark.parametrize(
    ("rule", "shown"),
    [
        (mq.NameRule("a", "b", skip_to="int8"), "NameRule('a', 'b', skip_to='int8')"),
        (mq.TypeRule(nn.Linear, skip_to="float16"), "TypeRule(Linear, skip_to='float16')"),
        (mq.ThresholdRule(5, skip_to="bfloat16"), "ThresholdRule(5, skip_to='bfloat16')"),
    ],
)
def test_rules_show_their_target(rule: mq.SkipRule, shown: str) -> None:
    """In reports and errors."""
    assert repr(rule) == shown


def test_rules_with_other_targets_are_other_rules() -> None:
    """So that a combination keeps both."""
    assert mq.NameRule("a", skip_to="int8") != mq.NameRule("a")


@pytest.mark.parametrize(
    "build", [lambda to: mq.NameRule("a", skip_to=to), lambda to: mq.TypeRule(nn.Linear, skip_to=to)]
)
@pytest.mark.parametrize("to", ["int4", "int7", 8])
def test_unknown_targets_are_refused(build: Any, to: Any) -> None:
    """When the rule is built, with what is allowed."""
    with pytest.raises(mq.ConfigError, match="give one of 'int8', 'float16', 'bfloat16', or None"):
        build(to)


def test_a_rule_of_ones_own_has_a_target_too() -> None:
    """As a class attribute, or decided for each layer."""

    class WideRule(mq.SkipRule):
        skip_to = "int8"

        def reason(self, layer: mq.Layer) -> str | None:
            return "wide" if layer.shape[0] == 64 else None

    assert schemes(rules=[WideRule()])["up"] == "int8"


def test_a_wrong_target_of_a_rule_is_an_error_that_names_it() -> None:
    """Never a layer that stays float without a word."""

    class WrongRule(mq.SkipRule):
        skip_to = "int3"

        def reason(self, layer: mq.Layer) -> str | None:
            return "so"

    with pytest.raises(mq.PluginError, match=r"WrongRule\(\) of caller wants layer 'embed' reduced to 'int3'"):
        mq.quantize(Tied(), rules=[WrongRule()])


def test_a_pipeline_without_the_pass_leaves_the_layer_in_float_and_says_so() -> None:
    """The rule stays the reason; the pass that is missing is named."""
    steps = [
        mq.SkipSelectionPass(mq.NameRule("up", skip_to="int8") | mq.NameRule("embed", "lm_head")),
        mq.Int4PackPass(),
    ]
    decisions = {decision.layer: decision for decision in mq.Quantizer(steps).plan(Tied())}
    assert decisions["up"].action is mq.Action.SKIP
    assert decisions["up"].reason == "name matches 'up'; not to int8, because no pass of this pipeline packs int8"


def test_the_first_packing_pass_takes_what_no_rule_sends_elsewhere() -> None:
    """In any order of the others."""
    rules = mq.SkipSelectionPass([mq.NameRule("up", skip_to="int8"), mq.NameRule("embed", "lm_head")])
    for first, second in ((mq.Int4PackPass(), mq.Int8PackPass()), (mq.HalfCastPass(), mq.Int8PackPass())):
        decisions = {one.layer: one for one in mq.Quantizer([rules, first, second]).plan(Tied())}
        assert decisions["up"].scheme == second.scheme
        assert decisions["down"].scheme == first.scheme


def test_mixed_results_are_saved_and_loaded(tmp_path: Any) -> None:
    """Each layer in its own representation, and the report tells the mixture."""
    result = mq.quantize(
        Tied(), skip_to="int8", rules=[mq.NameRule("up", skip_to="float16")], accuracy_warning="ignore"
    )
    assert "layers: 2 int8 per-channel symmetric float32, 1 float16, 1 int4 g128 asymmetric float16" in str(
        result.report
    )
    mq.save(result, tmp_path / "mixed.safetensors")
    loaded, tokens = mq.load(tmp_path / "mixed.safetensors", Tied()), torch.arange(12).view(2, 6)
    assert torch.equal(loaded(tokens), result.model(tokens))
    assert attrs.asdict(mq.load_report(tmp_path / "mixed.safetensors")) == attrs.asdict(result.report)
