"""What the passes find available: skip rules and warning checks, each with its origin."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

import attrs

from monoquant.checks import BUILT_IN_CHECKS, WarningCheck
from monoquant.errors import ConfigError
from monoquant.rules import SkipRule
from monoquant.values import BUILT_IN, Origin

T = TypeVar("T")


@attrs.frozen
class Registered(Generic[T]):
    """A value and who contributed it.

    Args:
        value: A rule or a check.
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


@attrs.frozen
class Registry:
    """Rules and checks for one run.

    Args:
        skip_rules: Rules that plugins add to every SkipSelectionPass; default none.
        warning_checks: Checks of every AccuracyWarningPass; default: the built-in ones.
        plugins: Active plugins, for the report; default none.
    """

    skip_rules: tuple[Registered[SkipRule], ...] = attrs.field(default=(), converter=_in_one_order)
    warning_checks: tuple[Registered[WarningCheck], ...] = attrs.field(
        default=tuple(Registered(check, BUILT_IN) for check in BUILT_IN_CHECKS), converter=_in_one_order
    )
    plugins: tuple[Origin, ...] = ()
