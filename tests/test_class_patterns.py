"""Classes of modules named by text."""

from __future__ import annotations

import attrs
import pytest
from torch import nn

import monoquant as mq
from monoquant.class_patterns import ClassPattern, nearest_classes


class LlamaRMSNorm(nn.Module):
    """As a library names it."""


class FancyLinear(nn.Linear):
    """A subclass."""


@pytest.mark.parametrize(
    ("entry", "kind", "matches"),
    [
        ("Linear", nn.Linear, True),
        ("Linear", FancyLinear, True),
        ("FancyLinear", nn.Linear, False),
        ("linear", nn.Linear, False),
        ("Line", nn.Linear, False),
        ("torch.nn.Linear", FancyLinear, True),
        ("torch.nn.modules.linear.Linear", FancyLinear, True),
        ("torch.nn.modules.Linear", nn.Linear, True),
        ("nn.Linear", nn.Linear, False),
        ("torch.nn.functional.Linear", nn.Linear, False),
        ("no.such.module.Linear", nn.Linear, False),
        (f"{__name__}.FancyLinear", FancyLinear, True),
        ("*RMSNorm", LlamaRMSNorm, True),
        ("*Norm*", nn.BatchNorm2d, True),
        ("Conv?d", nn.Conv2d, True),
        ("Conv[13]d", nn.Conv2d, False),
        ("Conv[!13]d", nn.Conv2d, True),
        ("Module", nn.Linear, True),
        ("object", nn.Linear, False),
        ("*", nn.Linear, True),
    ],
)
def test_a_name_means_a_class_and_its_subclasses(entry: str, kind: type, matches: bool) -> None:
    """Plain names with globs, or names behind a module that has the class or offers it."""
    assert ClassPattern(entry).matches(kind) is matches
    assert (mq.TypeNameRule(entry).reason(mq.Layer("a", kind, (2, 2))) is not None) is matches


@pytest.mark.parametrize(
    "entry", ["", "a b", "torch.nn.", ".Linear", "torch.nn.*", "torch..Linear", "9.Linear", 3, None, nn.Linear]
)
def test_what_is_no_name_is_refused(entry: object) -> None:
    with pytest.raises(mq.ConfigError, match="is no name of a class; give for example 'Embedding'"):
        mq.TypeNameRule(entry)


def test_a_rule_needs_names() -> None:
    with pytest.raises(mq.ConfigError, match=r"TypeNameRule\(\): give one or more names of classes"):
        mq.TypeNameRule()
    with pytest.raises(mq.ConfigError, match="skip_to='int2'"):
        mq.TypeNameRule("Linear", skip_to="int2")


def test_reasons_say_what_matched() -> None:
    """The class, or the module around it, which covers what it contains."""
    rule = mq.TypeNameRule("Embedding", "torch.nn.LSTM", skip_to="int8")
    inside = mq.Layer("enc.lstm.cell", nn.Linear, (2, 2), ancestors=(mq.Ancestor("enc.lstm", nn.LSTM),))
    assert rule.reason(inside) == "inside 'enc.lstm', a torch.nn.LSTM"
    assert rule.reason(attrs.evolve(inside, type=nn.Embedding)) == "type Embedding is an Embedding"
    assert (
        rule.reason(attrs.evolve(inside, ancestors=(mq.Ancestor("", nn.LSTM),))) == "inside 'the root', a torch.nn.LSTM"
    )
    assert rule.reason(attrs.evolve(inside, ancestors=())) is None
    assert rule.target(inside) == "int8"
    assert repr(rule) == "TypeNameRule('Embedding', 'torch.nn.LSTM', skip_to='int8')"
    assert mq.TypeNameRule("A", "A") == mq.TypeNameRule("A")


def test_names_that_match_nothing_are_told_with_the_nearest() -> None:
    """Of layers, of their bases, and of what contains them."""
    layers = [mq.Layer("a", FancyLinear, (2, 2), ancestors=(mq.Ancestor("", nn.Sequential),))]
    rule = mq.TypeNameRule("Linear", "Liner", "torch.nn.Sequental", "Quaternion")
    assert rule.unmatched(layers) == [
        "'Liner' (nearest: 'Linear', 'FancyLinear')",
        "'torch.nn.Sequental' (nearest: 'Sequential')",
        "'Quaternion'",
    ]
    assert nearest_classes("Modul", [nn.Linear]) == []  # every layer is a Module: no hint worth giving


def test_it_decides_like_the_rule_of_classes(small: nn.Module) -> None:
    """On a whole model, by name or by class."""
    options = {"modules_to_not_convert": [], "plugins": False, "accuracy_warning": "ignore"}
    by_class, by_name = (
        mq.quantize(small, rules=[rule], **options).report.layers
        for rule in (mq.TypeRule(nn.LayerNorm, nn.ModuleList), mq.TypeNameRule("LayerNorm", "torch.nn.ModuleList"))
    )
    assert [one.action for one in by_class] == [one.action for one in by_name]
