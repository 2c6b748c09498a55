"""Loading plugins, holding them to the hooks, and collecting what they register."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar

import attrs
import pluggy

from monoquant.adapters.base import ModuleAdapter
from monoquant.algorithms.base import WeightAlgorithm
from monoquant.checks import WarningCheck
from monoquant.errors import ConfigError, FileError, MonoquantError, PluginError, require_flag
from monoquant.formats.base import Exporter
from monoquant.hooks import builtin, control, loading, specs
from monoquant.hooks.asking import Plugin
from monoquant.hooks.kernels import usable
from monoquant.hooks.verifying import hooks_of, problems_of, unknown_hooks_of
from monoquant.kernels.base import Kernel
from monoquant.passes.base import Pass
from monoquant.ranges import ObserverKind
from monoquant.registry import (
    RESERVED_ALGORITHMS,
    PassWatcher,
    Registered,
    Registry,
    built_in_as_given,
    in_one_order,
    name_problems,
)
from monoquant.report.reporters import Reporter
from monoquant.rules import SkipRule
from monoquant.values import BUILT_IN, AnyScheme, Origin, Scheme

T = TypeVar("T")

_RULES, _CHECKS = "monoquant_register_skip_rules", "monoquant_register_warning_checks"
_ADAPTERS, _ALGORITHMS = "monoquant_register_module_adapters", "monoquant_register_algorithms"
_OBSERVERS, _PASSES = "monoquant_register_observers", "monoquant_register_passes"
_EXPORTERS, _REPORTERS = "monoquant_register_exporters", "monoquant_register_reporters"
_KERNELS = "monoquant_register_kernels"
_BEFORE, _AFTER = "monoquant_before_pass", "monoquant_after_pass"

_NAMED = {
    _ALGORITHMS: "algorithm",
    _OBSERVERS: "observer",
    _EXPORTERS: "exporter",
    _REPORTERS: "reporter",
    _KERNELS: "kernel",
}
_KINDS: dict[str, type[Any]] = {
    _RULES: SkipRule,
    _CHECKS: WarningCheck,
    _ADAPTERS: ModuleAdapter,
    _ALGORITHMS: WeightAlgorithm,
    _OBSERVERS: ObserverKind,
    _PASSES: Pass,
    _EXPORTERS: Exporter,
    _REPORTERS: Reporter,
    _KERNELS: Kernel,
}


@attrs.frozen
class PluginInfo:
    """What there is to say about a plugin.

    Args:
        name: What it is called: ``distribution:entry point``, a path, or the name of a module or class.
        origin: Its distribution and version.
        status: ``"active"``, ``"blocked"`` (it was not imported) or ``"broken"``.
        hooks: Hooks that it implements; empty unless they could be read.
        problem: Why it is broken, and what to do; empty unless it is.
        unknown_hooks: Optional hooks that it implements and this monoquant does not have, so that nothing calls them.
    """

    name: str
    origin: Origin
    status: Literal["active", "blocked", "broken"]
    hooks: tuple[str, ...] = ()
    problem: str = ""
    unknown_hooks: tuple[str, ...] = ()


class PluginManager:
    """Holds plugins and asks them for what they contribute.

    Args:
        add: Plugins besides installed ones: paths of ``.py`` files (which are executed), modules, or objects with
            marked methods; default none.
        discover: Whether to load every installed plugin (entry points of the group ``monoquant``); default True. The
            environment variable ``MONOQUANT_PLUGINS=off`` turns them off as well.
        block: Names of plugins to leave out, besides those in ``MONOQUANT_BLOCK_PLUGINS``; they are not even imported.
        trace: Told of every call of a hook as a line of text: a function, or True for stderr; default: stderr if
            ``MONOQUANT_TRACE_PLUGINS=on``.
        on_broken: ``"error"`` (default), or ``"leave out"`` what cannot be loaded; :meth:`describe` tells of it.

    Raises:
        ConfigError: For wrong options, or a name to block that no plugin has.
        PluginError: When plugins are broken; tells of all of them.
    """

    def __init__(
        self,
        add: Iterable[Any] = (),
        *,
        discover: bool = True,
        block: Iterable[str] = (),
        trace: bool | control.Trace | None = None,
        on_broken: Literal["error", "leave out"] = "error",
    ) -> None:
        require_flag("discover", discover)
        if on_broken not in ("error", "leave out"):
            raise ConfigError(f"on_broken={on_broken!r}: give 'error' or 'leave out'")
        self._manager = pluggy.PluginManager(specs.PROJECT)
        self._manager.add_hookspecs(specs)
        self._trace = control.trace_of(trace)
        self._plugins: dict[str, Plugin] = {}
        self._blocked: list[loading.Source] = []
        self._broken: list[tuple[loading.Source, PluginError]] = []
        self.register(builtin, BUILT_IN)
        installed = loading.installed() if discover else []
        names = [*control.listed("block", block), *(control.blocked_names() if discover else [])]
        added = [loading.given(plugin) for plugin in control.listed("add", add)]
        loading.require_known(names, [*installed, *added])
        self._load([*(installed if control.installed_take_part() else []), *added], names)
        if on_broken == "error":
            _raise_together([error for _, error in self._broken])

    def _load(self, sources: Iterable[loading.Source], block: list[str]) -> None:
        for source in sources:
            if any(map(source.is_called, block)):
                self._blocked.append(source)
                continue
            try:
                self.register(source.load(), source.origin, source.name)
            except PluginError as error:
                self._broken.append((source, error))

    @property
    def plugins(self) -> tuple[Origin, ...]:
        """Where the registered plugins come from, by name, without monoquant itself."""
        return _by_name(plugin.origin for plugin in self._plugins.values() if plugin.origin != BUILT_IN)

    @property
    def blocked(self) -> tuple[Origin, ...]:
        """Where the plugins come from that were left out, by name."""
        return _by_name(source.origin for source in self._blocked)

    def register(self, plugin: object, origin: Origin, name: str | None = None) -> None:
        """Add a plugin.

        Args:
            plugin: A module or an object with functions marked by ``hookimpl``.
            origin: Its distribution and version, for reports and errors.
            name: What it is called here; default: the origin's name. One distribution may bring several plugins.

        Raises:
            PluginError: For everything that is wrong with it, at once; the manager stays as it was.
        """
        name = origin.name if name is None else name
        who = loading.label(name, origin)
        if name in self._plugins:
            raise PluginError(
                f"{who}: another plugin is called {name!r} already; remove one of them, or give an object "
                "a plugin_name of its own"
            )
        twin = self._manager.get_name(plugin)
        if twin is not None:
            raise PluginError(f"{who}: it is already registered as {twin!r}; remove one of them")
        problems = problems_of(plugin)
        if problems:
            raise PluginError(f"{who}: {'; '.join(problems)}")
        try:
            self._manager.register(plugin, name=name)
        except (pluggy.PluginValidationError, Warning) as error:  # warnings may have been made errors
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            raise PluginError(f"{who}: {error}") from error
        self._plugins[name] = Plugin(who, origin, hooks_of(plugin))

    def block(self, name: str) -> None:
        """Leave a plugin out from now on.

        Args:
            name: Of its distribution, or ``distribution:entry point``.

        Raises:
            ConfigError: When no plugin is called so.
        """
        active = [
            loading.Source(key, plugin.origin, lambda: None)
            for key, plugin in self._plugins.items()
            if plugin.origin != BUILT_IN
        ]
        broken = [source for source, _ in self._broken]
        loading.require_known([name], [*active, *broken])
        for source in active:
            if source.is_called(name):
                del self._plugins[source.name]
                self._manager.unregister(name=source.name)
        self._broken = [(source, error) for source, error in self._broken if not source.is_called(name)]
        self._blocked += [source for source in (*active, *broken) if source.is_called(name)]

    def describe(self) -> tuple[PluginInfo, ...]:
        """All plugins by name: the active ones, those that were blocked, and those that are broken.

        Active ones are asked for what they register (to INT4), so that what is wrong with that is told as well.
        """
        problems: dict[str, list[str]] = {name: [] for name in self._plugins}
        entries: dict[str, list[Registered[Any]]] = {hook: [] for hook in _KINDS}
        for name, plugin in self._plugins.items():
            for hook in _KINDS:
                errors: list[MonoquantError] = []
                entries[hook] += self._collect(hook, errors, [plugin], scheme=Scheme())
                problems[name] += map(_told, errors)
        for text, origins in itertools.chain(*(_name_problems(hook, entries[hook]) for hook in _KINDS)):
            for name, plugin in self._plugins.items():
                problems[name] += [text] if plugin.origin in origins else []
        active = [
            self._active(name, plugin, problems[name])
            for name, plugin in self._plugins.items()
            if plugin.origin != BUILT_IN
        ]
        blocked = [PluginInfo(source.name, source.origin, "blocked") for source in self._blocked]
        broken = [
            PluginInfo(source.name, source.origin, "broken", problem=str(error)) for source, error in self._broken
        ]
        return tuple(sorted([*active, *blocked, *broken], key=lambda info: info.name))

    def _active(self, name: str, plugin: Plugin, problems: list[str]) -> PluginInfo:
        status: Literal["active", "broken"] = "broken" if problems else "active"
        unknown = tuple(unknown_hooks_of(self._manager.get_plugin(name)))
        return PluginInfo(name, plugin.origin, status, tuple(plugin.hooks), "; ".join(problems), unknown)

    def registry(self, scheme: AnyScheme) -> Registry:
        """Ask every plugin, once, for what it contributes to a run.

        Args:
            scheme: What the run quantizes to.

        Returns:
            Rules, checks, adapters, algorithms, observers, passes, kernels and watchers with their origins;
            independent of the order of registration.

        Raises:
            PluginError: When hooks raise or return something else than instances of the right class, or names clash;
                tells of all plugins concerned.
            ConfigError: When nothing is wrong but the settings of one plugin, and it says so; or its FileError.
        """
        hooks = (_RULES, _CHECKS, _ADAPTERS, _ALGORITHMS, _OBSERVERS, _PASSES, _KERNELS)
        found = self._ask(hooks, scheme=scheme)
        kernels, disabled = usable(found[_KERNELS])
        return Registry(
            skip_rules=found[_RULES],
            warning_checks=found[_CHECKS],
            adapters=found[_ADAPTERS],
            algorithms=found[_ALGORITHMS],
            observers=found[_OBSERVERS],
            passes=found[_PASSES],
            watchers=self._watchers(),
            kernels=kernels,
            disabled=disabled,
            plugins=self.plugins,
            blocked=self.blocked,
        )

    def adapters(self) -> tuple[Registered[ModuleAdapter], ...]:
        """Ask every plugin, once, for adapters.

        Raises:
            PluginError: As :meth:`registry`.
        """
        return self._ask([_ADAPTERS])[_ADAPTERS]

    def kernels(self) -> tuple[tuple[Registered[Kernel], ...], tuple[Registered[str], ...]]:
        """Ask every plugin, once, for kernels.

        Returns:
            Those that compute here what they should, and why others do not.

        Raises:
            PluginError: As :meth:`registry`.
        """
        return usable(self._ask([_KERNELS])[_KERNELS])

    def exporters(self) -> tuple[Registered[Exporter], ...]:
        """Ask every plugin, once, for file formats; monoquant's own come first.

        Raises:
            PluginError: As :meth:`registry`.
        """
        return built_in_as_given(self._ask([_EXPORTERS])[_EXPORTERS])

    def reporters(self) -> tuple[Registered[Reporter], ...]:
        """Ask every plugin, once, for forms of the report; monoquant's own come first.

        Raises:
            PluginError: As :meth:`registry`.
        """
        return built_in_as_given(self._ask([_REPORTERS])[_REPORTERS])

    def _in_order(self) -> list[Plugin]:
        # By name and not by origin only, because one distribution may bring several plugins.
        return [self._plugins[name] for name in sorted(self._plugins)]

    def _ask(self, hooks: Iterable[str], **arguments: Any) -> dict[str, tuple[Registered[Any], ...]]:
        problems: list[MonoquantError] = []
        found = {hook: self._collect(hook, problems, self._in_order(), **arguments) for hook in hooks}
        problems += [PluginError(text) for hook in found for text, _ in _name_problems(hook, found[hook])]
        _raise_together(problems)
        return found

    def _collect(
        self, hook: str, problems: list[MonoquantError], plugins: Iterable[Plugin], **offered: Any
    ) -> tuple[Registered[Any], ...]:
        # Asked one by one and not through pluggy's hook, which merges the answers of all and stops at the first error.
        arguments = {name: offered[name] for name in specs.arguments_of(hook)}
        found: list[Registered[Any]] = []
        for plugin in plugins:
            if hook in plugin.hooks:
                try:
                    members: list[Any] = plugin.members(hook, _KINDS[hook], arguments, self._trace)
                except (ConfigError, FileError, PluginError) as error:
                    problems.append(error)
                else:
                    found += [Registered(member, plugin.origin) for member in members]
        return tuple(found)

    def _watchers(self) -> tuple[Registered[Any], ...]:
        watching = [plugin for plugin in self._in_order() if {_BEFORE, _AFTER} & plugin.hooks.keys()]
        return tuple(
            Registered(PassWatcher(self._watch(plugin, _BEFORE), self._watch(plugin, _AFTER)), plugin.origin)
            for plugin in watching
        )

    def _watch(self, plugin: Plugin, hook: str) -> Callable[..., object] | None:
        if hook not in plugin.hooks:
            return None

        def tell(*values: Any) -> object:
            arguments = dict(zip(specs.arguments_of(hook), values, strict=True))
            return plugin.call(hook, arguments, self._trace)

        return tell


def _name_problems(hook: str, entries: Iterable[Registered[Any]]) -> list[tuple[str, tuple[Origin, ...]]]:
    if hook not in _NAMED:
        return []
    what, entries = _NAMED[hook], in_one_order(entries)
    problems = name_problems(what, entries, RESERVED_ALGORITHMS if hook == _ALGORITHMS else ())
    for entry in entries:
        ends = getattr(entry.value, "suffixes", ())
        if not isinstance(ends, tuple) or not all(isinstance(end, str) for end in ends):
            text = f"plugin {entry.origin}: its {what} {entry.value!r} has suffixes={ends!r}; give a tuple of texts"
            problems.append((text, (entry.origin,)))
    return problems


def _by_name(origins: Iterable[Origin]) -> tuple[Origin, ...]:
    return tuple(sorted(set(origins), key=lambda origin: (origin.name, origin.version or "")))


def _told(error: MonoquantError) -> str:
    return "; ".join([str(error), *getattr(error, "__notes__", ())])


def _raise_together(errors: Sequence[MonoquantError]) -> None:
    if len(errors) == 1 and not isinstance(errors[0], PluginError):
        raise errors[0]
    if len(errors) == 1:
        way_out = f"all else works without it: repair it, or block it by name in {control.BLOCK}"
        raise PluginError(f"{errors[0]}\n{way_out}") from errors[0].__cause__
    if errors:
        listed = "\n".join(f"- {_told(error)}" for error in errors)
        way_out = f"all else works without them: repair them, or block them by name in {control.BLOCK}"
        raise PluginError(f"{len(errors)} problems with plugins:\n{listed}\n{way_out}") from errors[0]
