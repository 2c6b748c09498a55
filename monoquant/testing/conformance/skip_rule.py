"""The contract of skip rules."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar

import attrs
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from monoquant.errors import quoted
from monoquant.passes.half_cast import HalfCastPass
from monoquant.passes.int4_pack import Int4PackPass
from monoquant.passes.int8_pack import Int8PackPass
from monoquant.passes.skip_selection import SkipSelectionPass
from monoquant.quantizer import Quantizer
from monoquant.rules import NameRule, SkipRule
from monoquant.source import inventory
from monoquant.testing import zoo
from monoquant.testing.conformance.base import Conformance, check_is_frozen, check_repr, require
from monoquant.testing.strategies.layers import layers
from monoquant.values import HALF_DTYPES, TARGETS, Action, Layer

_A_TEXT_OR_NONE = "return a reason for a person (a non-empty str) to skip the layer, or None to leave it to others"
_PURE = "compute the answer from the layer and the rule's settings alone; keep nothing between questions"


class SkipRuleConformance(Conformance):
    """Tests every skip rule must pass.

    Example::

        class TestRouterRule(SkipRuleConformance):
            rule = RouterRule()
            skips = (Layer("mlp.router", nn.Linear, (8, 64)),)
            keeps = (Layer("mlp.up", nn.Linear, (256, 64)),)

    Attributes:
        rule: The rule to test.
        skips: Layers that it must have a reason for; default none.
        keeps: Layers that it must leave to others; default none.
        layers: Strategy of the layers that it is asked about besides these; default: all kinds of layers.
    """

    rule: SkipRule
    skips: ClassVar[Sequence[Layer]] = ()
    keeps: ClassVar[Sequence[Layer]] = ()
    layers: ClassVar[SearchStrategy[Layer]] = layers()

    def test_it_is_a_frozen_value(self) -> None:
        """Its settings cannot be exchanged, and it can be hashed: combining rules compares them."""
        rule = self._rule
        check_is_frozen(rule, "the rule")
        require(
            rule == rule and hash(rule) == hash(rule),
            f"the rule {rule!r} does not equal itself.",
            "define __eq__ and __hash__ by its settings, or decorate its class with @attrs.frozen",
        )

    def test_it_prints_in_one_line(self) -> None:
        """Plans and reports show the rule that decided."""
        rule = self._rule
        check_repr(rule, "the rule")

    def test_it_answers_with_a_reason_or_none(self) -> None:
        """For any layer, the root and those of unknown kinds among them, the answer is a non-empty text or None."""
        rule = self._rule

        @self.for_all(self._layers())
        def answers(layer: Layer) -> None:
            try:
                answer = rule.reason(layer)
            except Exception as error:
                raise AssertionError(
                    f"the rule {rule!r} raised {error!r} for layer {layer!r}: it is asked about every layer.\n"
                    "To repair it: return None for layers that it does not know"
                ) from error
            told = answer is None or (isinstance(answer, str) and bool(answer.strip()))
            require(told, f"the rule {rule!r} answered {answer!r} for layer {layer!r}.", _A_TEXT_OR_NONE)

    def test_it_skips_and_keeps_what_it_should(self) -> None:
        """The author's own layers are answered as the author says."""
        rule = self._rule
        kept = [layer.name for layer in self.skips if rule.reason(layer) is None]
        skipped = [layer.name for layer in self.keeps if rule.reason(layer) is not None]
        require(not kept, f"the rule {rule!r} has no reason for {quoted(kept)}, which 'skips' lists.", "correct one")
        require(not skipped, f"the rule {rule!r} skips {quoted(skipped)}, which 'keeps' lists.", "correct one")

    def test_it_answers_the_same_again(self) -> None:
        """Neither what was asked before nor which object the layer is changes an answer, and asking changes nothing."""
        rule = self._rule

        @self.for_all(st.lists(self._layers(), min_size=1, max_size=6))
        def answers(asked: list[Layer]) -> None:
            before = _state(rule)
            first = [rule.reason(layer) for layer in asked]
            again = [rule.reason(copy.copy(layer)) for layer in reversed(asked)][::-1]
            for layer, one, other in zip(asked, first, again, strict=True):
                broken = f"the rule {rule!r} answered {one!r}, then {other!r} for layer {layer!r}."
                require(one == other, broken, _PURE)
            # What was not there before may be an answer that functools.cached_property keeps.
            kept = {name: text for name, text in _state(rule).items() if name in before}
            require(kept == before, f"asking the rule {rule!r} changed it.", _PURE)

    def test_it_reduces_to_what_there_is(self) -> None:
        """What the layers it matches are reduced to is None, for float, or one of the known targets."""
        rule = self._rule

        @self.for_all(self._layers())
        def targets(layer: Layer) -> None:
            if rule.reason(layer) is not None:
                target = rule.target(layer)
                known = ", ".join(map(repr, TARGETS))
                broken = f"the rule {rule!r} wants layer {layer.name!r} reduced to {target!r}."
                require(target is None or target in TARGETS, broken, f"give skip_to as one of {known}, or None")

    def test_it_combines(self) -> None:
        """Joined by ``|`` and ``&``, and turned around by ``~``, it skips the union, what both skip, and the rest."""
        rule, other = self._rule, NameRule("lm_head", "*.v_proj", "layers.1", "0")
        require(rule | other == other | rule, f"{rule!r} | rule is not rule | {rule!r}.", "leave __or__ as it is")
        require(rule & other == other & rule, f"{rule!r} & rule is not rule & {rule!r}.", "leave __and__ as it is")

        @self.for_all(self._layers())
        def combines(layer: Layer) -> None:
            one, two = rule.reason(layer) is not None, other.reason(layer) is not None
            found = [(combined.reason(layer) is not None) for combined in (rule | other, rule & other, ~rule, ~~rule)]
            expected = [one or two, one and two, not one, one]
            broken = f"|, &, ~ and ~~ of {rule!r} skip layer {layer.name!r}: {found}, expected {expected}."
            require(found == expected, broken, f"leave the operators as SkipRule has them, and {_A_TEXT_OR_NONE}")

    def test_it_tells_when_it_matched_nothing(self) -> None:
        """``unmatched`` lists the parts that matched no layer; a rule without effect is never silent."""
        rule = self._rule

        @self.for_all(st.lists(self._layers(), min_size=1, max_size=6))
        def tells(asked: list[Layer]) -> None:
            dead = rule.unmatched(asked)
            texts = isinstance(dead, list) and all(isinstance(text, str) and text for text in dead)
            remedy = "return a list of texts, one for each dead part, or leave unmatched() as it is"
            require(texts, f"unmatched() of the rule {rule!r} answered {dead!r}.", remedy)
            silent = not dead and all(rule.reason(layer) is None for layer in asked)
            broken = f"the rule {rule!r} matched none of {quoted(layer.name for layer in asked)}, and does not say so."
            require(not silent, broken, remedy)

    def test_the_plan_follows_it(self) -> None:
        """In the plan of a model without weights, what it has a reason for is skipped or reduced less."""
        rule = self._rule
        half = [HalfCastPass(dtype) for dtype in HALF_DTYPES]
        quantizer = Quantizer([SkipSelectionPass(rule), Int4PackPass(group_size=32), Int8PackPass(), *half])
        for name in ("TransformerEncoder", "Conv2d in groups", "experts", "Embedding"):
            model = zoo.specimen(name).build().to("meta")
            plan = {decision.layer: decision for decision in quantizer.plan(model)}
            for layer in inventory(model):
                reason, decision = rule.reason(layer), plan[layer.name]
                followed = reason is None or decision.action is Action.SKIP or decision.rule == repr(rule)
                broken = f"the rule {rule!r} has a reason for layer {layer.name!r} of {name}, and it is: {decision}."
                require(followed, broken, _PURE)

    @property
    def _rule(self) -> SkipRule:
        rule: SkipRule = self.subject("rule", SkipRule)
        return rule

    def _layers(self) -> SearchStrategy[Layer]:
        own = (*self.skips, *self.keeps)
        return st.sampled_from(own) | self.layers if own else self.layers


def _state(rule: SkipRule) -> dict[str, str]:
    kind: type = type(rule)
    names = [field.name for field in attrs.fields(kind)] if attrs.has(kind) else []
    return {name: repr(getattr(rule, name)) for name in [*names, *getattr(rule, "__dict__", ())]}
