"""Each way in which a plugin can be wrong is an error that names it, and harms nothing else."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from torch import nn

import monoquant as mq
from monoquant.hooks import PluginManager

RULES_HOOK = "monoquant_register_skip_rules"
CHECKS_HOOK = "monoquant_register_warning_checks"
ADAPTERS_HOOK = "monoquant_register_module_adapters"
ORIGIN = mq.Origin("broken", "2.0")
SCHEME = mq.Scheme()
RULE = mq.NameRule("gate")


def make_plugin(**members: Any) -> types.ModuleType:
    """A module with the given members."""
    module = types.ModuleType("broken_plugin")
    vars(module).update(members)
    return module


def returning(answer: Any) -> Callable[..., Any]:
    """A hook that returns one answer, still without its marker."""

    def hook() -> Any:
        return answer

    return hook


def plugin_with(hook: Callable[..., Any], name: str = RULES_HOOK) -> types.ModuleType:
    """A module with one marked hook."""
    return make_plugin(**{name: mq.hookimpl(hook)})


def good_plugin() -> types.ModuleType:
    return plugin_with(returning([RULE]))


def register_and_ask(plugin: object) -> mq.Registry:
    manager = PluginManager(discover=False)
    manager.register(plugin, ORIGIN)
    return manager.registry(SCHEME)


def _wants_bits(scheme: mq.Scheme, bits: int) -> list[mq.SkipRule]:
    return []


class UnfinishedPlugin:
    """A plugin class that somebody registers instead of an instance."""

    @mq.hookimpl
    def monoquant_register_skip_rules(self, scheme: mq.Scheme) -> list[mq.SkipRule]:
        return [RULE]


UNREGISTRABLE: dict[str, tuple[object, str]] = {
    "misspelt hook": (
        plugin_with(returning([]), "monoquant_register_skip_rule"),
        f"'monoquant_register_skip_rule'.*the hooks are.*{RULES_HOOK}",
    ),
    "misspelt prefix": (plugin_with(returning([]), "monoqant_register_skip_rules"), "'monoqant_register_skip_rules'"),
    "missing marker": (make_plugin(**{RULES_HOOK: returning([])}), f"{RULES_HOOK} lacks the marker.*hookimpl"),
    "unknown argument": (plugin_with(_wants_bits), f"{RULES_HOOK}.*bits"),
    "class instead of instance": (UnfinishedPlugin, "UnfinishedPlugin is a class.*instance"),
}


@pytest.mark.parametrize(("plugin", "text"), UNREGISTRABLE.values(), ids=UNREGISTRABLE)
def test_registering_it_is_refused(plugin: object, text: str) -> None:
    """The error names plugin, version and fault."""
    manager = PluginManager(discover=False)
    with pytest.raises(mq.PluginError, match=f"(?s)^plugin broken 2.0: .*{text}"):
        manager.register(plugin, ORIGIN)


@pytest.mark.parametrize("plugin", [plugin for plugin, _ in UNREGISTRABLE.values()], ids=UNREGISTRABLE)
def test_a_refused_plugin_leaves_no_trace(plugin: object) -> None:
    """After the refusal, other plugins work as if nothing had been tried, under the very same name too."""
    manager = PluginManager(discover=False)
    with pytest.raises(mq.PluginError):
        manager.register(plugin, ORIGIN)
    assert manager.plugins == ()
    assert manager.registry(SCHEME) == mq.Registry()
    manager.register(good_plugin(), ORIGIN)
    assert manager.registry(SCHEME).skip_rules == (mq.Registered(RULE, ORIGIN),)


def test_a_doubled_name_is_refused() -> None:
    """Two plugins of one name could not be told apart in a report; the first one stays."""
    manager = PluginManager(discover=False)
    manager.register(good_plugin(), ORIGIN)
    with pytest.raises(mq.PluginError, match=r"plugin broken 3\.0: another plugin is called 'broken' already"):
        manager.register(good_plugin(), mq.Origin("broken", "3.0"))
    assert manager.plugins == (ORIGIN,)
    assert len(manager.registry(SCHEME).skip_rules) == 1


def test_the_name_of_monoquant_is_taken() -> None:
    """No plugin can pass for built-in."""
    with pytest.raises(mq.PluginError, match="another plugin is called 'monoquant' already"):
        PluginManager(discover=False).register(good_plugin(), mq.Origin("monoquant", "9"))


def test_the_same_object_under_two_names_is_refused() -> None:
    """Its rules would be asked twice under different names."""
    manager, plugin = PluginManager(discover=False), good_plugin()
    manager.register(plugin, ORIGIN)
    with pytest.raises(mq.PluginError, match=r"^plugin twin: it is already registered as 'broken'; remove one of"):
        manager.register(plugin, mq.Origin("twin"))
    assert manager.registry(SCHEME).skip_rules == (mq.Registered(RULE, ORIGIN),)


WRONG_ANSWERS: dict[str, tuple[Any, str]] = {
    "None": (None, "None"),
    "a string": ("gate", "'gate'"),
    "bytes": (b"gate", "b'gate'"),
    "a number": (3, "3"),
    "a class": (mq.NameRule, "<class .*NameRule'>"),
    "a single rule": (RULE, r"NameRule\('gate'\)"),
    "a list of classes": ([mq.NameRule], "the class NameRule"),
    "a list with a string": (["gate"], "'gate' in its list"),
    "a list with None": ([None], "None in its list"),
    "a list of another kind": ([mq.Scheme()], r"Scheme\(.* in its list"),
}


@pytest.mark.parametrize(("answer", "told"), WRONG_ANSWERS.values(), ids=WRONG_ANSWERS)
@pytest.mark.parametrize(
    ("hook", "kind"), [(RULES_HOOK, "SkipRule"), (CHECKS_HOOK, "WarningCheck"), (ADAPTERS_HOOK, "ModuleAdapter")]
)
def test_a_wrong_answer_is_refused(hook: str, kind: str, answer: Any, told: str) -> None:
    """The error names plugin, version, hook, what it returned and what it should have returned."""
    with pytest.raises(mq.PluginError, match=rf"^plugin broken 2\.0: {hook} returned {told}; .*instances of {kind}"):
        register_and_ask(plugin_with(returning(answer), hook))


def test_a_hook_wrapper_that_returns_nothing_is_refused() -> None:
    """Wrappers answer for everyone, so their missing answer is an error like any other's."""

    def wrapper(scheme: mq.Scheme) -> Any:
        yield

    with pytest.raises(mq.PluginError, match=r"^plugin broken 2\.0: "):
        register_and_ask(make_plugin(**{RULES_HOOK: mq.hookimpl(wrapper=True)(wrapper)}))


