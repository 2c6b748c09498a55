"""Skip rules: a reason to leave a layer in float, or None."""

from __future__ import annotations

import abc
import itertools
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import attrs
from torch import nn

from monoquant.class_patterns import ClassPattern, nearest_classes
from monoquant.errors import ConfigError
from monoquant.name_patterns import NamePattern, nearest_names
from monoquant.values import Layer, check_target

INT4_SKIP_TYPES: Final = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d)
INT4_SKIP_NAMES: Final = ("lm_head",)
INT4_SKIP_THRESHOLD: Final = 512

DEFAULT_INT4_SKIP: Final[Mapping[str, Any]] = types.MappingProxyType(
    {
        "skip_types": INT4_SKIP_TYPES,
        "skip_param_threshold": INT4_SKIP_THRESHOLD,
        "skip_names": list(INT4_SKIP_NAMES),
    }
)
"""What INT4 leaves in float unless told otherwise, per option of ``SkipSelectionPass.from_options``."""


class SkipRule(abc.ABC):
    """Base of all skip rules; combine them with ``|`` (any), ``&`` (all) and ``~`` (not).

    A rule is a frozen value: its answer depends on the layer and its settings alone, and asking changes nothing. It is
    asked about every layer of a model. ``monoquant.testing.SkipRuleConformance`` tests all of this.

    Attributes:
        skip_to: What to reduce the layers of this rule to instead of leaving them in float: ``"int8"``, ``"float16"``,
            ``"bfloat16"``; None (default) leaves them. The pipeline needs the pass that does it.
    """

    skip_to: str | None = None

    @property
    def is_limit(self) -> bool:
        """Whether the rule only sets a limit: that no layer is beyond it is then no mistake. Default: it is none."""
        return False

    @abc.abstractmethod
    def reason(self, layer: Layer) -> str | None:
        """Tell why a layer should stay in float.

        Args:
            layer: Name, type, shape, parameter count, dtype, ties and ancestors; no tensors.

        Returns:
            The reason, for a person; None to leave the layer to others.
        """

    def target(self, layer: Layer) -> str | None:
        """What a layer that this rule has a reason for is reduced to.

        Args:
            layer: A layer for which :meth:`reason` is not None.

        Returns:
            As ``skip_to``. Of several rules that are combined, the one that keeps most of the layer decides.
        """
        return self.skip_to

    def unmatched(self, layers: Sequence[Layer]) -> list[str]:
        """Tell which parts of the rule matched no layer at all.

        Args:
            layers: Every layer of the model.

        Returns:
            A text for each dead part, such as ``"'mlp' (nearest: 'ffn')"``; empty when all parts are alive.
        """
        return [] if any(self.reason(layer) is not None for layer in layers) else [repr(self)]

    def __or__(self, other: SkipRule) -> SkipRule:
        return AnyRule([self, other])

    def __and__(self, other: SkipRule) -> SkipRule:
        return AllRule([self, other])

    def __invert__(self) -> SkipRule:
        return NotRule(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


@attrs.frozen(init=False)
class TypeRule(SkipRule):
    """Skip modules of given classes, subclasses included, and all that such a module contains.

    Args:
        types: One or more subclasses of nn.Module.
        skip_to: As in SkipRule; default None.
    """

    types: tuple[type, ...]
    skip_to: str | None = attrs.field(default=None, validator=check_target)

    def __init__(self, *types: type, skip_to: str | None = None) -> None:
        wrong = [kind for kind in types if not (isinstance(kind, type) and issubclass(kind, nn.Module))]
        if wrong or not types:
            raise ConfigError(f"TypeRule{types!r}: give one or more module classes, such as TypeRule(nn.Embedding)")
        self.__attrs_init__(tuple(dict.fromkeys(types)), skip_to)

    def reason(self, layer: Layer) -> str | None:
        for kind in self.types:
            reason = _reason_for_type(kind, layer)
            if reason:
                return reason
        return None

    def unmatched(self, layers: Sequence[Layer]) -> list[str]:
        return [kind.__name__ for kind in self.types if not any(_reason_for_type(kind, layer) for layer in layers)]

    def __repr__(self) -> str:
        return f"TypeRule({', '.join(kind.__name__ for kind in self.types)}{_shown(self.skip_to)})"


def _reason_for_type(kind: type, layer: Layer) -> str | None:
    if issubclass(layer.type, kind):
        exact = layer.type is kind
        return f"type is {kind.__name__}" if exact else f"type {layer.type.__name__} is a {kind.__name__}"
    for ancestor in layer.ancestors:
        if issubclass(ancestor.type, kind):
            return f"inside {ancestor.name or 'the root'!r}, a {kind.__name__}"
    return None


@attrs.frozen(init=False)
class TypeNameRule(SkipRule):
    """Skip modules whose class, or a base of it, has one of these names, and all that such a module contains.

    For where classes cannot be given, as in a recipe.

    Args:
        entries: One or more entries as :class:`~monoquant.class_patterns.ClassPattern` explains them.
        skip_to: As in SkipRule; default None.
    """

    patterns: tuple[ClassPattern, ...]
    skip_to: str | None = attrs.field(default=None, validator=check_target)

    def __init__(self, *entries: str, skip_to: str | None = None) -> None:
        if not entries:
            raise ConfigError("TypeNameRule(): give one or more names of classes, such as TypeNameRule('Embedding')")
        self.__attrs_init__(tuple(ClassPattern(entry) for entry in dict.fromkeys(entries)), skip_to)

    def reason(self, layer: Layer) -> str | None:
        for pattern in self.patterns:
            reason = _reason_for_type_name(pattern, layer)
            if reason:
                return reason
        return None

    def unmatched(self, layers: Sequence[Layer]) -> list[str]:
        dead = [one for one in self.patterns if not any(_reason_for_type_name(one, layer) for layer in layers)]
        kinds = [kind for layer in layers for kind in (layer.type, *(ancestor.type for ancestor in layer.ancestors))]
        return [_near(pattern.entry, nearest_classes(pattern.entry, kinds)) for pattern in dead]

    def __repr__(self) -> str:
        return f"TypeNameRule({', '.join(repr(one.entry) for one in self.patterns)}{_shown(self.skip_to)})"


def _reason_for_type_name(pattern: ClassPattern, layer: Layer) -> str | None:
    if pattern.matches(layer.type):
        return f"type {layer.type.__name__} is {pattern.with_article}"
    for ancestor in layer.ancestors:
        if pattern.matches(ancestor.type):
            return f"inside {ancestor.name or 'the root'!r}, {pattern.with_article}"
    return None


@attrs.frozen(init=False)
class NameRule(SkipRule):
    """Skip layers by name, under any of their names.

    Args:
        entries: One or more entries as :class:`~monoquant.name_patterns.NamePattern` explains them.
        skip_to: As in SkipRule; default None.
    """

    patterns: tuple[NamePattern, ...]
    skip_to: str | None = attrs.field(default=None, validator=check_target)

    def __init__(self, *entries: str, skip_to: str | None = None) -> None:
        if not entries:
            raise ConfigError("NameRule(): give one or more names, such as NameRule('lm_head', '*.gate')")
        self.__attrs_init__(tuple(NamePattern(entry) for entry in dict.fromkeys(entries)), skip_to)

    def reason(self, layer: Layer) -> str | None:
        for pattern in self.patterns:
            if any(pattern.matches(name) for name in layer.names):
                return f"name matches {pattern.entry!r}"
        return None

    def unmatched(self, layers: Sequence[Layer]) -> list[str]:
        names = [name for layer in layers for name in layer.names]
        dead = [pattern.entry for pattern in self.patterns if not any(map(pattern.matches, names))]
        return [_near(entry, nearest_names(entry, names)) for entry in dead]

    def __repr__(self) -> str:
        return f"NameRule({', '.join(repr(pattern.entry) for pattern in self.patterns)}{_shown(self.skip_to)})"


def _near(entry: str, nearest: Iterable[str]) -> str:
    listed = ", ".join(map(repr, nearest))
    return f"{entry!r} (nearest: {listed})" if listed else repr(entry)


def _shown(skip_to: str | None) -> str:
    return f", skip_to={skip_to!r}" if skip_to else ""


def most_careful(targets: Iterable[str | None]) -> str | None:
    """Of several targets, the one that keeps most of a layer: float before 16 bits before 8.

    Args:
        targets: At least one.
    """
    # bfloat16 reaches further than float16, which is what a rule that asks for it cares about.
    return min(targets, key=(None, "bfloat16", "float16", "int8").index)


def _check_threshold(_instance: Any, _attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"skip_param_threshold={value!r}: give a whole number of parameters >= 0 (0 skips nothing)")


@attrs.frozen(repr=False)
class ThresholdRule(SkipRule):
    """Skip small layers.

    Args:
        parameters: Layers with strictly fewer parameters of their own than this are skipped; >= 0.
        skip_to: As in SkipRule; default None.
    """

    parameters: int = attrs.field(validator=_check_threshold)
    skip_to: str | None = attrs.field(default=None, validator=check_target)

    @property
    def is_limit(self) -> bool:
        return True

    def reason(self, layer: Layer) -> str | None:
        if layer.parameters >= self.parameters:
            return None
        return f"{layer.parameters} parameters, fewer than {self.parameters}"

    def __repr__(self) -> str:
        return f"ThresholdRule({self.parameters}{_shown(self.skip_to)})"


def _canonical(rules: Iterable[Any]) -> tuple[SkipRule, ...]:
    members = list(rules)
    wrong = [rule for rule in members if not isinstance(rule, SkipRule)]
    if wrong:
        raise ConfigError(f"{wrong[0]!r} is not a SkipRule instance; give rules such as TypeRule(nn.Embedding)")
    # One order for one set of rules, so that a | b and b | a are the same rule. Rules need not be hashable.
    different = [rule for index, rule in enumerate(members) if rule not in members[:index]]
    return tuple(sorted(different, key=repr))


def _reasons(rules: Iterable[SkipRule], layer: Layer) -> list[str]:
    """Different reasons in an order that does not depend on that of the rules, even if they look alike."""
    found = sorted((repr(rule), reason) for rule in rules if (reason := rule.reason(layer)) is not None)
    return list(dict.fromkeys(reason for _, reason in found))


def _listed(rules: Any) -> list[Any]:
    if isinstance(rules, str) or not isinstance(rules, Iterable):
        raise ConfigError(f"{rules!r} is not a list of rules; give rules such as [TypeRule(nn.Embedding)]")
    return list(rules)


def _flat_any(rules: Any) -> tuple[SkipRule, ...]:
    parts = ((rule.rules if isinstance(rule, AnyRule) else (rule,)) for rule in _listed(rules))
    return _canonical(itertools.chain.from_iterable(parts))


def _flat_all(rules: Any) -> tuple[SkipRule, ...]:
    parts = ((rule.rules if isinstance(rule, AllRule) else (rule,)) for rule in _listed(rules))
    return _canonical(itertools.chain.from_iterable(parts))


def _one_rule(rule: Any) -> SkipRule:
    return _canonical([rule])[0]


@attrs.frozen(repr=False)
class AnyRule(SkipRule):
    """Skip what at least one of the rules skips; written ``a | b``.

    Args:
        rules: The rules, in any order.
    """

    rules: tuple[SkipRule, ...] = attrs.field(converter=_flat_any)

    def reason(self, layer: Layer) -> str | None:
        return "; ".join(_reasons(self.rules, layer)) or None

    def target(self, layer: Layer) -> str | None:
        return most_careful(rule.target(layer) for rule in self.rules if rule.reason(layer) is not None)

    def unmatched(self, layers: Sequence[Layer]) -> list[str]:
        return [dead for rule in self.rules for dead in rule.unmatched(layers)]

    def __repr__(self) -> str:
        return f"({' | '.join(map(repr, self.rules))})"


@attrs.frozen(repr=False)
class AllRule(SkipRule):
    """Skip what every one of the rules skips; written ``a & b``.

    Args:
        rules: The rules, in any order.
    """

    rules: tuple[SkipRule, ...] = attrs.field(converter=_flat_all)

    def reason(self, layer: Layer) -> str | None:
        if any(rule.reason(layer) is None for rule in self.rules):
            return None
        return " and ".join(_reasons(self.rules, layer)) or None

    def target(self, layer: Layer) -> str | None:
        return most_careful(rule.target(layer) for rule in self.rules)

    def unmatched(self, layers: Sequence[Layer]) -> list[str]:
        return [dead for rule in self.rules for dead in rule.unmatched(layers)] or super().unmatched(layers)

    def __repr__(self) -> str:
        return f"({' & '.join(map(repr, self.rules))})"


@attrs.frozen(repr=False)
class NotRule(SkipRule):
    """Skip what the rule does not skip; written ``~rule``. ``~NameRule("encoder")`` quantizes the encoder only.

    Args:
        rule: The rule to turn around; its own ``skip_to`` plays no part.
        skip_to: As in SkipRule; default None.
    """

    rule: SkipRule = attrs.field(converter=_one_rule)
    skip_to: str | None = attrs.field(default=None, validator=check_target)

    def reason(self, layer: Layer) -> str | None:
        return f"not selected by {self.rule!r}" if self.rule.reason(layer) is None else None

    def unmatched(self, layers: Sequence[Layer]) -> list[str]:
        return self.rule.unmatched(layers) or super().unmatched(layers)

    def __repr__(self) -> str:
        return f"NotRule({self.rule!r}{_shown(self.skip_to)})" if self.skip_to else f"~{self.rule!r}"
