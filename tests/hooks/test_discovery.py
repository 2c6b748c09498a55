"""Installed plugins: entry points of real distributions on the import path."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

import monoquant as mq
from monoquant.hooks import PluginManager

GOOD = """
import monoquant as mq

@mq.hookimpl
def monoquant_register_skip_rules(scheme):
    return [mq.NameRule({entry!r})]
"""

Install = Callable[..., None]


def test_an_installed_plugin_is_found_with_its_version(install: Install) -> None:
    """Name and version of the distribution become the origin of its rules."""
    install("example-found", GOOD.format(entry="gate"), version="4.5")
    origin = mq.Origin("example-found", "4.5")
    manager = PluginManager()
    assert origin in manager.plugins
    assert mq.Registered(mq.NameRule("gate"), origin) in manager.registry(mq.Scheme()).skip_rules


def test_discovery_can_be_turned_off(install: Install) -> None:
    """With discover=False no installed plugin is even imported."""
    install("example-off", "raise RuntimeError('imported')")
    assert PluginManager(discover=False).plugins == ()
    assert "example_off" not in sys.modules


def test_quantize_finds_plugins_and_a_bare_quantizer_does_not(install: Install, small) -> None:
    """quantize() asks installed plugins, plugins=False and a bare Quantizer do not."""
    install("example-both", GOOD.format(entry="blocks.0.up"))
    found = mq.quantize(small, accuracy_warning="ignore")
    assert "blocks.0.up" in found.info.skipped_layers
    assert ("example-both", "1.2") in found.report.versions
    assert "blocks.0.up" in mq.quantize(small, accuracy_warning="ignore", plugins=False).info.selected_layers
    bare = mq.Quantizer([mq.SkipSelectionPass.from_options(), mq.Int4PackPass()])
    assert "blocks.0.up" in bare.run(small).info.selected_layers


def test_static_quantize_finds_plugins(install: Install, small, tokens) -> None:
    """The function with the older parameters discovers plugins as well."""
    install("example-static", GOOD.format(entry="blocks.0.up"))
    _, info = mq.static_quantize(small, tokens, bits=4, accuracy_warning="ignore")
    assert "blocks.0.up" in info.skipped_layers


@pytest.mark.parametrize("order", [("example-a", "example-b"), ("example-b", "example-a")])
def test_all_broken_plugins_are_told_by_name(install: Install, order: tuple[str, str]) -> None:
    """However they were installed, and each once."""
    for name in order:
        install(name, f"raise RuntimeError('{name} is broken')")
    expected = r"^2 problems with plugins:\n- plugin example-a 1.2: .*\n- plugin example-b 1.2: .*example-b is broken"
    with pytest.raises(mq.PluginError, match=expected):
        PluginManager()


def test_a_failing_import_names_the_distribution(install: Install) -> None:
    """The error tells name, version, entry point, cause and what to do."""
    install("example-import", "import a_package_nobody_has", version="0.3")
    expected = r"plugin example-import 0\.3: .*'example_import'.*a_package_nobody_has.*uninstall example-import"
    with pytest.raises(mq.PluginError, match=expected) as caught:
        PluginManager()
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_missing_attribute_names_the_distribution(install: Install) -> None:
    """An entry point to something its module lacks is told like a failing import."""
    install("example-attribute", GOOD.format(entry="gate"), attribute=":plugin")
    with pytest.raises(mq.PluginError, match=r"plugin example-attribute 1\.2: .*AttributeError"):
        PluginManager()


def test_an_entry_point_to_a_class_is_refused(install: Install) -> None:
    """The entry point must lead to a module or an instance."""
    install("example-class", "class Plugin:\n    pass\n", attribute=":Plugin")
    with pytest.raises(mq.PluginError, match=r"plugin example-class 1\.2: Plugin is a class"):
        PluginManager()


def test_a_misspelt_hook_of_an_installed_plugin_is_refused(install: Install) -> None:
    """Discovery holds plugins to the hooks as explicit registration does."""
    install("example-typo", GOOD.format(entry="gate").replace("skip_rules", "skip_rule"))
    with pytest.raises(mq.PluginError, match=r"plugin example-typo 1\.2: .*monoquant_register_skip_rule'"):
        PluginManager()


def test_one_distribution_may_bring_several_plugins(install: Install) -> None:
    """Two entry points of one distribution both take part."""
    source = GOOD.format(entry="gate") + (
        "class _Other:\n"
        "    @mq.hookimpl\n"
        "    def monoquant_register_skip_rules(self, scheme):\n"
        "        return [mq.NameRule('router')]\n"
        "other = _Other()\n"
    )
    install("example-two", source, entry_points={"first": "example_two", "second": "example_two:other"})
    rules = {rule.value for rule in PluginManager().registry(mq.Scheme()).skip_rules}
    assert {mq.NameRule("gate"), mq.NameRule("router")} <= rules
