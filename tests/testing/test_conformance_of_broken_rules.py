"""A rule that breaks its contract fails the suite, in the test of the clause it breaks, with what to do about it."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest
from torch import nn

import monoquant as mq
from monoquant.testing import SkipRuleConformance

HEAD = mq.Layer("lm_head", nn.Linear, (64, 64))

pytestmark = pytest.mark.usefixtures("unshrunk")


def suite_of(given: Any, **attributes: Any) -> SkipRuleConformance:
    """The suite as an author would write it."""
    return type("TestMine", (SkipRuleConformance,), {"rule": given, **attributes})()


def clauses_of(suite: Any) -> list[str]:
    return [name for name in dir(suite) if name.startswith("test_")]


class AllLinear(mq.SkipRule):
    """A good rule, to be broken in one place each."""

    def reason(self, layer: mq.Layer) -> str | None:
        return "is a Linear" if issubclass(layer.type, nn.Linear) else None


class Empty(AllLinear):
    def reason(self, layer: mq.Layer) -> Any:
        return ""


class Bool(AllLinear):
    def reason(self, layer: mq.Layer) -> Any:
        return layer.name == "lm_head"


class Raises(AllLinear):
    def reason(self, layer: mq.Layer) -> str | None:
        return layer.name.split(".")[1] or None


class Random(AllLinear):
    def reason(self, layer: mq.Layer) -> str | None:
        return random.choice(["heads", "tails"])  # noqa: S311 - that it is random is the point


class Remembers(AllLinear):
    def __init__(self) -> None:
        self._seen: list[str] = []

    def reason(self, layer: mq.Layer) -> str | None:
        self._seen.append(layer.name)
        return None


@attrs.define(eq=False)
class Exchangeable(AllLinear):
    prefix: str = "mlp"


class PlainSettings(AllLinear):
    def __init__(self) -> None:
        self.prefix = "mlp"


@attrs.frozen
class Unhashable(AllLinear):
    names: list[str] = attrs.field(factory=list)


class Address(AllLinear):
    __repr__ = object.__repr__


class Lines(AllLinear):
    def __repr__(self) -> str:
        return "All\nLinear"


class ToInt3(AllLinear):
    skip_to = "int3"


class SilentWhenIdle(AllLinear):
    def unmatched(self, layers: Sequence[mq.Layer]) -> list[str]:
        return []


class UnmatchedLayers(AllLinear):
    def unmatched(self, layers: Sequence[mq.Layer]) -> Any:
        return None


class OrKeepsLeft(AllLinear):
    def __or__(self, other: mq.SkipRule) -> mq.SkipRule:
        return self


class Selfish(AllLinear):
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return False


class OnlyOnCpu(AllLinear):
    """Depends on what it was asked before."""

    def __init__(self) -> None:
        object.__setattr__(self, "asked", [])

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)

    def reason(self, layer: mq.Layer) -> str | None:
        self.asked.append(layer)
        return "is a Linear" if len(self.asked) % 2 else None


BROKEN = [
    (Empty, "test_it_answers_with_a_reason_or_none", "answered ''.*non-empty str"),
    (Bool, "test_it_answers_with_a_reason_or_none", "answered (True|False).*None to leave it"),
    (Raises, "test_it_answers_with_a_reason_or_none", "raised IndexError.*return None for layers"),
    (Random, "test_it_answers_the_same_again", "answered '(heads|tails)', then.*keep nothing"),
    (Remembers, "test_it_answers_the_same_again", "changed it.*keep nothing between questions"),
    (OnlyOnCpu, "test_it_answers_the_same_again", "then.*keep nothing between questions"),
    (Exchangeable, "test_it_is_a_frozen_value", "lets 'prefix' be exchanged.*@attrs.frozen"),
    (PlainSettings, "test_it_is_a_frozen_value", "lets 'prefix' be exchanged.*@attrs.frozen"),
    (Unhashable, "test_it_is_a_frozen_value", "cannot be hashed.*tuple or frozenset"),
    (Selfish, "test_it_is_a_frozen_value", "does not equal itself.*__eq__"),
    (Address, "test_it_prints_in_one_line", "an address differs.*__repr__"),
    (Lines, "test_it_prints_in_one_line", "in one line.*__repr__"),
    (ToInt3, "test_it_reduces_to_what_there_is", "'int3'.*'int8', 'float16', 'bfloat16', or None"),
    (SilentWhenIdle, "test_it_tells_when_it_matched_nothing", "does not say so.*leave unmatched"),
    (UnmatchedLayers, "test_it_tells_when_it_matched_nothing", "answered None.*list of texts"),
    (OrKeepsLeft, "test_it_combines", r"\| rule.*leave __or__"),
]


@pytest.mark.parametrize(("kind", "clause", "message"), BROKEN, ids=lambda one: getattr(one, "__name__", ""))
def test_a_broken_rule_fails_in_its_clause(kind: Callable[[], mq.SkipRule], clause: str, message: str) -> None:
    """The message says what was seen and how to repair it."""
    with pytest.raises(AssertionError) as failure:
        getattr(suite_of(kind()), clause)()
    assert re.search(message, str(failure.value), re.DOTALL), failure.value
    assert "To repair it: " in str(failure.value)


def test_the_good_rule_that_was_broken_is_good() -> None:
    """Each of the broken ones differs from this one in one place."""
    suite = suite_of(AllLinear(), skips=(HEAD,), max_examples=5)
    for name in clauses_of(suite):
        getattr(suite, name)()


def test_a_rule_may_keep_what_it_computes_of_its_settings() -> None:
    """A pattern that is compiled when it is first needed changes no answer."""

    class Lazy(AllLinear):
        @functools.cached_property
        def pattern(self) -> re.Pattern[str]:
            return re.compile("head$")

        def reason(self, layer: mq.Layer) -> str | None:
            return "is a head" if self.pattern.search(layer.name) else None

    suite_of(Lazy()).test_it_answers_the_same_again()


def test_every_clause_is_broken_by_one_of_them() -> None:
    """A new test of the suite needs a rule that fails it."""
    others = {"test_it_skips_and_keeps_what_it_should", "test_the_plan_follows_it"}
    assert {clause for _, clause, _ in BROKEN} | others == set(clauses_of(SkipRuleConformance))


def test_what_the_author_expects_is_compared() -> None:
    """Layers that should be skipped, and those that should not, are part of the suite."""
    with pytest.raises(AssertionError, match="no reason for 'lm_head', which 'skips' lists"):
        suite_of(mq.NameRule("mlp"), skips=(HEAD,)).test_it_skips_and_keeps_what_it_should()
    with pytest.raises(AssertionError, match="skips 'lm_head', which 'keeps' lists"):
        suite_of(AllLinear(), keeps=(HEAD,)).test_it_skips_and_keeps_what_it_should()


def test_layers_of_the_author_are_asked_about() -> None:
    """A mistake that only shows on the author's layers is found."""

    class Mistaken(AllLinear):
        def reason(self, layer: mq.Layer) -> Any:
            return 3 if layer.name == "vision.tower.gate" else None

    tower = mq.Layer("vision.tower.gate", nn.Linear, (4, 4))
    suite_of(Mistaken()).test_it_answers_with_a_reason_or_none()
    with pytest.raises(AssertionError, match="answered 3 for layer"):
        suite_of(Mistaken(), skips=(tower,)).test_it_answers_with_a_reason_or_none()


def test_the_plan_is_compared_with_the_answers() -> None:
    """A rule that answers otherwise in a pipeline than it does when asked is found."""

    class Fickle(AllLinear):
        def __init__(self) -> None:
            self.calls = 0

        def reason(self, layer: mq.Layer) -> str | None:
            self.calls += 1
            return "late" if self.calls > 40 else None

    with pytest.raises(AssertionError, match=r"has a reason for layer .*, and it is: quantize"):
        suite_of(Fickle()).test_the_plan_follows_it()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, r"TestMine has nothing to test: write 'rule = MySkipRule\(\)' into the class"),
        (AllLinear, "TestMine.rule is the class AllLinear: give an instance"),
        ("lm_head", "TestMine.rule is 'lm_head': give an instance of a subclass of SkipRule"),
    ],
)
def test_what_is_no_rule_is_refused(given: Any, message: str) -> None:
    """Nothing, a class and a text are errors that say what to write."""
    suite = suite_of(given)
    for name in clauses_of(suite):
        with pytest.raises(mq.ConfigError, match=message):
            getattr(suite, name)()
