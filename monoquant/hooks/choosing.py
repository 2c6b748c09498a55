"""From a caller's ``plugins=`` to the plugins it means."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from monoquant.hooks import control
from monoquant.hooks.manager import PluginInfo, PluginManager

Plugins = bool | Iterable[Any] | PluginManager
"""Whether installed plugins take part; or what else does, and ``"no:NAME"``; or a manager."""


def manager_of(plugins: Plugins, on_broken: Literal["error", "leave out"] = "error") -> PluginManager:
    """The manager that a caller's ``plugins=`` means.

    Args:
        plugins: True: all installed ones. False: none. A list: the installed ones and those in it, which are paths of
            ``.py`` files, modules, or objects; ``"no:NAME"`` blocks one. Or a manager.
        on_broken: As in PluginManager.

    Raises:
        ConfigError: For anything else.
        PluginError: When plugins are broken, and that is an error.
    """
    if isinstance(plugins, PluginManager):
        return plugins
    if isinstance(plugins, bool):
        return PluginManager(discover=plugins, on_broken=on_broken)
    entries = control.listed("plugins", plugins)
    blocking = [entry for entry in entries if isinstance(entry, str) and entry.startswith(control.BLOCKING)]
    add = [entry for entry in entries if entry not in blocking]
    return PluginManager(add, block=[entry.removeprefix(control.BLOCKING) for entry in blocking], on_broken=on_broken)


def list_plugins(plugins: Plugins = True) -> tuple[PluginInfo, ...]:
    """All plugins, with what they implement, and what is wrong with those that are broken.

    Args:
        plugins: As in :func:`quantize`; default: all installed ones.

    Raises:
        ConfigError: For what is no choice of plugins.
    """
    return manager_of(plugins, on_broken="leave out").describe()
