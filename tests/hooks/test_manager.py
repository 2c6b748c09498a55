"""Registering plugins by hand, and collecting what they contribute."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import monoquant as mq
from monoquant.hooks import PluginManager
from monoquant.ranges import MinMaxObserver

RULES_HOOK = "monoquant_register_skip_rules"
CHECKS_HOOK = "monoquant_register_warning_checks"
ADAPTERS_HOOK = "monoquant_register_module_adapters"
ORIGIN = mq.Origin("example", "2.0")
SCHEME = mq.Scheme()


def make_plugin(**members: Any) -> types.ModuleType:
    """A module with the given members."""
    module = types.ModuleType("example_plugin")
    vars(module).update(members)
    return module


def returning(answer: Any) -> Callable[..., Any]:
    """A marked hook that returns one answer."""

    def hook() -> Any:
        return answer

    return mq.hookimpl(hook)


def rules_plugin(*rules: mq.SkipRule) -> types.ModuleType:
    """A module whose only hook contributes the given rules."""
    return make_plugin(**{RULES_HOOK: returning(list(rules))})


def manager_with(*plugins: tuple[object, mq.Origin]) -> PluginManager:
    manager = PluginManager(discover=False)
    for plugin, origin in plugins:
        manager.register(plugin, origin)
    return manager


class QuietCheck(mq.WarningCheck):
    """A check that finds nothing."""

    def check(self, info: mq.QuantizationInfo, gate: mq.AccuracyGate) -> Iterable[mq.Finding]:
        return []


def test_rules_carry_their_plugins_origin() -> None:
    """A registered rule says which plugin and which version it came from."""
    manager = manager_with((rules_plugin(mq.NameRule("gate")), ORIGIN))
    assert manager.registry(SCHEME).skip_rules == (mq.Registered(mq.NameRule("gate"), ORIGIN),)


def test_checks_join_the_built_in_ones() -> None:
    """A plugin's checks come besides the built-in ones, behind them."""
    check = QuietCheck()
    plugin = make_plugin(**{CHECKS_HOOK: returning([check])})
    checks = manager_with((plugin, ORIGIN)).registry(SCHEME).warning_checks
    assert checks == (*mq.Registry().warning_checks, mq.Registered(check, ORIGIN))


def test_adapters_are_asked_before_the_built_in_ones() -> None:
    """A plugin's adapters stand in front, by plugin name, so that they get the modules they know better."""
    zebra, ant = mq.ParameterAdapter(nn.Linear, {"weight": 0}), mq.ParameterAdapter(nn.Linear, {"weight": 1})
    plugins = [
        (make_plugin(**{ADAPTERS_HOOK: returning([adapter])}), mq.Origin(name))
        for adapter, name in ((zebra, "zebra"), (ant, "ant"))
    ]
    manager = manager_with(*plugins)
    first, second, *others = manager.registry(SCHEME).adapters
    assert (first, second) == (mq.Registered(ant, mq.Origin("ant")), mq.Registered(zebra, mq.Origin("zebra")))
    assert tuple(others) == mq.Registry().adapters


def test_instances_can_be_plugins() -> None:
    """An object with marked methods is as good as a module with marked functions."""

    class Plugin:
        def __init__(self, entry: str) -> None:
            self.entry = entry

        @mq.hookimpl
        def monoquant_register_skip_rules(self, scheme: mq.Scheme) -> list[mq.SkipRule]:
            return [mq.NameRule(self.entry)]

    registry = manager_with((Plugin("gate"), ORIGIN)).registry(SCHEME)
    assert registry.skip_rules == (mq.Registered(mq.NameRule("gate"), ORIGIN),)


def test_plugins_are_listed_by_name() -> None:
    """Manager and registry list active plugins in the order of their names."""
    origins = [mq.Origin("zebra", "1"), mq.Origin("ant"), mq.Origin("mole", "3.1")]
    manager = manager_with(*[(make_plugin(**{RULES_HOOK: returning([])}), origin) for origin in origins])
    expected = (mq.Origin("ant"), mq.Origin("mole", "3.1"), mq.Origin("zebra", "1"))
    assert manager.plugins == expected
    assert manager.registry(SCHEME).plugins == expected


@settings(deadline=None, max_examples=20)
@given(st.permutations(["ant", "mole", "zebra"]))
def test_registration_order_never_changes_the_registry(names: list[str]) -> None:
    """Three plugins in any order make one registry."""

    def registry(order: Iterable[str]) -> mq.Registry:
        plugins = [(rules_plugin(mq.NameRule(name)), mq.Origin(name)) for name in order]
        return manager_with(*plugins).registry(SCHEME)

    assert registry(names) == registry(sorted(names))


class Nearest(mq.WeightAlgorithm):
    """An algorithm with a name of its own."""

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]

    def solve(self, problem: mq.WeightProblem) -> mq.Solution:
        return mq.RoundToNearest().solve(problem)


