"""What each line of a recipe did, told."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant.recipes import Recipe, RecipeLine, plan_recipe


def net() -> nn.Module:
    """One of each kind that lines can be about."""
    layers = {
        "embed": nn.Embedding(100, 64),
        "enc": nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)),
        "gate": nn.Linear(64, 64),
        "norm": nn.LayerNorm(64),
        "lm_head": nn.Linear(64, 100),
    }
    return nn.ModuleDict(layers)


TEXT = """
[scheme]
group_size = 32
[[skip]]
names = ["gate", "mlp", "norn"]
to = "int8"
reason = "it routes"
[[skip]]
types = ["Embeding", "torch.nn.LayerNorm"]
[[skip]]
names = ["gate"]
[[skip]]
names = ["decoder"]
[select]
names = ["enc", "gate", "lm_head"]
[gate]
min_layer_sqnr_db = 12
[plugins]
installed = false
"""

EXPLAINED = """[scheme] group_size = 32
    to int4 g32 asymmetric float16: 2 layers (enc.0, enc.2)
[[skip]] 1: names = ["gate", "mlp", "norn"], to = "int8", reason = "it routes"
    to int8 per-channel symmetric float32: 1 layer (gate); no layer matches 'mlp', 'norn' (nearest: 'norm')
[[skip]] 2: types = ["Embeding", "torch.nn.LayerNorm"]
    kept in float: 1 layer (norm); no layer matches 'Embeding' (nearest: 'Embedding')
[[skip]] 3: names = ["gate"]
    decided on nothing; what fits was decided on by other lines: 1 layer (gate)
[[skip]] 4: names = ["decoder"]
    matched no layer; no layer matches 'decoder'
[select] names = ["enc", "gate", "lm_head"]
    selected: 4 layers (enc.0, enc.2, gate and 1 more); kept in float: 1 layer (embed)
[skip_defaults] names = true (names: lm_head)
    kept in float: 1 layer (lm_head)
[skip_defaults] types = true (types: Embedding, EmbeddingBag, LayerNorm, BatchNorm1d, BatchNorm2d)
    decided on nothing
[skip_defaults] smaller_than = true (fewer than 512 parameters)
    decided on nothing
[gate] min_layer_sqnr_db = 12
    judged when quantizing
