"""Skip rules: reasons, combinations, dead entries, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import monoquant as mq
from monoquant.rule_answers import ask, ask_target, ask_unmatched
from monoquant.testing.strategies import layers, skip_rules

ORIGIN = mq.Origin("example", "2.0")


def linear(name: str, *ancestors: mq.Ancestor, **fields: Any) -> mq.Layer:
    return mq.Layer(name, nn.Linear, (64, 32), ancestors=ancestors, **fields)


def skipped(rule: mq.SkipRule, candidates: list[mq.Layer]) -> list[int]:
    return [index for index, layer in enumerate(candidates) if rule.reason(layer) is not None]


class FancyLinear(nn.Linear):
    """A subclass, as adapters have them."""


def test_type_rules_count_subclasses() -> None:
    """A subclass of a named type is skipped, and the reason says which relation holds."""
    rule = mq.TypeRule(nn.Linear)
    assert rule.reason(linear("a")) == "type is Linear"
    assert rule.reason(mq.Layer("a", FancyLinear, (4, 4))) == "type FancyLinear is a Linear"
    assert mq.TypeRule(FancyLinear).reason(linear("a")) is None


def test_type_rules_cover_what_a_container_holds() -> None:
    """A layer inside a module of a named type is skipped, at any depth and below a subclass too."""
    inside = linear(
        "enc.0.q", mq.Ancestor("", nn.Module), mq.Ancestor("enc", FancyLinear), mq.Ancestor("enc.0", nn.Module)
    )
    assert mq.TypeRule(nn.Linear).reason(attrs.evolve(inside, type=nn.Conv2d)) == "inside 'enc', a Linear"
    assert mq.TypeRule(nn.ModuleList).reason(inside) is None


def test_a_root_of_a_named_type_is_called_the_root() -> None:
    """The root's empty name is not shown as an empty pair of quotes."""
    layer = linear("0", mq.Ancestor("", nn.Sequential))
    assert mq.TypeRule(nn.Sequential).reason(layer) == "inside 'the root', a Sequential"


def test_name_rules_tell_the_entry() -> None:
    """The reason quotes the entry that matched, the first one if several do."""
    rule = mq.NameRule("other", "q_proj", "attn")
    assert rule.reason(linear("attn.q_proj")) == "name matches 'q_proj'"
    assert rule.reason(linear("attn.k_proj")) == "name matches 'attn'"
    assert rule.reason(linear("mlp.up")) is None


def test_name_rules_try_every_name_of_a_shared_module() -> None:
    """A module used twice is skipped under either name."""
    shared = linear("first", aliases=("second",))
    assert mq.NameRule("second").reason(shared) is not None
    assert mq.NameRule("third").reason(shared) is None


@pytest.mark.parametrize(("parameters", "reason"), [(511, "511 parameters, fewer than 512"), (512, None), (513, None)])
def test_thresholds_are_strict(parameters: int, reason: str | None) -> None:
    """Exactly the threshold is enough to be quantized."""
    assert mq.ThresholdRule(512).reason(linear("a", parameters=parameters)) == reason


@settings(deadline=None)
@given(layers())
def test_a_threshold_of_zero_skips_nothing(layer: mq.Layer) -> None:
    """No layer has fewer than zero parameters."""
    assert mq.ThresholdRule(0).reason(layer) is None


@settings(deadline=None)
@given(skip_rules(), skip_rules(), st.lists(layers(), max_size=5))
def test_rules_commute(first: mq.SkipRule, second: mq.SkipRule, candidates: list[mq.Layer]) -> None:
    """The order around ``|`` and ``&`` changes neither the rule nor any of its words."""
    for one, other in ((first | second, second | first), (first & second, second & first)):
        assert one == other
        assert hash(one) == hash(other)
        assert repr(one) == repr(other)
        assert [one.reason(layer) for layer in candidates] == [other.reason(layer) for layer in candidates]
        assert one.unmatched(candidates) == other.unmatched(candidates)


