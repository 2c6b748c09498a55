"""Decide which layers stay in float because a rule says so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import attrs
from torch import nn

from monoquant.context import QuantContext
from monoquant.errors import ConfigError, InputError
from monoquant.passes.base import Pass
from monoquant.registry import Registered
from monoquant.rule_answers import ask, ask_target, ask_unmatched
from monoquant.rules import (
    INT4_SKIP_NAMES,
    INT4_SKIP_THRESHOLD,
    INT4_SKIP_TYPES,
    NameRule,
    SkipRule,
    ThresholdRule,
    TypeRule,
    most_careful,
)
from monoquant.values import BUILT_IN, CALLER, Action, Decision, Finding, Layer, Origin, Severity, Target

Types = type[nn.Module] | Iterable[type[nn.Module]]
Names = str | Iterable[str]
RegisteredRule = Registered[SkipRule]


def _registered(given: Any) -> tuple[RegisteredRule, ...]:
    single = isinstance(given, (SkipRule, Registered, str, type)) or not isinstance(given, Iterable)
    members = [given] if single else list(given)
    rules = [member if isinstance(member, Registered) else Registered(member, CALLER) for member in members]
    for rule in rules:
        if not isinstance(rule.value, SkipRule):
            raise ConfigError(f"{rule.value!r} is not a SkipRule instance; give rules such as NameRule('lm_head')")
    return tuple(rules)


def _check_unmatched(_instance: Any, _attribute: Any, value: Any) -> None:
    if value not in ("report", "error"):
        raise ConfigError(f"on_unmatched={value!r}: give 'report' or 'error'")


@attrs.frozen
class SkipSelectionPass(Pass):
    """Keep layers in float by rule; rules that plugins registered are asked as well.

    Args:
        rules: A rule, or several of which any may skip a layer; default none. In a list the first one that has a reason
            decides, also on ``skip_to``; of rules joined by ``|`` the one that keeps most of the layer does.
        on_unmatched: What to do when a rule of yours, or an entry of it, matches no layer: ``"report"`` (default) it
            as a finding with the nearest real names, or raise an ``"error"``.
        replaced_defaults: Default rules that explicit options replaced; layers they would have kept are reported.
    """

    single: ClassVar[bool] = True

    rules: tuple[RegisteredRule, ...] = attrs.field(default=(), converter=_registered)
    on_unmatched: Literal["report", "error"] = attrs.field(default="report", validator=_check_unmatched)
    replaced_defaults: tuple[RegisteredRule, ...] = attrs.field(default=(), converter=_registered)

    @classmethod
    def from_options(
        cls,
        modules_to_not_convert: Names | None = None,
        skip_layer_types: Types | None = None,
        skip_layer_names: Names | None = None,
        skip_param_threshold: int | None = None,
        *,
        add_default_skips: bool = False,
        extra_rules: Iterable[SkipRule] = (),
        on_unmatched: Literal["report", "error"] = "report",
        skip_to: str | None = None,
        defaults: bool = True,
    ) -> SkipSelectionPass:
        """Build the pass from HuggingFace-style options.

        For each option None means its INT4 default; any other value, also ``[]`` or ``0``, replaces that default and
        no other.

        Args:
            modules_to_not_convert: Layer names to keep; default ``["lm_head"]``.
            skip_layer_types: Module classes to keep; default Embedding, EmbeddingBag, LayerNorm, BatchNorm1d
                and BatchNorm2d.
            skip_layer_names: Further layer names to keep; default none.
            skip_param_threshold: Keep layers with strictly fewer parameters; default 512; 0 keeps none.
            add_default_skips: True: explicit values add to the defaults instead of replacing them.
            extra_rules: Further rules.
            on_unmatched: As in the class.
            skip_to: What the layers of all these options, defaults included, are reduced to instead of staying in
                float; default None. ``extra_rules`` have their own.
            defaults: Whether there are defaults at all; False for other precisions than INT4.

        Raises:
            ConfigError: For a value of the wrong kind.
        """
        options: list[tuple[list[SkipRule], SkipRule | None]] = [
            (name_rules(modules_to_not_convert, skip_to), NameRule(*INT4_SKIP_NAMES, skip_to=skip_to)),
            (type_rules(skip_layer_types, skip_to), TypeRule(*INT4_SKIP_TYPES, skip_to=skip_to)),
            (name_rules(skip_layer_names, skip_to), None),
            (_threshold_rules(skip_param_threshold, skip_to), ThresholdRule(INT4_SKIP_THRESHOLD, skip_to)),
        ]
        given = (modules_to_not_convert, skip_layer_types, skip_layer_names, skip_param_threshold)
        rules: list[RegisteredRule] = [Registered(rule, CALLER) for rule in _listed("rules", extra_rules)]
        replaced: list[RegisteredRule] = []
        for value, (explicit, default) in zip(given, options, strict=True):
            rules += [Registered(rule, CALLER) for rule in explicit]
            if default is not None and defaults:
                kept = value is None or add_default_skips
                (rules if kept else replaced).append(Registered(default, BUILT_IN))
        return cls(rules, on_unmatched, replaced)

    def plan(self, context: QuantContext) -> None:
        asked = (*self.rules, *context.registry.skip_rules)
        for layer in context.undecided():
            found = _first_reason(asked, layer)
            if found is not None and found.to is None:
                context.decide(Decision(layer.name, Action.SKIP, found.reason, found.rule, found.origin))
            elif found is not None and found.to is not None:
                context.redirect(layer.name, Target(found.to, found.reason, found.rule, found.origin))
        _redirect_ties(context)
        self._report_unmatched(context, asked)

    def prepare(self, context: QuantContext) -> None:
        context.report([*_unprotected(self.replaced_defaults, context)])

    def _report_unmatched(self, context: QuantContext, asked: Sequence[RegisteredRule]) -> None:
        dead = [(entry, rule) for rule in asked for entry in ask_unmatched(rule.value, context.layers, rule.origin)]
        # A limit does not claim that there are layers beyond it, as a name or a class does.
        mistaken = [entry for entry, rule in dead if rule.origin == CALLER and not rule.value.is_limit]
        if mistaken and self.on_unmatched == "error":
            raise InputError(f"skip rules matched no layer: {', '.join(mistaken)}; correct or remove them")
        context.report([_mistake(entry) for entry in mistaken])
        for origin in dict.fromkeys(rule.origin for _, rule in dead):
            entries = [entry for entry, rule in dead if rule.origin == origin and entry not in mistaken]
            context.report(_idle(entries, origin))


@attrs.frozen
class _Found:
    to: str | None
    reason: str
    rule: str
    origin: Origin


def _first_reason(rules: Iterable[RegisteredRule], layer: Layer) -> _Found | None:
    for rule in rules:
        reason = ask(rule.value, layer, rule.origin)
        if reason is not None:
            to = ask_target(rule.value, layer, rule.origin)
            return _Found(to, reason, repr(rule.value), rule.origin)
    return None


def _redirect_ties(context: QuantContext) -> None:
    """Give layers that share a weight one target: the one that keeps most of it."""
    undecided = {layer.name: layer for layer in context.undecided()}
    for layer in undecided.values():
        group = [name for name in (layer.name, *layer.ties) if name in undecided]
        targets = {name: context.targets[name] for name in group if name in context.targets}
        if not targets:
            continue
        chosen = most_careful(target.to for target in targets.values())
        leader = next(name for name, target in targets.items() if target.to == chosen)
        for name in group:
            if name not in targets or targets[name].to != chosen:
                reason = f"it is tied to {leader!r}: {targets[leader].reason}"
                context.redirect(name, attrs.evolve(targets[leader], reason=reason))


def _mistake(entry: str) -> Finding:
    message = f"Warning: skip rule {entry} matched no layer."
    return Finding("rule-unmatched", Severity.WARNING, message, remedy="Correct or remove it.", origin=CALLER)


def _idle(entries: Sequence[str], origin: Origin) -> list[Finding]:
    message = f"Skip rules that matched no layer: {', '.join(entries)}."
    return [Finding("rule-unmatched", Severity.INFO, message, origin=origin)] if entries else []


def _unprotected(defaults: Iterable[RegisteredRule], context: QuantContext) -> Iterable[Finding]:
    for rule in defaults:
        for layer in context.quantized_layers():
            if rule.value.reason(layer) is not None:
                message = f"Layer {layer.name!r} is not kept in float: an option replaced the default {rule.value!r}."
                remedy = "Give add_default_skips=True to keep the defaults as well."
                yield Finding("default-replaced", Severity.INFO, message, layer.name, remedy)


def name_rules(names: Names | None, skip_to: str | None = None) -> list[SkipRule]:
    """A NameRule of an option's value; none for None or an empty list.

    Args:
        names: One name, several, or None.
        skip_to: As in SkipRule; default None.

    Raises:
        ConfigError: For anything else.
    """
    if names is None:
        return []
    entries = [names] if isinstance(names, str) else _listed("layer names", names)
    return [NameRule(*entries, skip_to=skip_to)] if entries else []


def type_rules(types: Types | None, skip_to: str | None = None) -> list[SkipRule]:
    """A TypeRule of an option's value; none for None or an empty list.

    Args:
        types: One module class, several, or None.
        skip_to: As in SkipRule; default None.

    Raises:
        ConfigError: For anything else.
    """
    if types is None:
        return []
    if isinstance(types, str):
        raise ConfigError(f"{types!r}: give module classes such as nn.Embedding, not names")
    kinds = [types] if isinstance(types, type) else _listed("module classes", types)
    return [TypeRule(*kinds, skip_to=skip_to)] if kinds else []


def _threshold_rules(threshold: int | None, skip_to: str | None) -> list[SkipRule]:
    if threshold is None:
        return []
    rule = ThresholdRule(threshold, skip_to)
    return [rule] if threshold else []


def _listed(what: str, values: Any) -> list[Any]:
    try:
        return list(values)
    except TypeError as error:
        raise ConfigError(f"{values!r}: give a list of {what}") from error