[plugins] installed = false
    who takes part"""


def test_every_line_says_what_it_did() -> None:
    """Layers by name, entries that matched nothing with the nearest names, lines that came too late."""
    plan = plan_recipe(Recipe.from_toml(TEXT), net())
    assert str(plan.explanation) == EXPLAINED
    idle = [line.says.split(":")[0] for line in plan.explanation.lines if line.idle]
    assert idle[:2] == ["[[skip]] 3", "[[skip]] 4"]
    unmatched = [finding.message for finding in plan.findings if finding.severity is mq.Severity.WARNING]
    assert [text for text in unmatched if "'mlp' in [[skip]] 1 matched no layer" in text]
    stored = json.loads(json.dumps(plan.explanation.to_dict()))
    assert [line["says"] for line in stored["lines"]] == [line.says for line in plan.explanation.lines]


def test_every_layer_is_told_by_exactly_one_line() -> None:
    """Lines share the layers out among them."""
    plan = plan_recipe(Recipe.from_toml(TEXT), net())
    told = [layer for line in plan.explanation.lines for layer in line.layers]
    assert sorted(told) == sorted(decision.layer for decision in plan.decisions)
    assert "enc.0" in str(plan)


@pytest.mark.parametrize("given", ["module", "meta", "state dict"])
def test_a_plan_is_that_of_the_run(given: str) -> None:
    """No weights are needed, and quantize() decides as the plan says."""
    recipe = Recipe.from_toml(TEXT.replace("12", "1"))
    model = net()
    run = mq.quantize(model, plugins=False, accuracy_warning="ignore", rules=_rules(recipe), group_size=32).report
    expected = {record.layer: (record.action, record.scheme) for record in run.layers}
    if given == "meta":
        with torch.device("meta"):
            model = net()
    plan = plan_recipe(recipe, model.state_dict() if given == "state dict" else model)
    assert {one.layer: (one.action, one.scheme) for one in plan.decisions} == expected


def _rules(recipe: Recipe) -> list[mq.SkipRule]:
    from monoquant.recipes import quantize_options

    rules: list[mq.SkipRule] = quantize_options(recipe)["rules"]
    return rules


def test_data_stays_closed_in_a_plan() -> None:
    """What needs data can be planned without reading it; without any it is refused as in a run."""
    text = '[scheme]\nbits = 8\nactivations = "static"\n'
    plan = plan_recipe(Recipe.from_toml(f'{text}[calibration]\ndata = "no such file"'), net())
    assert "static int8 inputs" in str(plan)
    assert plan.explanation.lines[-1] == RecipeLine(
        '[calibration] data = "no such file"',
        "codes are fitted to it, and layer outputs measured on it, when quantizing",
    )
    with pytest.raises(mq.ConfigError, match="CalibrationPass"):
        plan_recipe(Recipe.from_toml(text), net())
    with pytest.raises(mq.ConfigError, match="algorithm='nothing'"):
        plan_recipe(Recipe.from_toml('[scheme]\nalgorithm = "nothing"'), net())


def test_defaults_are_told_where_there_are_any() -> None:
    """INT8 has none; those of INT4 can be turned off one by one, or reduced less."""
    lines = plan_recipe(Recipe.from_toml("[scheme]\nbits = 8"), net()).explanation.lines
    assert [line.says for line in lines] == ["[scheme] bits = 8", "no line of the recipe"]
    assert lines[1].effect == "cannot be packed, kept in float: 1 layer (norm)"
    text = '[skip_defaults]\nnames = false\nto = "int8"'
    told = {line.says.split(" (")[0]: line for line in plan_recipe(Recipe.from_toml(text), net()).explanation.lines}
    assert told["[skip_defaults] names = false"] == RecipeLine(
        "[skip_defaults] names = false (names: lm_head)", "turned off"
    )
    types = told["[skip_defaults] types = true"]
    assert types.layers == ("embed", "norm")
    assert "to int8" in types.effect


def test_plugins_and_layers_that_cannot_be_packed_are_told() -> None:
    """Lines that no recipe has: who decided instead."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(64, 64))

    class Plugin:
        @mq.hookimpl
        def monoquant_register_skip_rules(self) -> list[mq.SkipRule]:
            return [mq.NameRule("gate")]

    from monoquant.recipes.explaining import explain
    from monoquant.source import inventory

    model = net()
    model.add_module("own", Own())
    registry = mq.PluginManager([Plugin()], discover=False).registry(mq.Scheme())
    passes = [mq.SkipSelectionPass.from_options(), mq.Int4PackPass()]
    decisions = mq.Quantizer(passes, registry).plan(model)
    lines = explain(Recipe(), inventory(model), decisions).lines
    told = {line.says: line for line in lines}
    assert told["no line of the recipe"].layers == ("own",)
    assert told["plugin Plugin"].effect == "kept in float: 1 layer (gate)"


@pytest.mark.parametrize(
    ("text", "finding", "severity", "effect"),
    [
        (
            "[[skip]]\nsmaller_than = 2",
            "smaller_than = 2 in [[skip]] 1",
            mq.Severity.INFO,
            "matched no layer",
        ),
        (
            '[[skip]]\nnames = ["enc"]\ntypes = ["Embedding"]\nto = "int8"',
            'names = ["enc"], types = ["Embedding"] in [[skip]] 1',
            mq.Severity.WARNING,
            "matched no layer",
        ),
        (
            '[[skip]]\nnames = ["nothing"]',
            "'nothing' in [[skip]] 1",
            mq.Severity.WARNING,
            "matched no layer; no layer matches 'nothing'",
        ),
        (
            '[select]\nnames = ["*", "*.*"]',
            '[select] names = ["*", "*.*"] (it selects every layer)',
            mq.Severity.WARNING,
            "selected: 6 layers (embed, enc.0, enc.2 and 3 more); kept in float: 0 layers",
        ),
    ],
)
def test_a_line_that_matched_nothing_is_a_finding(text: str, finding: str, severity: mq.Severity, effect: str) -> None:
    """A warning that a gate may count; a limit that nothing is below is no mistake."""
    plan = plan_recipe(Recipe.from_toml(text), net())
    found = [one for one in plan.findings if finding in one.message]
    assert [one.severity for one in found] == [severity]
    assert plan.explanation.lines[1].effect == effect


def test_a_selection_of_nothing_is_idle() -> None:
    """All else stays float, which the plan shows before a run refuses it."""
    recipe = Recipe.from_toml('[select]\nnames = ["decoder"]')
    line = plan_recipe(recipe, net()).explanation.lines[1]
    assert line.effect.startswith("selected: 0 layers; kept in float: 6 layers")
    assert line.idle