def _raise(scheme: mq.Scheme) -> list[mq.SkipRule]:
    raise KeyError("missing table")


def _raise_lazily(scheme: mq.Scheme) -> Iterable[mq.SkipRule]:
    yield RULE
    raise KeyError("missing table")


def _keyword_only(*, table: str) -> list[mq.SkipRule]:
    raise AssertionError(table)


@pytest.mark.parametrize("hook", [_raise, _raise_lazily])
def test_a_raising_hook_is_named(hook: Callable[..., Any]) -> None:
    """The plugin's own exception is told and kept as the cause, also when it comes out of a generator."""
    expected = rf"^plugin broken 2\.0: {RULES_HOOK} raised KeyError.*missing table"
    with pytest.raises(mq.PluginError, match=expected) as caught:
        register_and_ask(plugin_with(hook))
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_keyword_only_argument_is_an_error_of_the_plugin() -> None:
    """An argument that no caller can fill is told at the latest when the hook is called."""
    with pytest.raises(mq.PluginError, match=r"^plugin broken 2\.0: .*table"):
        register_and_ask(plugin_with(_keyword_only))


def test_a_failed_hook_leaves_the_manager_usable() -> None:
    """A hook that fails for one scheme does its work for the next."""

    def answer(scheme: mq.Scheme) -> list[mq.SkipRule]:
        if scheme.symmetric:
            raise NotImplementedError("asymmetric only")
        return [RULE]

    manager = PluginManager(discover=False)
    manager.register(plugin_with(answer), ORIGIN)
    with pytest.raises(mq.PluginError, match="asymmetric only"):
        manager.registry(mq.Scheme(symmetric=True))
    assert manager.registry(SCHEME).skip_rules == (mq.Registered(RULE, ORIGIN),)


def test_the_guilty_plugin_is_named_among_innocent_ones() -> None:
    """With plugins registered before and after it, the error still names the one that raised."""
    manager = PluginManager(discover=False)
    for name, hook in (("ant", returning([])), ("broken", _raise), ("zebra", returning([]))):
        manager.register(plugin_with(hook), mq.Origin(name))
    with pytest.raises(mq.PluginError, match=r"^plugin broken: "):
        manager.registry(SCHEME)


class MuteRule(mq.SkipRule):
    """A rule that answers with anything but a reason."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def reason(self, layer: mq.Layer) -> Any:
        return self.answer


@pytest.mark.parametrize("answer", [True, False, 0, "", ["gate"]])
def test_a_rule_with_a_wrong_answer_is_named_with_its_plugin(answer: Any) -> None:
    """A rule must give a non-empty reason or None; the error names rule, plugin, version and layer."""
    registry = mq.Registry(skip_rules=(mq.Registered(MuteRule(answer), ORIGIN),))
    quantizer = mq.Quantizer([mq.SkipSelectionPass(), mq.Int4PackPass()], registry)
    with pytest.raises(mq.PluginError, match=r"MuteRule.* of broken 2\.0 .*'0'") as caught:
        quantizer.plan(nn.Sequential(nn.Linear(8, 8)))
    assert caught.value.layers == ("0",)


@pytest.mark.parametrize("plugin", [None, object(), make_plugin(helper=print)], ids=["None", "an object", "a module"])
def test_a_plugin_without_hooks_is_refused(plugin: Any) -> None:
    """What contributes nothing is a mistake, told with the hooks there are; the manager stays usable."""
    manager = mq.PluginManager(discover=False)
    with pytest.raises(
        mq.PluginError, match=r"^plugin empty 1: implements no hook; the hooks are monoquant_after_pass, "
    ):
        manager.register(plugin, mq.Origin("empty", "1"))
    assert manager.plugins == ()
    assert len(manager.registry(mq.Scheme()).warning_checks) == len(mq.Registry().warning_checks)


def test_an_error_of_the_plugins_own_keeps_its_cause() -> None:
    """A hook that raises a PluginError is told as raising, not as returning."""

    def refuse(scheme: mq.Scheme) -> list[mq.SkipRule]:
        raise mq.PluginError("no licence")

    with pytest.raises(mq.PluginError, match="raised PluginError: no licence") as caught:
        register_and_ask(make_plugin(**{RULES_HOOK: mq.hookimpl(refuse)}))
    assert str(caught.value.__cause__) == "no licence"
