"""What a run finds available besides its passes: rules, checks, adapters, algorithms ..., each with its origin."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from typing import Any, Generic, TypeVar

import attrs

from monoquant.adapters.base import ModuleAdapter
from monoquant.adapters.choice import BUILT_IN_ADAPTERS
from monoquant.algorithms.base import WeightAlgorithm
from monoquant.algorithms.choice import ALGORITHMS, NamedAlgorithm
from monoquant.checks import BUILT_IN_CHECKS, WarningCheck
from monoquant.errors import ConfigError, PluginError
from monoquant.kernels.base import Kernel, ProductKernel, RoundingKernel
from monoquant.kernels.choice import BUILT_IN_KERNELS, Offer
from monoquant.ranges import BUILT_IN_OBSERVERS, ObserverKind
from monoquant.rules import SkipRule
from monoquant.values import BUILT_IN, CALLER, Origin

T = TypeVar("T")

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@attrs.frozen
class Registered(Generic[T]):
    """A value and who contributed it.

    Args:
        value: A rule, a check, an adapter, an algorithm ...
        origin: Built-in, the caller, or a plugin.
    """

    value: T
    origin: Origin


@attrs.frozen
class PassWatcher:
    """What a plugin does when passes begin and end; it looks, and changes nothing.

    Args:
        before: ``before(pass_, context)``, or None.
        after: ``after(pass_, context, error)``, or None.
    """

    before: Callable[[Any, Any], object] | None = None
    after: Callable[[Any, Any, BaseException | None], object] | None = None


def in_one_order(entries: Iterable[Registered[T]]) -> tuple[Registered[T], ...]:
    """Built-in entries first, then by plugin and text, so that the order of registration never changes a result.

    Args:
        entries: In any order.

    Raises:
        ConfigError: For values without an origin.
    """
    if not isinstance(entries, Iterable):
        raise ConfigError(f"{entries!r} is no list: give a list of Registered(value, Origin(name, version))")
    entries = tuple(entries)
    bare = [entry for entry in entries if not isinstance(entry, Registered)]
    if bare:
        raise ConfigError(f"{bare[0]!r} has no origin: give Registered(value, Origin(name, version))")
    return tuple(sorted(entries, key=_rank))


def _rank(entry: Registered[Any]) -> tuple[bool, str, str]:
    # Addresses differ from run to run; entries that differ in nothing else keep their plugin's own order.
    return (entry.origin != BUILT_IN, entry.origin.name, _ADDRESS.sub("", repr(entry.value)))


def _with_built_in_last(entries: Iterable[Registered[ModuleAdapter]]) -> tuple[Registered[ModuleAdapter], ...]:
    # The first adapter that claims a module has it, and the last built-in one claims everything.
    entries = tuple(entries) if isinstance(entries, Iterable) else entries
    in_order = in_one_order(entries)
    callers = [entry for entry in entries if entry.origin == CALLER]  # in the order in which the caller gave them
    added = [*callers, *(entry for entry in in_order if entry.origin not in (BUILT_IN, CALLER))]
    return (*added, *(Registered(adapter, BUILT_IN) for adapter in BUILT_IN_ADAPTERS))


def built_in_as_given(entries: Iterable[Registered[T]]) -> tuple[Registered[T], ...]:
    """Built-in entries first, in their own order, which lists them from the plain to the refined; others as above.

    Args:
        entries: In any order.

    Raises:
        ConfigError: For values without an origin.
    """
    entries = tuple(entries) if isinstance(entries, Iterable) else entries
    in_order = in_one_order(entries)
    return (
        *(entry for entry in entries if entry.origin == BUILT_IN),
        *(entry for entry in in_order if entry.origin != BUILT_IN),
    )


def _kernels(entries: Iterable[Registered[Kernel]]) -> tuple[Registered[Kernel], ...]:
    return built_in_as_given(entries)  # attrs cannot tell mypy what a generic converter makes of a tuple


def name_problems(
    what: str, entries: Iterable[Registered[Any]], reserved: Collection[object] = ()
) -> list[tuple[str, tuple[Origin, ...]]]:
    """What is wrong with the names that values are asked for by.

    Args:
        what: What they are, for the texts.
        entries: Values with a ``name``.
        reserved: Names that mean something else.

    Returns:
        A text for each name that is missing, reserved, or used more than once, with everybody concerned.
    """
    owners: defaultdict[str, list[Origin]] = defaultdict(list)
    problems: list[tuple[str, tuple[Origin, ...]]] = []
    for entry in entries:
        name = getattr(entry.value, "name", None)
        if not isinstance(name, str) or not name or name in reserved:
            wrong = f"cannot be called {name!r}, which means something else" if name in reserved else "has no name"
            kind = type(entry.value).__name__
            text = f"plugin {entry.origin}: its {what} {kind} {wrong}; give the class a name of its own"
            problems.append((text, (entry.origin,)))
        else:
            owners[name].append(entry.origin)
    for name, origins in owners.items():
        if len(origins) > 1:
            who = " and ".join(map(_called, origins))
            text = f"{who} both bring {_article(what)} called {name!r}; rename one, or block a plugin"
            problems.append((text, tuple(origins)))
    return problems


def _called(origin: Origin) -> str:
    return "monoquant itself" if origin == BUILT_IN else f"plugin {origin}"


def _article(what: str) -> str:
    return f"{'an' if what[0].lower() in 'aeiou' else 'a'} {what}"


RESERVED_ALGORITHMS = ("auto",)
_HINT = "; a Quantizer asks those in its registry, such as PluginManager().registry(scheme)"


def _unique_algorithms(_instance: Any, _attribute: Any, entries: tuple[Registered[WeightAlgorithm], ...]) -> None:
    _refuse(name_problems("algorithm", entries, RESERVED_ALGORITHMS))


def _unique_observers(_instance: Any, _attribute: Any, entries: tuple[Registered[ObserverKind], ...]) -> None:
    _refuse(name_problems("observer", entries))


def _unique_kernels(_instance: Any, _attribute: Any, entries: tuple[Registered[Kernel], ...]) -> None:
    _refuse(name_problems("kernel", entries))


def _refuse(problems: list[tuple[str, tuple[Origin, ...]]]) -> None:
    if problems:
        raise PluginError("; ".join(text for text, _ in problems))


@attrs.frozen
class Registry:
    """What one run finds available.

    Args:
        skip_rules: Rules that plugins add to every SkipSelectionPass; default none.
        warning_checks: Checks of every AccuracyWarningPass; default: the built-in ones.
        adapters: Adapters for further kinds of modules, asked before the built-in ones; default none.
        algorithms: Weight algorithms by name; default: the built-in ones.
        observers: Range observers by name; default: the built-in ones.
        passes: Passes that join the pipeline of every Quantizer; default none.
        watchers: What is told of passes as they begin and end; default none.
        kernels: What multiplies with packed matrices, and what packs them; default: the built-in ones.
        disabled: Why a kernel is not among them, each with whose it is; default none.
        plugins: Active plugins, for the report; default none.
        blocked: Plugins that were left out, for the report; default none.

    Raises:
        ConfigError: For values without an origin.
        PluginError: For algorithms, observers or kernels without a name, or with one that another has.
    """

    skip_rules: tuple[Registered[SkipRule], ...] = attrs.field(default=(), converter=in_one_order)
    warning_checks: tuple[Registered[WarningCheck], ...] = attrs.field(
        default=tuple(Registered(check, BUILT_IN) for check in BUILT_IN_CHECKS), converter=in_one_order
    )
    adapters: tuple[Registered[ModuleAdapter], ...] = attrs.field(default=(), converter=_with_built_in_last)
    algorithms: tuple[Registered[WeightAlgorithm], ...] = attrs.field(
        default=tuple(Registered(one, BUILT_IN) for one in ALGORITHMS),
        converter=built_in_as_given,
        validator=_unique_algorithms,
    )
    observers: tuple[Registered[ObserverKind], ...] = attrs.field(
        default=tuple(Registered(one, BUILT_IN) for one in BUILT_IN_OBSERVERS),
        converter=built_in_as_given,
        validator=_unique_observers,
    )
    passes: tuple[Registered[Any], ...] = attrs.field(default=(), converter=in_one_order)  # Pass is on a higher floor
    watchers: tuple[Registered[PassWatcher], ...] = attrs.field(default=(), converter=in_one_order)
    kernels: tuple[Registered[Kernel], ...] = attrs.field(
        default=tuple(Registered(one, BUILT_IN) for one in BUILT_IN_KERNELS),
        converter=_kernels,
        validator=_unique_kernels,
    )
    disabled: tuple[Registered[str], ...] = ()
    plugins: tuple[Origin, ...] = ()
    blocked: tuple[Origin, ...] = ()

    def offer(self, *, exact: bool) -> Offer:
        """The kernels that may multiply.

        Args:
            exact: Whether approximate ones are forbidden.
        """
        return Offer([one.value for one in self.kernels if isinstance(one.value, ProductKernel)], exact)

    @property
    def rounding_kernels(self) -> tuple[RoundingKernel, ...]:
        """The kernels that may pack."""
        return tuple(one.value for one in self.kernels if isinstance(one.value, RoundingKernel))

    def algorithm(self, given: str | WeightAlgorithm) -> WeightAlgorithm:
        """The algorithm that a caller means.

        Args:
            given: A name, or an algorithm.

        Raises:
            ConfigError: For a name that nothing is registered under.
        """
        name = given.name if isinstance(given, NamedAlgorithm) else given
        return chosen("algorithm", name, WeightAlgorithm, self.algorithms, self.plugins, self.blocked, _HINT)  # type: ignore[type-abstract]

    def observer(self, given: str | ObserverKind) -> ObserverKind:
        """The kind of range observer that a caller means.

        Args:
            given: A name, or a kind.

        Raises:
            ConfigError: For a name that nothing is registered under.
        """
        return chosen("observer", given, ObserverKind, self.observers, self.plugins, self.blocked, _HINT)


def chosen(
    option: str,
    given: Any,
    kind: type[T],
    entries: Iterable[Registered[T]],
    plugins: Iterable[Origin],
    blocked: Iterable[Origin],
    hint: str = "",
) -> T:
    """A registered value by its name, or the caller's own.

    Args:
        option: What the caller's option is called.
        given: A name, or an instance of ``kind``.
        kind: What is wanted.
        entries: What there is.
        plugins: Who was asked, for the error.
        blocked: Who was not, for the error.
        hint: What else might help, for the error.

    Raises:
        ConfigError: For anything else.
    """
    if isinstance(given, kind):
        return given
    known = {getattr(entry.value, "name", ""): entry.value for entry in entries}
    if isinstance(given, str) and given in known:
        return known[given]
    asked, left_out = (", ".join(map(str, origins)) or "none" for origins in (plugins, blocked))
    raise ConfigError(
        f"{option}={given!r}: give one of {', '.join(map(repr, known))}, or an instance of {_article(kind.__name__)}; "
        f"plugins asked for more: {asked}; blocked: {left_out}. If a plugin brings it, install it and do not block it"
        f"{hint}"
    )


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