@settings(deadline=None)
@given(skip_rules(), skip_rules(), st.lists(layers(), max_size=8))
def test_combinations_are_those_of_sets(first: mq.SkipRule, second: mq.SkipRule, candidates: list[mq.Layer]) -> None:
    """``|`` skips the union, ``&`` the intersection, ``~`` the rest."""
    one, other = set(skipped(first, candidates)), set(skipped(second, candidates))
    assert set(skipped(first | second, candidates)) == one | other
    assert set(skipped(first & second, candidates)) == one & other
    assert set(skipped(~first, candidates)) == set(range(len(candidates))) - one


@settings(deadline=None)
@given(skip_rules(), skip_rules(), st.lists(layers(), max_size=8))
def test_de_morgan(first: mq.SkipRule, second: mq.SkipRule, candidates: list[mq.Layer]) -> None:
    """Turning a combination around is combining what was turned around."""
    assert skipped(~(first | second), candidates) == skipped(~first & ~second, candidates)
    assert skipped(~(first & second), candidates) == skipped(~first | ~second, candidates)
    assert skipped(~~first, candidates) == skipped(first, candidates)


@settings(deadline=None)
@given(skip_rules(), layers())
def test_reasons_are_text_or_none(rule: mq.SkipRule, layer: mq.Layer) -> None:
    """No combination ever answers with an empty text, a bool or a list."""
    reason = rule.reason(layer)
    assert reason is None or (isinstance(reason, str) and reason.strip())


def test_reasons_of_combinations_name_every_part() -> None:
    """A reader sees all reasons of ``|`` that hold, both of ``&``, and what ``~`` turned around."""
    name, size = mq.NameRule("a"), mq.ThresholdRule(5000)
    layer = linear("a")
    assert (name | size).reason(layer) == "name matches 'a'; 2048 parameters, fewer than 5000"
    assert (name & size).reason(layer) == "name matches 'a' and 2048 parameters, fewer than 5000"
    assert (name | mq.NameRule("b")).reason(layer) == "name matches 'a'"
    assert (~mq.NameRule("b")).reason(layer) == "not selected by NameRule('b')"


def test_the_same_reason_is_given_once() -> None:
    """Two rules with one reason give it once, equal rules or not."""
    rule = mq.NameRule("a")
    for other in (mq.NameRule("a"), mq.NameRule("a", "b")):
        assert (rule | other).reason(linear("a")) == rule.reason(linear("a"))


def test_rules_read_as_they_are_written() -> None:
    """The text of a rule, as reports show it, is the code that makes it."""
    rule = mq.TypeRule(nn.LayerNorm) | mq.NameRule("*.gate", "*.router") & ~mq.ThresholdRule(512)
    assert repr(rule) == "((NameRule('*.gate', '*.router') & ~ThresholdRule(512)) | TypeRule(LayerNorm))"


@dataclasses.dataclass
class WordRule(mq.SkipRule):
    """A rule as people write their first one: mutable, and so without a hash."""

    word: str

    def reason(self, layer: mq.Layer) -> str | None:
        return self.word if self.word in layer.name else None


class PlainRule(mq.SkipRule):
    """A rule without attrs or dataclasses, and without a repr of its own."""

    def __init__(self, word: str) -> None:
        self.word = word

    def reason(self, layer: mq.Layer) -> str | None:
        return f"holds {self.word}" if self.word in layer.name else None


def test_rules_without_a_hash_combine() -> None:
    """A rule need not be hashable to be combined."""
    assert (WordRule("x") | mq.NameRule("y")).reason(linear("x")) == "x"
    assert (WordRule("x") & WordRule("y")).reason(linear("xy")) == "x and y"


def test_rules_without_a_repr_commute() -> None:
    """The reasons of two rules of one class do not depend on their order either."""
    first, second = PlainRule("a"), PlainRule("b")
    assert (first | second).reason(linear("ab")) == (second | first).reason(linear("ab"))
    assert (first & second).reason(linear("ab")) == (second & first).reason(linear("ab"))


def test_dead_names_come_with_the_nearest_real_ones() -> None:
    """Each entry that matches nothing is told on its own, with proposals where there are some."""
    candidates = [linear("model.attn.q_proj"), linear("lm_head")]
    assert mq.NameRule("lm_head", "atn", "xyzzy").unmatched(candidates) == ["'atn' (nearest: 'attn')", "'xyzzy'"]


