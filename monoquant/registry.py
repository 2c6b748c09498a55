"""What the passes find available: skip rules, warning checks and module adapters, each with its origin."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

import attrs

from monoquant.adapters.base import ModuleAdapter
from monoquant.adapters.choice import BUILT_IN_ADAPTERS
from monoquant.checks import BUILT_IN_CHECKS, WarningCheck
from monoquant.errors import ConfigError
from monoquant.rules import SkipRule
from monoquant.values import BUILT_IN, CALLER, Origin

T = TypeVar("T")


@attrs.frozen
class Registered(Generic[T]):
    """A value and who contributed it.

    Args:
        value: A rule, a check or an adapter.
        origin: Built-in, the caller, or a plugin.
    """

    value: T
    origin: Origin


def _in_one_order(entries: Iterable[Registered[T]]) -> tuple[Registered[T], ...]:
    if not isinstance(entries, Iterable):
        raise ConfigError(f"{entries!r} is no list: give a list of Registered(value, Origin(name, version))")
    entries = tuple(entries)
    bare = [entry for entry in entries if not isinstance(entry, Registered)]
    if bare:
        raise ConfigError(f"{bare[0]!r} has no origin: give Registered(value, Origin(name, version))")
    # Built-ins first, then by plugin name: the order of registration never changes a result.
    return tuple(sorted(entries, key=lambda entry: (entry.origin != BUILT_IN, entry.origin.name, repr(entry.value))))


def _with_built_in_last(entries: Iterable[Registered[ModuleAdapter]]) -> tuple[Registered[ModuleAdapter], ...]:
    # The first adapter that claims a module has it, and the last built-in one claims everything.
    entries = tuple(entries) if isinstance(entries, Iterable) else entries
    in_order = _in_one_order(entries)
    callers = [entry for entry in entries if entry.origin == CALLER]  # in the order in which the caller gave them
    added = [*callers, *(entry for entry in in_order if entry.origin not in (BUILT_IN, CALLER))]
    return (*added, *(Registered(adapter, BUILT_IN) for adapter in BUILT_IN_ADAPTERS))


@attrs.frozen
class Registry:
    """Rules, checks and adapters for one run.

    Args:
        skip_rules: Rules that plugins add to every SkipSelectionPass; default none.
        warning_checks: Checks of every AccuracyWarningPass; default: the built-in ones.
        adapters: Adapters for further kinds of modules, asked before the built-in ones; default none.
        plugins: Active plugins, for the report; default none.
    """

    skip_rules: tuple[Registered[SkipRule], ...] = attrs.field(default=(), converter=_in_one_order)
    warning_checks: tuple[Registered[WarningCheck], ...] = attrs.field(
        default=tuple(Registered(check, BUILT_IN) for check in BUILT_IN_CHECKS), converter=_in_one_order
    )
    adapters: tuple[Registered[ModuleAdapter], ...] = attrs.field(default=(), converter=_with_built_in_last)
    plugins: tuple[Origin, ...] = ()


def own_adapters(given: Iterable[ModuleAdapter]) -> list[Registered[ModuleAdapter]]:
    """Adapters that the caller passed, with their origin.

    Args:
        given: Instances of subclasses of ModuleAdapter.

    Raises:
        ConfigError: For anything else.
    """
    adapters = list(given) if isinstance(given, Iterable) else [given]
    wrong = [adapter for adapter in adapters if not isinstance(adapter, ModuleAdapter)]
    if wrong:
        raise ConfigError(
            f"{wrong[0]!r} is no adapter: give instances, such as ParameterAdapter(MyExperts, {{'up': -1}})"
        )
    return [Registered(adapter, CALLER) for adapter in adapters]


def known_adapters(
    given: Iterable[ModuleAdapter], registered: Iterable[Registered[ModuleAdapter]]
) -> list[ModuleAdapter]:
    """All adapters in the order in which they are asked: the caller's, those of plugins, the built-in ones.

    Args:
        given: The caller's.
        registered: Those of plugins.
    """
    registry = Registry(adapters=(*own_adapters(given), *registered))
    return [entry.value for entry in registry.adapters]
