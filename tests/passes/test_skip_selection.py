"""SkipSelectionPass: rules in order, options with their defaults, dead entries, replaced defaults."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import monoquant as mq
from monoquant.source import inventory
from monoquant.testing.strategies import skip_rules
from monoquant.values import BUILT_IN, CALLER

PLUGIN = mq.Origin("example", "2.0")


class Model(nn.Module):
    """A layer for each default rule, and two that none of them keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 32)
        self.layers = nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 32)])
        self.tiny = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(1024)
        self.lm_head = nn.Linear(32, 40)


LINEARS = {"layers.0", "layers.1"}
EVERYTHING = LINEARS | {"embed", "tiny", "norm", "lm_head"}


def planned(skips: mq.SkipSelectionPass, registry: mq.Registry | None = None) -> mq.QuantContext:
    """Run the plan phase of one pass on the model."""
    model = Model()
    context = mq.QuantContext(model, mq.Scheme(), inventory(model), registry or mq.Registry())
    skips.plan(context)
    return context


def kept(**options: Any) -> set[str]:
    """Names of the layers that the options keep in float."""
    return set(planned(mq.SkipSelectionPass.from_options(**options)).plan)


def findings(skips: mq.SkipSelectionPass, code: str, registry: mq.Registry | None = None) -> list[mq.Finding]:
    return [finding for finding in planned(skips, registry).findings if finding.code == code]


def test_the_defaults_keep_embeddings_norms_the_head_and_small_layers() -> None:
    """Without options exactly the layers that DEFAULT_INT4_SKIP describes stay in float."""
    assert kept() == EVERYTHING - LINEARS


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"modules_to_not_convert": []}, {"embed", "norm", "tiny"}),
        ({"modules_to_not_convert": ()}, {"embed", "norm", "tiny"}),
        ({"modules_to_not_convert": ["layers.0"]}, {"embed", "norm", "tiny", "layers.0"}),
        ({"modules_to_not_convert": "layers"}, {"embed", "norm", "tiny", "layers.0", "layers.1"}),
        ({"skip_layer_types": []}, {"lm_head", "tiny"}),
        ({"skip_layer_types": ()}, {"lm_head", "tiny"}),
        ({"skip_layer_types": [nn.LayerNorm]}, {"norm", "lm_head", "tiny"}),
        ({"skip_layer_types": nn.Linear}, {"lm_head", "tiny", "layers.0", "layers.1"}),
        ({"skip_layer_names": []}, {"embed", "norm", "lm_head", "tiny"}),
        ({"skip_layer_names": ["layers.1"]}, {"embed", "norm", "lm_head", "tiny", "layers.1"}),
        ({"skip_layer_names": iter(["layers.1"])}, {"embed", "norm", "lm_head", "tiny", "layers.1"}),
        ({"skip_param_threshold": 0}, {"embed", "norm", "lm_head"}),
        ({"skip_param_threshold": 1057}, {"embed", "norm", "lm_head", "tiny", "layers.0", "layers.1"}),
        ({"skip_param_threshold": 1056}, {"embed", "norm", "lm_head", "tiny"}),
    ],
)
def test_an_explicit_option_replaces_its_own_default_only(options: dict[str, Any], expected: set[str]) -> None:
    """Empty lists and zero count as explicit; the other three options keep their defaults."""
    assert kept(**options) == expected


@pytest.mark.parametrize(
    "option", ["modules_to_not_convert", "skip_layer_types", "skip_layer_names", "skip_param_threshold"]
)
def test_none_means_the_default_of_its_option(option: str) -> None:
    """Passing None is the same as not passing the option."""
    assert mq.SkipSelectionPass.from_options(**{option: None}) == mq.SkipSelectionPass.from_options()


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({}, set()),
        ({"modules_to_not_convert": [], "skip_layer_types": (), "skip_param_threshold": 0}, set()),
        ({"modules_to_not_convert": ["layers.0"]}, {"layers.0"}),
        ({"skip_layer_types": [nn.ModuleList]}, LINEARS),
        ({"skip_param_threshold": 1}, set()),
        ({"skip_param_threshold": 2000}, LINEARS),
    ],
)
def test_explicit_options_can_add_to_the_defaults(options: dict[str, Any], more: set[str]) -> None:
    """With add_default_skips nothing that is kept by default is lost, and nothing is reported as replaced."""
    skips = mq.SkipSelectionPass.from_options(**options, add_default_skips=True)
    context = planned(skips)
    assert set(context.plan) == EVERYTHING - LINEARS | more
    assert skips.replaced_defaults == ()
    assert not [finding for finding in context.findings if finding.code == "default-replaced"]


