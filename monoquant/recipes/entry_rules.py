"""The lines of a recipe about layers, as skip rules that say which line they are."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from monoquant.recipes.allowed import shown
from monoquant.recipes.reading import plain
from monoquant.recipes.recipe import Recipe
from monoquant.recipes.tables import SelectTable, SkipEntry
from monoquant.rules import AllRule, AnyRule, NameRule, NotRule, SkipRule, ThresholdRule, TypeNameRule
from monoquant.values import Layer


@attrs.frozen(repr=False)
class EntryRule(SkipRule):
    """A ``[[skip]]`` entry.

    Args:
        number: Which one, from 1.
        entry: What it says.
        skip_to: As in SkipRule.
        rule: What its keys say of a layer, together.
    """

    number: int
    entry: SkipEntry
    skip_to: str | None = attrs.field(init=False)
    rule: SkipRule = attrs.field(init=False)

    @skip_to.default
    def _target(self) -> str | None:
        return self.entry.to

    @rule.default
    def _of_keys(self) -> SkipRule:
        rules = _rules(self.entry.names, self.entry.types)
        if self.entry.smaller_than is not None:
            rules.append(ThresholdRule(self.entry.smaller_than))
        return rules[0] if len(rules) == 1 else AllRule(rules)

    @property
    def is_limit(self) -> bool:
        return self.rule.is_limit

    def reason(self, layer: Layer) -> str | None:
        found = self.rule.reason(layer)
        return f"{self.entry.reason} ({found})" if found and self.entry.reason else found

    def dead_names(self, layers: Sequence[Layer]) -> list[str]:
        """Its names that match no layer, with the nearest ones.

        Args:
            layers: All layers of the model.
        """
        return _dead(_rules(self.entry.names, self.entry.types), layers)

    def unmatched(self, layers: Sequence[Layer]) -> list[str]:
        dead = self.dead_names(layers)
        if not dead and all(self.rule.reason(layer) is None for layer in layers):
            dead = [keys_of(attrs.evolve(self.entry, to=None, reason=None))]
        return [f"{text} in [[skip]] {self.number}" for text in dead]

    def __repr__(self) -> str:
        return f"[[skip]] {self.number}: {keys_of(self.entry)}"


@attrs.frozen(repr=False)
class SelectRule(SkipRule):
    """``[select]``: all other layers stay float.

    Args:
        table: What it says; at least one name.
        rule: What it leaves out.
    """

    table: SelectTable
    rule: SkipRule = attrs.field(init=False)

    @rule.default
    def _of_keys(self) -> SkipRule:
        rules = _rules(self.table.names, self.table.types)
        return NotRule(rules[0] if len(rules) == 1 else AnyRule(rules))

    def reason(self, layer: Layer) -> str | None:
        return None if self.rule.reason(layer) is None else "not selected"

    def dead_names(self, layers: Sequence[Layer]) -> list[str]:
        """Its names that match no layer, with the nearest ones.

        Args:
            layers: All layers of the model.
        """
        return _dead(_rules(self.table.names, self.table.types), layers)

    def unmatched(self, layers: Sequence[Layer]) -> list[str]:
        dead = [f"{text} in [select]" for text in self.dead_names(layers)]
        everything = not dead and all(self.reason(layer) is None for layer in layers)
        return [f"{self!r} (it selects every layer)"] if everything else dead

    def __repr__(self) -> str:
        return f"[select] {keys_of(self.table)}"


def rules_of(recipe: Recipe) -> list[EntryRule | SelectRule]:
    """The rules of a recipe, in the order in which they are asked.

    Args:
        recipe: Its ``[[skip]]`` entries come first, then ``[select]``.
    """
    entries: list[EntryRule | SelectRule] = [EntryRule(number, entry) for number, entry in enumerate(recipe.skip, 1)]
    chosen = recipe.select.names or recipe.select.types
    return [*entries, SelectRule(recipe.select)] if chosen else entries


def keys_of(table: object) -> str:
    """The keys of a table in one line, as TOML writes them.

    Args:
        table: Any of a recipe's.
    """
    return ", ".join(f"{key} = {shown(value)}" for key, value in plain(table).items())


def _dead(rules: Sequence[SkipRule], layers: Sequence[Layer]) -> list[str]:
    return [text for rule in rules for text in rule.unmatched(layers)]


def _rules(names: tuple[str, ...], types: tuple[str, ...]) -> list[SkipRule]:
    rules: list[SkipRule] = [NameRule(*names)] if names else []
    return [*rules, TypeNameRule(*types)] if types else rules