def test_dead_types_are_told_one_by_one() -> None:
    """Of several types, only those that no layer and no container has are dead."""
    candidates = [linear("0.a", mq.Ancestor("", nn.Module), mq.Ancestor("0", nn.ModuleList))]
    rule = mq.TypeRule(nn.Linear, nn.Conv2d, nn.ModuleList, nn.LSTM)
    assert rule.unmatched(candidates) == ["Conv2d", "LSTM"]


def test_dead_parts_of_combinations_are_told() -> None:
    """A dead entry inside ``|``, ``&`` or ``~`` is as dead as outside."""
    candidates = [linear("a"), linear("b")]
    for rule in (mq.NameRule("a") | mq.NameRule("zzz"), mq.NameRule("a") & mq.NameRule("zzz"), ~mq.NameRule("zzz")):
        assert rule.unmatched(candidates) == ["'zzz'"]


def test_an_intersection_of_living_parts_can_be_dead() -> None:
    """Two rules that match, but never the same layer, are told as one."""
    rule = mq.NameRule("a") & mq.NameRule("b")
    assert rule.unmatched([linear("a"), linear("b")]) == ["(NameRule('a') & NameRule('b'))"]
    assert rule.unmatched([linear("a.b")]) == []


def test_rules_of_others_are_dead_when_they_never_answer() -> None:
    """A rule that defines only ``reason`` is told by its text."""
    assert PlainRule("a").unmatched([linear("b")]) == [repr(PlainRule("a"))]
    assert PlainRule("a").unmatched([linear("b"), linear("a")]) == []


@settings(deadline=None)
@given(skip_rules(), st.lists(layers(), max_size=5))
def test_a_rule_that_skips_nothing_has_dead_parts(rule: mq.SkipRule, candidates: list[mq.Layer]) -> None:
    """No rule is without effect and without a word about it."""
    assume(not skipped(rule, candidates))
    assert rule.unmatched(candidates)


@pytest.mark.parametrize("types", [(), (int,), ("Linear",), (nn.Linear(1, 1),), (nn.Linear, None)])
def test_type_rules_take_module_classes_only(types: tuple[Any, ...]) -> None:
    """Nothing, another class, a name or an instance is refused with an example."""
    with pytest.raises(mq.ConfigError, match=r"give one or more module classes, such as TypeRule\(nn.Embedding\)"):
        mq.TypeRule(*types)


@pytest.mark.parametrize("entries", [(), (3,), (None,), ("a", ""), ("re:(",)])
def test_name_rules_take_names_only(entries: tuple[Any, ...]) -> None:
    """Nothing, another kind of value or a malformed entry is refused."""
    with pytest.raises(mq.ConfigError):
        mq.NameRule(*entries)


@pytest.mark.parametrize("threshold", [-1, 1.5, True, None, "512"])
def test_thresholds_are_whole_numbers(threshold: Any) -> None:
    """Anything but a whole number from 0 up is refused by the option's name."""
    with pytest.raises(mq.ConfigError, match=r"skip_param_threshold=.*>= 0"):
        mq.ThresholdRule(threshold)


@pytest.mark.parametrize("other", [3, "lm_head", None, mq.TypeRule, nn.Linear])
@pytest.mark.parametrize(
    "combine", [lambda rule, other: rule | other, lambda rule, other: rule & other, lambda _, other: mq.NotRule(other)]
)
def test_only_rules_combine(combine: Callable[[Any, Any], Any], other: Any) -> None:
    """Combining a rule with something else, a rule's class included, is refused at once."""
    with pytest.raises(mq.ConfigError, match="is not a SkipRule instance"):
        combine(mq.NameRule("a"), other)


def test_rules_are_frozen() -> None:
    """No rule changes after it was built."""
    for rule in (mq.TypeRule(nn.Linear), mq.NameRule("a"), mq.ThresholdRule(1), mq.NameRule("a") | mq.NameRule("b")):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(rule, attrs.fields(type(rule))[0].name, ())


def test_skip_rule_is_abstract() -> None:
    """A rule without a ``reason`` cannot be built."""
    with pytest.raises(TypeError, match="reason"):
        mq.SkipRule()  # type: ignore[abstract]


