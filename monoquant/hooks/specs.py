"""The hooks, with the signatures that plugins implement."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from monoquant.adapters.base import ModuleAdapter
from monoquant.checks import WarningCheck
from monoquant.rules import SkipRule
from monoquant.values import AnyScheme

PROJECT = "monoquant"
PREFIX = "monoquant_"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a plugin's implementation of a hook: put ``@monoquant.hookimpl`` above the function."""


@hookspec
def monoquant_register_skip_rules(scheme: AnyScheme) -> Iterable[SkipRule]:  # type: ignore[empty-body]
    """Contribute skip rules, asked by every SkipSelectionPass after the caller's own.

    Called once per Quantizer, never per layer.

    Args:
        scheme: What the run quantizes to; return other rules for other schemes if you like.

    Returns:
        Instances of subclasses of SkipRule.
    """


@hookspec
def monoquant_register_warning_checks(scheme: AnyScheme) -> Iterable[WarningCheck]:  # type: ignore[empty-body]
    """Contribute checks, run by every AccuracyWarningPass beside the built-in ones.

    Called once per Quantizer.

    Args:
        scheme: What the run quantizes to.

    Returns:
        Instances of subclasses of WarningCheck.
    """


@hookspec
def monoquant_register_module_adapters() -> Iterable[ModuleAdapter]:  # type: ignore[empty-body]
    """Contribute adapters for kinds of modules that monoquant does not know, or knows less well.

    Called once per Quantizer and once per load; asked before the built-in ones.

    Returns:
        Instances of subclasses of ModuleAdapter, such as ParameterAdapter.
    """
