"""How a hook changes from one release to the next, seen from plugins written for another one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import pluggy
import pytest

import monoquant as mq
from monoquant.hooks import specs

RULES = "monoquant_register_skip_rules"
SCHEME = mq.Scheme()


class OldPlugin:
    """Written for the hook as it is today."""

    @mq.hookimpl
    def monoquant_register_skip_rules(self, scheme: mq.Scheme) -> Iterable[mq.SkipRule]:
        return [mq.NameRule("old")]


def rules_of(plugin: object) -> list[mq.SkipRule]:
    registry = mq.PluginManager([plugin], discover=False).registry(SCHEME)
    return [entry.value for entry in registry.skip_rules]


def change_hook(monkeypatch: pytest.MonkeyPatch, hook: Any, **options: Any) -> None:
    """What a later release would write in specs.py."""
    monkeypatch.setattr(specs, hook.__name__, specs.hookspec(**options)(hook), raising=False)


def test_pluggy_is_one_that_is_supported() -> None:
    """The oldest and the newest are tested in turn."""
    assert (1, 6) <= tuple(map(int, pluggy.__version__.split(".")[:2])) < (2, 0)


def test_a_new_argument_leaves_old_plugins_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook that passes more serves those that ask for it, and those that do not."""

    class NewPlugin:
        @mq.hookimpl
        def monoquant_register_skip_rules(self, scheme: mq.Scheme, bits: int) -> Iterable[mq.SkipRule]:
            return [mq.ThresholdRule(bits)]

    with pytest.raises(mq.PluginError, match="takes 'bits', and the hook passes scheme; leave it out, or upgrade"):
        rules_of(NewPlugin())

    def monoquant_register_skip_rules(scheme: mq.Scheme, bits: int) -> Iterable[mq.SkipRule]:
        raise NotImplementedError

    change_hook(monkeypatch, monoquant_register_skip_rules)
    collect = mq.PluginManager._collect

    def collect_with_bits(*given: Any, **offered: Any) -> Any:
        return collect(*given, **offered, bits=offered["scheme"].bits if "scheme" in offered else None)

    monkeypatch.setattr(mq.PluginManager, "_collect", collect_with_bits)
    assert rules_of(OldPlugin()) == [mq.NameRule("old")]
    assert rules_of(NewPlugin()) == [mq.ThresholdRule(4)]


def test_a_retired_argument_warns_those_that_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """They get it for one more release; those that do not ask hear nothing."""

    def monoquant_register_skip_rules(scheme: mq.Scheme) -> Iterable[mq.SkipRule]:
        raise NotImplementedError

    retired = DeprecationWarning("scheme is gone in 0.3: ask the layer")
    change_hook(monkeypatch, monoquant_register_skip_rules, warn_on_impl_args={"scheme": retired})
    with pytest.warns(DeprecationWarning, match=r"scheme is gone in 0\.3"):
        assert rules_of(OldPlugin()) == [mq.NameRule("old")]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manager = mq.PluginManager(discover=False)
        with pytest.raises(mq.PluginError, match=r"^plugin strict: scheme is gone in 0\.3: ask the layer$"):
            manager.register(OldPlugin(), mq.Origin("strict"))
        assert manager.registry(SCHEME) == mq.Registry()  # nothing of it stays where warnings are errors

    class Frugal:
        @mq.hookimpl
        def monoquant_register_skip_rules(self) -> Iterable[mq.SkipRule]:
            return [mq.NameRule("new")]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rules_of(Frugal()) == [mq.NameRule("new")]


def test_a_retired_argument_is_refused_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin is told which argument it is."""

    def monoquant_register_skip_rules() -> Iterable[mq.SkipRule]:
        raise NotImplementedError

    change_hook(monkeypatch, monoquant_register_skip_rules)
    with pytest.raises(mq.PluginError, match=f"^plugin OldPlugin: {RULES} takes 'scheme', and the hook passes nothing"):
        rules_of(OldPlugin())


def test_a_retired_hook_warns_those_that_implement_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It works for one more release."""

    def monoquant_register_skip_rules(scheme: mq.Scheme) -> Iterable[mq.SkipRule]:
        raise NotImplementedError

    retired = DeprecationWarning("this hook is gone in 0.3")
    change_hook(monkeypatch, monoquant_register_skip_rules, warn_on_impl=retired)
    with pytest.warns(DeprecationWarning, match="this hook is gone"):
        assert rules_of(OldPlugin()) == [mq.NameRule("old")]


class Newer:
    """A plugin for a monoquant that is not released yet, which also does what today's can use."""

    @mq.hookimpl(optionalhook=True)
    def monoquant_register_devices(self, device: str) -> list[str]:
        raise AssertionError(device)

    @mq.hookimpl
    def monoquant_register_skip_rules(self) -> Iterable[mq.SkipRule]:
        return [mq.NameRule("newer")]


def test_a_plugin_may_be_newer_if_it_says_so() -> None:
    """An optional hook that this monoquant does not know is left alone, and listed as such."""
    assert rules_of(Newer()) == [mq.NameRule("newer")]
    (info,) = mq.list_plugins(mq.PluginManager([Newer()], discover=False))
    assert (info.status, info.hooks) == ("active", (RULES,))
    assert info.unknown_hooks == ("monoquant_register_devices",)


def test_a_plugin_that_does_not_say_so_is_refused_with_versions() -> None:
    """The text tells both ways out."""

    class Silent:
        @mq.hookimpl
        def monoquant_register_devices(self, device: str) -> list[str]:
            return []

    expected = (
        rf"^plugin Silent: implements 'monoquant_register_devices', which monoquant {version('monoquant')} does not "
        r"have; the plugin may be newer than this monoquant: upgrade monoquant, or mark .*\(optionalhook=True\)"
    )
    with pytest.raises(mq.PluginError, match=expected):
        rules_of(Silent())


def test_a_host_that_knows_the_hook_holds_it_to_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the hook exists, an optional implementation is one like any other."""

    def monoquant_register_devices(dtype: str) -> list[str]:
        raise NotImplementedError

    change_hook(monkeypatch, monoquant_register_devices)
    with pytest.raises(mq.PluginError, match="monoquant_register_devices takes 'device', and the hook passes dtype"):
        rules_of(Newer())
