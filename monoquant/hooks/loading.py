"""Where plugins come from: installed distributions, files, and objects that the caller has."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs

from monoquant.errors import ConfigError, PluginError
from monoquant.hooks.requirements import unmet_requirement
from monoquant.values import Origin

ENTRY_POINT_GROUP = "monoquant"
_SEPARATORS = re.compile(r"[-_.]+")


@attrs.frozen
class Source:
    """A plugin that is not loaded yet.

    Args:
        name: What it is called; no two have the same.
        origin: Its distribution and version, for reports and errors.
        load: Returns the module or object; raises PluginError.
    """

    name: str
    origin: Origin
    load: Callable[[], object]

    def is_called(self, name: str) -> bool:
        """Whether somebody who writes a name means this plugin.

        Args:
            name: Of a distribution, or ``distribution:entry point``; case, ``-``, ``_`` and ``.`` make no difference.
                Or the path of a file, written as it was given or otherwise (``./rules.py`` for ``rules.py``).
        """
        own = (normalized(self.name), normalized(self.origin.name))
        return normalized(name) in own or normalized(Path(name).as_posix()) in own


def label(name: str, origin: Origin) -> str:
    """What errors call a plugin; its entry point is told where that is not the distribution's name.

    Args:
        name: Its unique name.
        origin: Its distribution and version.
    """
    entry = name.partition(":")[2] if name.startswith(f"{origin.name}:") else ""
    differs = entry and normalized(entry) != normalized(origin.name)
    return f"plugin {entry} of {origin}" if differs else f"plugin {origin}"


def normalized(name: str) -> str:
    """A name as package indexes compare it (PEP 503).

    Args:
        name: Of a distribution, or of anything else.
    """
    return _SEPARATORS.sub("-", name).lower()


def installed() -> list[Source]:
    """All installed plugins by name, not yet imported."""
    found = [_from_entry_point(entry_point) for entry_point in entry_points(group=ENTRY_POINT_GROUP)]
    return sorted(found, key=lambda source: source.name)


def given(plugin: Any) -> Source:
    """A plugin that the caller names or has.

    Args:
        plugin: Path of a ``.py`` file, a module, or an object with marked methods. What it is called is its
            ``plugin_name``; default: the name of the module or class.

    Raises:
        ConfigError: For other texts, or a ``plugin_name`` that is no name.
    """
    if isinstance(plugin, (str, os.PathLike)):
        return _from_file(Path(plugin))
    kind = plugin if isinstance(plugin, (ModuleType, type)) else type(plugin)
    name = getattr(plugin, "plugin_name", kind.__name__)
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"plugin {kind.__name__}: plugin_name={name!r}; give a text, or leave it out")
    found = getattr(plugin, "__version__", None)
    return Source(name, Origin(name, found if isinstance(found, str) else None), lambda: plugin)


def require_known(names: Iterable[str], sources: Sequence[Source]) -> None:
    """Refuse names of plugins that are not there: one that is to be blocked may be there under another.

    Args:
        names: Of plugins to block.
        sources: All plugins.

    Raises:
        ConfigError: For names that no plugin has.
    """
    unknown = [name for name in names if not any(source.is_called(name) for source in sources)]
    if unknown:
        known = ", ".join(sorted({source.origin.name for source in sources})) or "none"
        raise ConfigError(
            f"no plugin to block is called {', '.join(map(repr, unknown))}, the plugins are: {known}; correct or "
            "remove the name"
        )


def _from_entry_point(entry_point: EntryPoint) -> Source:
    dist = entry_point.dist
    origin = Origin(entry_point.name) if dist is None else Origin(dist.name, dist.version)
    # Packages that were copied from one template may all call their entry point the same.
    name = f"{origin.name}:{entry_point.name}"

    def load() -> object:
        who = label(name, origin)
        wanted = None if dist is None else unmet_requirement(dist.requires, version("monoquant"))
        if wanted is not None:
            raise PluginError(
                f"{who}: requires monoquant{wanted}, and this is monoquant {version('monoquant')}; "
                f"install versions of both that fit, or uninstall {origin.name}"
            )
        try:
            plugin: object = entry_point.load()
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{who}: its entry point {entry_point.value!r} cannot be imported ({type(error).__name__}: {error}); "
                f"repair or uninstall {origin.name}"
            ) from error
        return plugin

    return Source(name, origin, load)


def _from_file(path: Path) -> Source:
    text = path.as_posix()
    if path.suffix != ".py":
        raise ConfigError(
            f"{text!r} is no plugin: give the path of a .py file, a module or an object, or 'no:NAME' to block one; "
            "installed plugins take part by themselves"
        )
    if not path.is_file():
        return Source(text, Origin(text), lambda: _missing(text))
    code = path.read_bytes()
    digest = hashlib.sha256(code).hexdigest()[:12]

    def load() -> object:
        try:
            return _executed(path, code, f"monoquant_plugin_{digest}")
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"plugin {text}: it cannot be imported ({type(error).__name__}: {error}); repair the file"
            ) from error

    # A file has no version, and what it held is what a report should tell.
    return Source(text, Origin(text, f"sha256:{digest}"), load)


def _missing(path: str) -> object:
    raise PluginError(f"plugin {path}: there is no such file; give the path of a .py file")


def _executed(path: Path, code: bytes, name: str) -> ModuleType:
    # What was read is what is hashed and what runs: importing could run an older copy from a cache, and leaves one.
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # attrs and pickle look classes up by the name of their module
    try:
        exec(compile(code, path, "exec", dont_inherit=True), vars(module))  # noqa: S102 - the caller asked for it
    except BaseException:
        del sys.modules[name]
        raise
    return module
