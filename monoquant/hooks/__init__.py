"""Plugins: the hooks they implement, and how they are found. The only place that knows pluggy."""

from monoquant.hooks.manager import PluginManager
from monoquant.hooks.specs import hookimpl

__all__ = ["PluginManager", "hookimpl"]
