"""What each line of a recipe did to a model's layers, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from monoquant.recipes.entry_rules import EntryRule, SelectRule, keys_of, rules_of
from monoquant.recipes.recipe import Recipe
from monoquant.rules import INT4_SKIP_NAMES, INT4_SKIP_THRESHOLD, INT4_SKIP_TYPES
from monoquant.values import BUILT_IN, CALLER, Action, Decision, Layer

_NAMED = 3


@attrs.frozen
class RecipeLine:
    """A line of a recipe, or a default, and what became of it.

    Args:
        says: The line, as it might stand in the recipe.
        effect: What it did.
        layers: Names of the layers it decided on; empty for lines about other things.
        idle: Whether it is about layers and decided on none.
    """

    says: str
    effect: str
    layers: tuple[str, ...] = ()
    idle: bool = False

    def __str__(self) -> str:
        return f"{self.says}\n    {self.effect}"


@attrs.frozen
class RecipeExplanation:
    """What each line of a recipe did; ``print`` it.

    Args:
        lines: In the order in which they are asked, then what is no line about layers.
    """

    lines: tuple[RecipeLine, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {"lines": [{**attrs.asdict(line), "layers": list(line.layers)} for line in self.lines]}

    def __str__(self) -> str:
        return "\n".join(map(str, self.lines))


def explain(recipe: Recipe, layers: Sequence[Layer], decisions: Sequence[Decision]) -> RecipeExplanation:
    """Tell what each line did.

    Args:
        recipe: The recipe.
        layers: All layers of the model.
        decisions: The plan that the recipe made.
    """
    about_layers = [
        _scheme(recipe, decisions),
        *(_rule(rule, layers, decisions) for rule in rules_of(recipe)),
        *_defaults(recipe, decisions),
        *_others(decisions),
    ]
    return RecipeExplanation((*about_layers, *_rest(recipe)))


def _scheme(recipe: Recipe, decisions: Sequence[Decision]) -> RecipeLine:
    main = [one for one in decisions if one.scheme is not None and one.rule is None]
    kinds = dict.fromkeys(str(one.scheme) for one in main)
    names = tuple(one.layer for one in main)
    says = f"[scheme] {keys_of(recipe.scheme)}".rstrip()
    effect = f"to {' or '.join(kinds)}: {_counted(names)}" if main else "no layer is reduced to this"
    return RecipeLine(says, effect, names, idle=not main)


def _rule(rule: EntryRule | SelectRule, layers: Sequence[Layer], decisions: Sequence[Decision]) -> RecipeLine:
    own = [one for one in decisions if one.rule == repr(rule) and one.origin == CALLER]
    names = tuple(one.layer for one in own)
    dead = rule.dead_names(layers)
    if isinstance(rule, SelectRule):
        chosen = [layer.name for layer in layers if rule.reason(layer) is None]
        effect = f"selected: {_counted(chosen)}; kept in float: {_counted(names)}"
        return RecipeLine(repr(rule), _with_dead(effect, dead), names, idle=not chosen)
    if own:
        return RecipeLine(repr(rule), _with_dead(_outcome(own), dead), names)
    fitting = [layer.name for layer in layers if rule.reason(layer) is not None]
    if fitting:
        effect = f"decided on nothing; what fits was decided on by other lines: {_counted(fitting)}"
        return RecipeLine(repr(rule), _with_dead(effect, dead), idle=True)
    return RecipeLine(repr(rule), _with_dead("matched no layer", dead), idle=True)


def _with_dead(effect: str, dead: Sequence[str]) -> str:
    return f"{effect}; no layer matches {', '.join(dead)}" if dead else effect


def _outcome(decisions: Sequence[Decision]) -> str:
    kept = [one.layer for one in decisions if one.scheme is None]
    parts = [f"kept in float: {_counted(kept)}"] if kept else []
    for scheme in dict.fromkeys(str(one.scheme) for one in decisions if one.scheme is not None):
        parts.append(f"to {scheme}: {_counted([one.layer for one in decisions if str(one.scheme) == scheme])}")
    return "; ".join(parts)


def _counted(names: Sequence[str]) -> str:
    listed = ", ".join(name or "(root)" for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    count = f"{len(names)} layer{'' if len(names) == 1 else 's'}"
    return f"{count} ({listed}{more})" if names else count


def _defaults(recipe: Recipe, decisions: Sequence[Decision]) -> list[RecipeLine]:
    if recipe.scheme.target != "int4":
        return []
    kept = recipe.skip_defaults
    types = ", ".join(kind.__name__ for kind in INT4_SKIP_TYPES)
    defaults = [
        ("names", kept.names, "NameRule(", f"names: {', '.join(INT4_SKIP_NAMES)}"),
        ("types", kept.types, "TypeRule(", f"types: {types}"),
        ("smaller_than", kept.smaller_than, "ThresholdRule(", f"fewer than {INT4_SKIP_THRESHOLD} parameters"),
    ]
    lines = []
    for key, active, rule, what in defaults:
        own = [one for one in decisions if one.origin == BUILT_IN and (one.rule or "").startswith(rule)]
        names = tuple(one.layer for one in own)
        says = f"[skip_defaults] {key} = {str(active).lower()} ({what})"
        effect = (_outcome(own) or "decided on nothing") if active else "turned off"
        lines.append(RecipeLine(says, effect, names, idle=active and not names))
    return lines


def _others(decisions: Sequence[Decision]) -> list[RecipeLine]:
    lines = []
    plugins = [one for one in decisions if one.rule is not None and one.origin not in (BUILT_IN, CALLER)]
    for origin in dict.fromkeys(one.origin for one in plugins):
        own = [one for one in plugins if one.origin == origin]
        lines.append(RecipeLine(f"plugin {origin}", _outcome(own), tuple(one.layer for one in own)))
    odd = [one for one in decisions if one.action is Action.UNSUPPORTED]
    if odd:
        names = tuple(one.layer for one in odd)
        lines.append(RecipeLine("no line of the recipe", f"cannot be packed, kept in float: {_counted(names)}", names))
    return lines


_EFFECTS = {
    "calibration": "codes are fitted to it, and layer outputs measured on it, when quantizing",
    "compare": "the whole model's answers are compared on it, when quantizing",
    "validation": "what is measured and checked, when quantizing",
    "gate": "judged when quantizing",
    "plugins": "who takes part",
    "output": "how the result is written",
}


def _rest(recipe: Recipe) -> list[RecipeLine]:
    tables = {name: getattr(recipe, name) for name in _EFFECTS}
    said = {name: keys_of(table) for name, table in tables.items() if table is not None}
    return [RecipeLine(f"[{name}] {keys}", _EFFECTS[name]) for name, keys in said.items() if keys]
