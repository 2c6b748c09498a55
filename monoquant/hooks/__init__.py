"""Plugins: the hooks they implement, and how they are found. The only place that knows pluggy."""

from monoquant.hooks.choosing import Plugins, list_plugins, manager_of
from monoquant.hooks.manager import PluginInfo, PluginManager
from monoquant.hooks.specs import hookimpl

__all__ = ["PluginInfo", "PluginManager", "Plugins", "hookimpl", "list_plugins", "manager_of"]