@attrs.frozen
class NotedPass(mq.Pass):
    """A pass that takes part."""

    follows = (mq.SkipSelectionPass,)
    name: str = ""

    def run(self, context: mq.QuantContext) -> None:
        context.report([mq.Finding("noted", mq.Severity.INFO, f"{self.name} was here.", origin=mq.Origin(self.name))])


def full_plugin(name: str, calls: list[str]) -> types.ModuleType:
    """A module that brings something of every kind that a run uses."""
    hooks: dict[str, Callable[..., Any]] = {
        RULES_HOOK: returning([mq.NameRule(f"{name}_gate"), mq.ThresholdRule(len(name))]),
        CHECKS_HOOK: returning([QuietCheck()]),
        ADAPTERS_HOOK: returning([mq.ParameterAdapter(nn.Bilinear, {"weight": len(name) % 3})]),
        "monoquant_register_algorithms": returning([Nearest(name)]),
        "monoquant_register_observers": returning([mq.ObserverKind(name, MinMaxObserver)]),
        "monoquant_register_passes": returning([NotedPass(name)]),
        "monoquant_before_pass": mq.hookimpl(lambda: calls.append(name)),
    }
    return make_plugin(**hooks)


@given(st.permutations(["ant", "bee", "mole", "zebra"]))
def test_order_of_registration_changes_nothing_at_all(names: list[str]) -> None:
    """With plugins that bring every kind of thing: what is found, what happens, and what the report says."""

    def outcome(order: Iterable[str]) -> tuple[Any, ...]:
        calls: list[str] = []
        manager = PluginManager(discover=False)
        for name in order:
            manager.register(full_plugin(name, calls), mq.Origin(name, "1"))
        registry = manager.registry(SCHEME)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(64, 32))
        passes = [mq.SkipSelectionPass(), mq.Int4PackPass(algorithm="bee"), mq.AccuracyWarningPass("ignore")]
        result = mq.Quantizer(passes, registry).run(model)
        found = [
            [(repr(type(entry.value)), entry.origin) for entry in getattr(registry, field.name)]
            for field in attrs.fields(mq.Registry)
            if field.name not in ("plugins", "blocked")
        ]
        return found, registry.plugins, calls, result.report, str(result.report)

    assert outcome(names) == outcome(sorted(names))


@pytest.mark.parametrize("order", list(itertools.permutations("abc")))
def test_plugins_of_one_distribution_keep_the_order_of_their_names(order: tuple[str, ...]) -> None:
    """Also where what they bring reads alike, as functions do."""
    calls: list[str] = []

    def watching(name: str) -> types.ModuleType:
        return make_plugin(monoquant_before_pass=mq.hookimpl(lambda: calls.append(name)))

    manager = PluginManager(discover=False)
    for name in order:
        manager.register(watching(name), ORIGIN, f"example:{name}")
    for watcher in manager.registry(SCHEME).watchers:
        watcher.value.before(None, None)
    assert calls == ["a", "b", "c"]


@pytest.mark.parametrize("order", list(itertools.permutations("abc")))
def test_order_of_rules_within_a_plugin_does_not_matter(order: tuple[str, ...]) -> None:
    """A plugin that returns a set, whose order is arbitrary, still gives one registry."""
    rules = manager_with((rules_plugin(*map(mq.NameRule, order)), ORIGIN)).registry(SCHEME)
    assert [rule.value for rule in rules.skip_rules] == [mq.NameRule(name) for name in "abc"]


def test_hooks_get_the_scheme() -> None:
    """A plugin may answer with other rules for other schemes."""

    def answer(scheme: mq.Scheme) -> list[mq.SkipRule]:
        return [mq.ThresholdRule(scheme.group_size)] if scheme.symmetric else []

    manager = manager_with((make_plugin(**{RULES_HOOK: mq.hookimpl(answer)}), ORIGIN))
    assert manager.registry(SCHEME).skip_rules == ()
    [rule] = manager.registry(mq.Scheme(symmetric=True, group_size=32)).skip_rules
    assert rule.value == mq.ThresholdRule(32)


def test_hooks_are_called_once_per_registry() -> None:
    """Asking for a registry calls each hook exactly once, however many plugins there are."""
    calls: list[mq.Scheme] = []

    def answer(scheme: mq.Scheme) -> list[mq.SkipRule]:
        calls.append(scheme)
        return []

    others = [(rules_plugin(), mq.Origin(name)) for name in ("a", "z")]
    manager_with(others[0], (make_plugin(**{RULES_HOOK: mq.hookimpl(answer)}), ORIGIN), others[1]).registry(SCHEME)
    assert calls == [SCHEME]


def test_a_hook_may_ignore_its_argument() -> None:
    """An implementation that does not need the scheme may leave it out."""
    registry = manager_with((make_plugin(**{RULES_HOOK: mq.hookimpl(lambda: [mq.NameRule("gate")])}), ORIGIN)).registry(
        SCHEME
    )
    assert len(registry.skip_rules) == 1