def test_extra_rules_join_the_options() -> None:
    """Rules of one's own are asked beside the options, as the caller's."""
    rule = mq.NameRule("layers.0")
    context = planned(mq.SkipSelectionPass.from_options(extra_rules=[rule]))
    assert context.plan["layers.0"] == mq.Decision(
        "layers.0", mq.Action.SKIP, "name matches 'layers.0'", repr(rule), CALLER
    )
    assert set(context.plan) == EVERYTHING - {"layers.1"}


def test_decisions_say_whether_a_default_or_the_caller_decided() -> None:
    """The origin tells a reader whom to ask: the caller's own entry, or a default of monoquant."""
    plan = planned(mq.SkipSelectionPass.from_options(skip_layer_names=["layers.0"])).plan
    assert plan["layers.0"].origin == CALLER
    assert plan["embed"].origin == plan["lm_head"].origin == plan["tiny"].origin == BUILT_IN
    assert plan["embed"].reason == "type is Embedding"
    assert plan["tiny"].reason == "72 parameters, fewer than 512"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"modules_to_not_convert": 3}, "layer names"),
        ({"modules_to_not_convert": [3]}, "must be a string"),
        ({"modules_to_not_convert": [""]}, "empty component"),
        ({"skip_layer_names": 3.5}, "layer names"),
        ({"skip_layer_names": ["re:("]}, "regular expression"),
        ({"skip_layer_types": "Embedding"}, "module classes"),
        ({"skip_layer_types": ["Embedding"]}, "module classes"),
        ({"skip_layer_types": 3}, "module classes"),
        ({"skip_layer_types": [int]}, "module classes"),
        ({"skip_layer_types": nn.Linear(1, 1)}, "module classes"),
        ({"skip_param_threshold": -1}, "skip_param_threshold=-1"),
        ({"skip_param_threshold": 1.5}, r"skip_param_threshold=1\.5"),
        ({"skip_param_threshold": False}, "skip_param_threshold=False"),
        ({"on_unmatched": "warn"}, "on_unmatched='warn'"),
        ({"on_unmatched": None}, "on_unmatched=None"),
        ({"extra_rules": ["lm_head"]}, "'lm_head' is not a SkipRule instance"),
        ({"extra_rules": [mq.TypeRule]}, "is not a SkipRule instance"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], text: str) -> None:
    """Each option names what is wrong, before any model is looked at."""
    with pytest.raises(mq.ConfigError, match=text):
        mq.SkipSelectionPass.from_options(**options)


@pytest.mark.parametrize("rules", [None, 3, "lm_head", ["lm_head"], mq.TypeRule, [mq.TypeRule], nn.Linear])
def test_wrong_rules_are_refused(rules: Any) -> None:
    """The pass takes a rule or a list of rules; anything else, a rule's class included, is refused."""
    with pytest.raises(mq.ConfigError, match="rule"):
        mq.SkipSelectionPass(rules)


def test_one_rule_or_several_are_the_same() -> None:
    """A single rule needs no list around it, and without rules the pass keeps nothing."""
    rule = mq.NameRule("embed")
    assert mq.SkipSelectionPass(rule) == mq.SkipSelectionPass([rule]) == mq.SkipSelectionPass((rule,))
    assert planned(mq.SkipSelectionPass()).plan == {}


def test_the_first_rule_that_answers_decides() -> None:
    """The caller's rules are asked in their order, plugins' rules after them."""
    registry = mq.Registry(skip_rules=(mq.Registered(mq.TypeRule(nn.Linear), PLUGIN),))
    skips = mq.SkipSelectionPass([mq.NameRule("layers.0"), mq.NameRule("layers")])
    plan = planned(skips, registry).plan
    assert plan["layers.0"].reason == "name matches 'layers.0'"
    assert plan["layers.1"].reason == "name matches 'layers'"
    assert plan["layers.1"].origin == CALLER
    assert (plan["tiny"].reason, plan["tiny"].origin) == ("type is Linear", PLUGIN)


def test_layers_that_are_decided_are_not_asked_about() -> None:
    """An earlier pass's answer stands."""
    model = Model()
    context = mq.QuantContext(model, mq.Scheme(), inventory(model), mq.Registry())
    earlier = mq.Decision("embed", mq.Action.UNSUPPORTED, "said so")
    context.decide(earlier)
    mq.SkipSelectionPass(mq.NameRule("embed", "norm")).plan(context)
    assert context.plan["embed"] == earlier
    assert context.plan["norm"].action is mq.Action.SKIP


