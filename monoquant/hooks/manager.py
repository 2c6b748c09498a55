"""Finding plugins, holding them to the hooks, and collecting what they register."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

import pluggy

from monoquant.adapters.base import ModuleAdapter
from monoquant.checks import WarningCheck
from monoquant.errors import PluginError
from monoquant.hooks import builtin, specs
from monoquant.registry import Registered, Registry
from monoquant.rules import SkipRule
from monoquant.values import BUILT_IN, AnyScheme, Origin

T = TypeVar("T")

ENTRY_POINT_GROUP = "monoquant"


class _WrongAnswerError(Exception):
    """What a hook gave back is no list."""


class PluginManager:
    """Holds plugins and asks them for rules, checks and adapters.

    Args:
        discover: Whether to load every installed plugin (entry points of the group ``monoquant``); default True.

    Raises:
        PluginError: When an installed plugin cannot be loaded or is wrong.
    """

    def __init__(self, *, discover: bool = True) -> None:
        self._manager = pluggy.PluginManager(specs.PROJECT)
        self._manager.add_hookspecs(specs)
        self._origins: dict[str, Origin] = {}
        self.register(builtin, BUILT_IN)
        for entry_point in _installed() if discover else ():
            self.register(_load(entry_point), _origin(entry_point), _unique_name(entry_point))

    @property
    def plugins(self) -> tuple[Origin, ...]:
        """Where the registered plugins come from, by name, without monoquant itself."""
        others = {origin for name, origin in self._origins.items() if name != BUILT_IN.name}
        return tuple(sorted(others, key=lambda origin: (origin.name, origin.version or "")))

    def register(self, plugin: object, origin: Origin, name: str | None = None) -> None:
        """Add a plugin.

        Args:
            plugin: A module or an object with functions marked by ``hookimpl``.
            origin: Its distribution and version, for reports and errors.
            name: What it is called here; default: the origin's name. One distribution may bring several plugins.

        Raises:
            PluginError: For a doubled name, a hook that does not exist, a missing marker or a wrong argument; the
                manager stays as it was.
        """
        name = origin.name if name is None else name
        if name in self._origins:
            raise PluginError(f"plugin {origin}: another plugin is called {name!r} already; remove one of them")
        _require_instance(plugin, origin)
        _require_markers(plugin, origin)
        try:
            self._manager.register(plugin, name=name)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            raise PluginError(f"plugin {origin}: {error}; the hooks are {', '.join(_hook_names())}") from error
        if not self._manager.get_hookcallers(plugin):
            self._manager.unregister(name=name)
            raise PluginError(f"plugin {origin}: implements no hook; the hooks are {', '.join(_hook_names())}")
        self._origins[name] = origin

    def registry(self, scheme: AnyScheme) -> Registry:
        """Ask every plugin, once, for what it contributes.

        Args:
            scheme: What the run quantizes to.

        Returns:
            Rules, checks and adapters with their origins; independent of the order of registration.

        Raises:
            PluginError: When a hook raises or returns something else than instances of the right class.
        """
        return Registry(
            skip_rules=self._collect("monoquant_register_skip_rules", SkipRule, scheme=scheme),  # type: ignore[arg-type]  # abstract
            warning_checks=self._collect("monoquant_register_warning_checks", WarningCheck, scheme=scheme),  # type: ignore[arg-type]  # abstract
            adapters=self.adapters(),
            plugins=self.plugins,
        )

    def adapters(self) -> tuple[Registered[ModuleAdapter], ...]:
        """Ask every plugin, once, for adapters.

        Returns:
            Adapters with their origins.

        Raises:
            PluginError: As :meth:`registry`.
        """
        return self._collect("monoquant_register_module_adapters", ModuleAdapter)  # type: ignore[type-abstract]

    def _collect(self, hook: str, kind: type[T], **arguments: Any) -> tuple[Registered[T], ...]:
        found: list[Registered[T]] = []
        for name, origin in self._origins.items():
            try:
                members = list(self._ask(name, hook, arguments))
            except _WrongAnswerError as error:
                wanted = f"return instances of {kind.__name__} in a list"
                raise PluginError(f"plugin {origin}: {hook} {error}; {wanted}") from None
            except Exception as error:
                raise PluginError(f"plugin {origin}: {hook} raised {type(error).__name__}: {error}") from error
            _require_instances(members, kind, f"plugin {origin}: {hook}")
            found += [Registered(member, origin) for member in members]
        return tuple(found)

    def _ask(self, name: str, hook: str, arguments: Mapping[str, Any]) -> Iterable[Any]:
        # Called one by one and not through the hook, which merges the answers of all and drops those that are None.
        for found in getattr(self._manager.hook, hook).get_hookimpls():
            if found.plugin_name != name:
                continue
            if found.wrapper or found.hookwrapper:
                raise _WrongAnswerError("is implemented by a wrapper")
            takes = inspect.signature(found.function).parameters  # an implementation may leave arguments out
            answer = found.function(*(value for key, value in arguments.items() if key in takes))
            if not isinstance(answer, Iterable) or isinstance(answer, (str, bytes)):
                raise _WrongAnswerError(f"returned {answer!r}")
            yield from answer


def _installed() -> list[EntryPoint]:
    return sorted(entry_points(group=ENTRY_POINT_GROUP), key=_unique_name)


def _origin(entry_point: EntryPoint) -> Origin:
    if entry_point.dist is None:
        return Origin(entry_point.name)
    return Origin(entry_point.dist.name, entry_point.dist.version)


def _unique_name(entry_point: EntryPoint) -> str:
    # Packages that were copied from one template may all call their entry point the same.
    return f"{_origin(entry_point).name}:{entry_point.name}"


def _load(entry_point: EntryPoint) -> object:
    try:
        plugin: object = entry_point.load()
    except Exception as error:
        origin = _origin(entry_point)
        raise PluginError(
            f"plugin {origin}: its entry point {entry_point.value!r} cannot be imported "
            f"({type(error).__name__}: {error}); repair or uninstall {origin.name}"
        ) from error
    return plugin


def _hook_names() -> list[str]:
    return sorted(name for name in vars(specs) if name.startswith(specs.PREFIX))


def _require_instance(plugin: object, origin: Origin) -> None:
    if isinstance(plugin, type):
        raise PluginError(f"plugin {origin}: {plugin.__name__} is a class; register a module or an instance")


def _require_markers(plugin: object, origin: Origin) -> None:
    unmarked = [
        name
        for name in dir(plugin)
        if name.startswith(specs.PREFIX)
        and inspect.isroutine(getattr(plugin, name))
        and not hasattr(getattr(plugin, name), f"{specs.PROJECT}_impl")
    ]
    if unmarked:
        raise PluginError(f"plugin {origin}: {', '.join(unmarked)} lacks the marker; put @monoquant.hookimpl above it")


def _require_instances(members: list[Any], kind: type, who: str) -> None:
    for member in members:
        if isinstance(member, type):
            raise PluginError(
                f"{who} returned the class {member.__name__}; return instances of {kind.__name__} in a list"
            )
        if not isinstance(member, kind):
            raise PluginError(f"{who} returned {member!r} in its list; return instances of {kind.__name__} in a list")