def test_defaults_are_the_documented_ones_and_read_only() -> None:
    """Keys and values of DEFAULT_INT4_SKIP are a promise, and nobody can set them."""
    assert dict(mq.DEFAULT_INT4_SKIP) == {
        "skip_types": (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d),
        "skip_param_threshold": 512,
        "skip_names": ["lm_head"],
    }
    with pytest.raises(TypeError):
        mq.DEFAULT_INT4_SKIP["skip_param_threshold"] = 0  # type: ignore[index]


class AnswerRule(mq.SkipRule):
    """A rule with a fixed answer, right or wrong."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def reason(self, layer: mq.Layer) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize("answer", [None, "too small"])
def test_asking_passes_answers_on(answer: str | None) -> None:
    """A reason or None is returned as it is."""
    assert ask(AnswerRule(answer), linear("a"), ORIGIN) == answer


@pytest.mark.parametrize("answer", [True, False, "", 0, ["a"]])
def test_asking_refuses_other_answers(answer: Any) -> None:
    """The error names the rule, its plugin and version, the layer and the two right answers."""
    with pytest.raises(
        mq.PluginError, match=r"AnswerRule.* of example 2\.0 answered .*'a'.*non-empty str.*None"
    ) as caught:
        ask(AnswerRule(answer), linear("a"), ORIGIN)
    assert caught.value.layers == ("a",)


def test_asking_keeps_a_rules_own_exception() -> None:
    """The exception keeps its type and gains a note: which rule, whose, about which layer."""
    with pytest.raises(ZeroDivisionError) as caught:
        ask(AnswerRule(ZeroDivisionError()), linear("a"), ORIGIN)
    assert any("AnswerRule" in note and "example 2.0" in note and "'a'" in note for note in caught.value.__notes__)


class EvasiveRule(mq.SkipRule):
    """A rule whose other answers are wrong, or exceptions."""

    def __init__(self, target: Any = None, unmatched: Any = ()) -> None:
        self._target, self._unmatched = target, unmatched

    def reason(self, layer: mq.Layer) -> str | None:
        return "because"

    def target(self, layer: mq.Layer) -> str | None:
        return _raised_or_returned(self._target)

    def unmatched(self, layers: Sequence[mq.Layer]) -> list[str]:
        return _raised_or_returned(self._unmatched)


def _raised_or_returned(value: Any) -> Any:
    if isinstance(value, Exception):
        raise value
    return value


def test_asking_for_a_target_names_who_answers_wrongly() -> None:
    """A word that is no target is an error; an exception gains a note."""
    assert ask_target(EvasiveRule("int8"), linear("a"), ORIGIN) == "int8"
    with pytest.raises(mq.PluginError, match=r"EvasiveRule.* of example 2\.0 wants layer 'a' reduced to 'int3'"):
        ask_target(EvasiveRule("int3"), linear("a"), ORIGIN)
    with pytest.raises(KeyError) as caught:
        ask_target(EvasiveRule(KeyError("lost")), linear("a"), ORIGIN)
    assert any("of example 2.0, asked what to reduce layer 'a' to" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("answer", [None, "a", ("a",), [3]])
def test_asking_what_matched_nothing_names_who_answers_wrongly(answer: Any) -> None:
    """Anything but a list of texts is an error; an exception gains a note."""
    assert ask_unmatched(EvasiveRule(unmatched=["gate"]), [linear("a")], ORIGIN) == ["gate"]
    with pytest.raises(mq.PluginError, match=r"of example 2\.0 says that .* matched no layer: return a list of str"):
        ask_unmatched(EvasiveRule(unmatched=answer), [linear("a")], ORIGIN)
    with pytest.raises(KeyError) as caught:
        ask_unmatched(EvasiveRule(unmatched=KeyError("lost")), [linear("a")], ORIGIN)
    assert any("of example 2.0, asked which of its entries match" in note for note in caught.value.__notes__)


def test_combinations_are_flat() -> None:
    """How a combination was bracketed does not matter, for equality and for the order of reasons."""
    a, b, c = mq.NameRule("a"), mq.ThresholdRule(9), mq.TypeRule(nn.Linear)
    assert (a | b) | c == a | (b | c)
    assert (a & b) & c == a & (b & c)
    assert len((a | (b & c)).rules) == 2