@settings(deadline=None, max_examples=30)
@given(st.lists(skip_rules(), max_size=3))
def test_the_pass_skips_what_any_rule_skips(rules: list[mq.SkipRule]) -> None:
    """A list of rules keeps, or reduces less, the layers that their union matches, with the first reason."""
    context = planned(mq.SkipSelectionPass(rules))
    for layer in context.layers:
        reasons = [reason for rule in rules if (reason := rule.reason(layer)) is not None]
        answer = context.plan.get(layer.name) or context.targets.get(layer.name)
        assert (answer.reason if answer else None) == (reasons[0] if reasons else None)


def test_a_dead_entry_is_reported_with_the_nearest_names() -> None:
    """A typo is a warning that quotes the entry and proposes what was meant."""
    skips = mq.SkipSelectionPass.from_options(skip_layer_names=["layer.0", "layers.1"])
    [finding] = findings(skips, "rule-unmatched")[:1]
    assert finding.severity is mq.Severity.WARNING
    assert finding.origin == CALLER
    assert finding.message.startswith("Warning: skip rule 'layer.0' (nearest: 'layers.0'")
    assert finding.message.endswith("matched no layer.")
    assert finding.remedy


def test_every_dead_entry_reaches_the_person() -> None:
    """Two typos are two texts in ``info.warnings``."""
    skips = mq.SkipSelectionPass.from_options(skip_layer_names=["foo", "bar"])
    quantizer = mq.Quantizer([skips, mq.Int4PackPass(), mq.AccuracyWarningPass(on_failure="ignore")])
    told = quantizer.run(Model()).info.warnings
    assert [sum(repr(entry) in text for text in told) for entry in ("foo", "bar")] == [1, 1]
    assert not [text for text in told if "None" in text]


def test_dead_entries_can_be_an_error() -> None:
    """With on_unmatched='error' all dead entries of the caller stop the run together."""
    skips = mq.SkipSelectionPass.from_options(skip_layer_names=["layer.0", "xyzzy", "embed"], on_unmatched="error")
    with pytest.raises(mq.InputError, match=r"'layer\.0' .*'layers\.0'.*'xyzzy'; correct or remove them") as caught:
        planned(skips)
    assert "embed" not in str(caught.value)


def test_defaults_and_plugins_are_never_an_error() -> None:
    """A model without an lm_head or a router is not the caller's mistake: told as INFO, with its origin."""
    registry = mq.Registry(skip_rules=(mq.Registered(mq.NameRule("router"), PLUGIN),))
    skips = mq.SkipSelectionPass.from_options(on_unmatched="error")
    found = findings(skips, "rule-unmatched", registry)
    assert {finding.origin for finding in found} == {BUILT_IN, PLUGIN}
    assert {finding.severity for finding in found} == {mq.Severity.INFO}
    assert next("'router'" in finding.message for finding in found if finding.origin == PLUGIN)


def test_living_rules_are_not_reported() -> None:
    """When every entry matches something there is no such finding."""
    assert findings(mq.SkipSelectionPass(mq.NameRule("embed") | mq.TypeRule(nn.Linear)), "rule-unmatched") == []


@pytest.mark.parametrize("option", ["modules_to_not_convert", "skip_layer_types", "skip_layer_names"])
def test_an_option_that_is_turned_off_is_no_dead_rule(option: str) -> None:
    """Empty lists and a threshold of zero ask for nothing, so nothing of theirs can be unmatched."""
    skips = mq.SkipSelectionPass.from_options(**{option: [], "skip_param_threshold": 0})
    assert [finding for finding in findings(skips, "rule-unmatched") if finding.origin == CALLER] == []


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({"modules_to_not_convert": []}, ["lm_head"]),
        ({"skip_param_threshold": 0}, ["tiny"]),
        ({"modules_to_not_convert": ["layers.0"], "skip_param_threshold": 0}, ["lm_head", "tiny"]),
        ({"modules_to_not_convert": ["layers.0", "lm_head"]}, []),
        ({"modules_to_not_convert": [], "skip_layer_names": ["lm_head"]}, []),
        ({"skip_layer_names": ["layers.0"]}, []),
        ({}, []),
    ],
)
def test_lost_protection_is_reported(options: dict[str, Any], layers: list[str]) -> None:
    """A layer that a default would have kept, and now nothing does, is told with the way to keep it."""
    skips = mq.SkipSelectionPass.from_options(**options)
    report = mq.Quantizer([skips, mq.Int4PackPass()]).run(Model()).report
    found = [finding for finding in report.findings if finding.code == "default-replaced"]
    assert sorted(str(finding.layer) for finding in found) == layers
    assert all(finding.severity is mq.Severity.INFO and "add_default_skips" in finding.remedy for finding in found)