def test_an_argument_with_a_default_is_passed_all_the_same() -> None:
    """A plugin that writes ``scheme=None`` sees the scheme, not the None."""
    seen: list[mq.Scheme | None] = []

    def answer(scheme: mq.Scheme | None = None) -> list[mq.SkipRule]:
        seen.append(scheme)
        return []

    manager_with((make_plugin(**{RULES_HOOK: mq.hookimpl(answer)}), ORIGIN)).registry(SCHEME)
    assert seen == [SCHEME]


def test_a_function_of_another_name_may_implement_a_hook() -> None:
    """``hookimpl(specname=...)`` contributes once, under the plugin's own origin."""

    @mq.hookimpl(specname=RULES_HOOK)
    def contribute(scheme: mq.Scheme) -> list[mq.SkipRule]:
        return [mq.NameRule("gate")]

    registry = manager_with((make_plugin(contribute=contribute), ORIGIN)).registry(SCHEME)
    assert registry.skip_rules == (mq.Registered(mq.NameRule("gate"), ORIGIN),)


@pytest.mark.parametrize("kind", [list, tuple, set, iter])
def test_any_iterable_of_instances_is_accepted(kind: Callable[[list[mq.SkipRule]], Iterable[mq.SkipRule]]) -> None:
    """Lists, tuples, sets and iterators of rules all do."""
    plugin = make_plugin(**{RULES_HOOK: returning(kind([mq.NameRule("gate")]))})
    registry = manager_with((plugin, ORIGIN)).registry(SCHEME)
    assert [rule.value for rule in registry.skip_rules] == [mq.NameRule("gate")]


def test_generator_hooks_are_accepted() -> None:
    """A hook may yield its rules."""

    def answer(scheme: mq.Scheme) -> Iterable[mq.SkipRule]:
        yield mq.NameRule("gate")
        yield mq.ThresholdRule(7)

    registry = manager_with((make_plugin(**{RULES_HOOK: mq.hookimpl(answer)}), ORIGIN)).registry(SCHEME)
    assert {rule.value for rule in registry.skip_rules} == {mq.NameRule("gate"), mq.ThresholdRule(7)}


def test_a_module_may_import_packages_that_share_the_prefix() -> None:
    """A plugin package called monoquant_example may import its own modules by their full name."""
    neighbour = types.ModuleType("monoquant_example")
    plugin = make_plugin(monoquant_example=neighbour, **{RULES_HOOK: returning([mq.NameRule("gate")])})
    assert len(manager_with((plugin, ORIGIN)).registry(SCHEME).skip_rules) == 1


def test_quantizers_report_the_plugin_behind_a_decision() -> None:
    """From the hook to the plan, the origin survives."""
    registry = manager_with((rules_plugin(mq.NameRule("1")), ORIGIN)).registry(SCHEME)
    quantizer = mq.Quantizer([mq.SkipSelectionPass(), mq.Int4PackPass()], registry)
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    assert [decision.origin for decision in quantizer.plan(model) if decision.action is mq.Action.SKIP] == [ORIGIN]


@pytest.mark.parametrize("kind", [mq.ConfigError, mq.FileError])
def test_an_error_of_settings_keeps_its_type(kind: type[Exception]) -> None:
    """What its user is to correct is no defect of the plugin; a note names it, and the list of plugins tells both."""

    def hook() -> list[mq.WarningCheck]:
        raise kind("BASELINE='x': no such file")

    manager = manager_with((make_plugin(**{CHECKS_HOOK: mq.hookimpl(hook)}), ORIGIN))
    note = f"raised by {CHECKS_HOOK} of plugin example 2.0: correct what it names, or block the plugin"
    with pytest.raises(kind, match=r"^BASELINE='x': no such file") as caught:
        manager.registry(SCHEME)
    assert caught.value.__notes__ == [note]
    (info,) = manager.describe()
    assert (info.status, info.problem) == ("broken", f"BASELINE='x': no such file; {note}")


def test_an_error_of_settings_is_told_with_all_others() -> None:
    """Where more is wrong, all of it is one PluginError."""

    def hook() -> list[mq.WarningCheck]:
        raise mq.ConfigError("TOLERANCE='half'")

    one, two = make_plugin(**{CHECKS_HOOK: mq.hookimpl(hook)}), make_plugin(**{RULES_HOOK: returning(None)})
    manager = manager_with((one, ORIGIN), (two, mq.Origin("other", "1.0")))
    with pytest.raises(mq.PluginError) as caught:
        manager.registry(SCHEME)
    text = str(caught.value)
    assert f"- TOLERANCE='half'; raised by {CHECKS_HOOK} of plugin example 2.0" in text
    assert f"- plugin other 1.0: {RULES_HOOK} returned None" in text