def test_no_protection_is_lost_where_float_is_the_only_way() -> None:
    """Embeddings and norms cannot be packed, so that replacing their default must not be told as if they were."""
    skips = mq.SkipSelectionPass.from_options(skip_layer_types=[nn.Conv2d])
    report = mq.Quantizer([skips, mq.Int4PackPass()]).run(Model()).report
    quantized = {record.layer for record in report.by_action(mq.Action.QUANTIZE)}
    told = {finding.layer for finding in report.findings if finding.code == "default-replaced"}
    assert told <= quantized


def test_the_pass_is_frozen_and_reusable() -> None:
    """One pass plans two models, and two runs give one plan."""
    skips = mq.SkipSelectionPass.from_options()
    assert planned(skips).plan == planned(skips).plan
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        skips.rules = ()  # type: ignore[misc]


def stack() -> nn.Module:
    shared = nn.Linear(4, 4)
    return nn.ModuleDict(
        {
            "layers": nn.ModuleList([nn.Linear(4, 4) for _ in range(11)]),
            "encoder": nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.LayerNorm(4))),
            "first": shared,
            "second": shared,
        }
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, set()),
        ({"modules_to_not_convert": None, "skip_layer_types": None, "skip_layer_names": None}, set()),
        ({"modules_to_not_convert": [], "skip_layer_types": [], "skip_layer_names": []}, set()),
        ({"modules_to_not_convert": ["layers.1"]}, {"layers.1"}),
        ({"modules_to_not_convert": ["encoder"]}, {"encoder.0", "encoder.1.0"}),
        ({"skip_layer_types": nn.Sequential}, {"encoder.0", "encoder.1.0"}),
        ({"skip_layer_types": (nn.LayerNorm,)}, {"encoder.1.0"}),
        ({"skip_layer_names": "encoder.0"}, {"encoder.0"}),
        ({"skip_layer_names": ["second"]}, {"first"}),
        ({"skip_layer_names": ["first", "second"]}, {"first"}),
        ({"skip_param_threshold": 9}, {"encoder.1.0"}),
        ({"skip_param_threshold": 8}, set()),
        ({"skip_param_threshold": None}, set()),
        ({"modules_to_not_convert": ["layers.10"], "skip_layer_types": [nn.LayerNorm]}, {"layers.10", "encoder.1.0"}),
    ],
)
def test_get_layers_to_skip(options: dict[str, Any], expected: set[str]) -> None:
    """Containers cover what they hold, shared modules appear under their first name, and None means none."""
    assert mq.get_layers_to_skip(stack(), **options) == expected


@pytest.mark.parametrize(
    "options", [{"skip_layer_types": "Linear"}, {"skip_layer_names": 3}, {"skip_param_threshold": -1}]
)
def test_get_layers_to_skip_refuses_wrong_options(options: dict[str, Any]) -> None:
    """The same words get the same refusals as in the pass."""
    with pytest.raises(mq.ConfigError):
        mq.get_layers_to_skip(stack(), **options)


class FailingRule(mq.SkipRule):
    """A rule that fails when it is asked about one layer."""

    def reason(self, layer: mq.Layer) -> str | None:
        if layer.name == "tiny":
            raise ZeroDivisionError("no shape")
        return None


@pytest.mark.parametrize("rules", [[FailingRule()], FailingRule() | mq.NameRule("embed")])
def test_a_raising_rule_is_named_with_its_layer(rules: mq.SkipRule | Iterable[mq.SkipRule]) -> None:
    """A rule's own exception keeps its type, and its notes tell rule, layer and pass."""
    quantizer = mq.Quantizer([mq.SkipSelectionPass(rules), mq.Int4PackPass()])
    with pytest.raises(ZeroDivisionError) as caught:
        quantizer.plan(Model())
    notes = "\n".join(caught.value.__notes__)
    assert "FailingRule" in notes
    assert "'tiny'" in notes
    assert "SkipSelectionPass" in notes


def test_an_idle_threshold_is_no_mistake() -> None:
    """That no layer is smaller than a limit is told, but is neither a warning nor an error."""
    skips = mq.SkipSelectionPass(mq.ThresholdRule(1), on_unmatched="error")
    found = findings(skips, "rule-unmatched")
    assert [(finding.severity, finding.message) for finding in found] == [
        (mq.Severity.INFO, "Skip rules that matched no layer: ThresholdRule(1).")
    ]
