"""monoquant's own contributions take the way of a plugin's."""

from __future__ import annotations

import pytest

import monoquant as mq
from monoquant.adapters.choice import BUILT_IN_ADAPTERS
from monoquant.algorithms.choice import ALGORITHMS
from monoquant.checks import BUILT_IN_CHECKS
from monoquant.formats.compressed_tensors import CompressedTensorsExporter
from monoquant.formats.gguf import GgufExporter
from monoquant.formats.gptq import GptqExporter
from monoquant.formats.huggingface import HuggingFaceExporter
from monoquant.formats.native import NativeExporter
from monoquant.hooks import PluginManager, builtin, specs
from monoquant.ranges import BUILT_IN_OBSERVERS
from monoquant.report.reporters import BUILT_IN_REPORTERS
from monoquant.values import BUILT_IN


def test_built_in_checks_are_marked_hooks() -> None:
    """The built-in module implements a hook the way a plugin does, marker included."""
    implementation = builtin.monoquant_register_warning_checks
    assert hasattr(implementation, f"{specs.PROJECT}_impl")
    assert tuple(implementation(mq.Scheme())) == BUILT_IN_CHECKS


def test_built_in_adapters_are_marked_hooks() -> None:
    """So do the adapters."""
    implementation = builtin.monoquant_register_module_adapters
    assert hasattr(implementation, f"{specs.PROJECT}_impl")
    assert tuple(implementation()) == BUILT_IN_ADAPTERS
    adapters = PluginManager(discover=False).adapters()
    assert adapters == tuple(mq.Registered(adapter, BUILT_IN) for adapter in BUILT_IN_ADAPTERS)


@pytest.mark.parametrize(
    ("name", "values"),
    [("algorithms", ALGORITHMS), ("observers", BUILT_IN_OBSERVERS), ("reporters", BUILT_IN_REPORTERS)],
)
def test_what_is_named_is_registered_by_marked_hooks(name: str, values: tuple[object, ...]) -> None:
    """Algorithms, observers and reporters as well."""
    implementation = getattr(builtin, f"monoquant_register_{name}")
    assert hasattr(implementation, f"{specs.PROJECT}_impl")
    assert tuple(implementation()) == values


def test_formats_are_registered_by_a_marked_hook() -> None:
    """So that nothing but hooks brings formats."""
    entries = PluginManager(discover=False).exporters()
    assert {entry.origin for entry in entries} == {BUILT_IN}
    expected = [NativeExporter, CompressedTensorsExporter, GptqExporter, HuggingFaceExporter, GgufExporter]
    assert [type(entry.value) for entry in entries] == expected
    assert [entry.value.name for entry in PluginManager(discover=False).reporters()] == ["text", "json", "html"]


def test_manager_and_bare_registry_agree_on_built_ins() -> None:
    """Without plugins, the manager's registry is the one a bare Quantizer uses."""
    assert PluginManager(discover=False).registry(mq.Scheme()) == mq.Registry()


def test_built_ins_reach_the_registry_through_the_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the built-in hook returns, and nothing besides it, is registered as built-in."""
    only = BUILT_IN_CHECKS[0]

    def hook(scheme: mq.Scheme) -> list[mq.WarningCheck]:
        return [only]

    monkeypatch.setattr(builtin, "monoquant_register_warning_checks", mq.hookimpl(hook))
    registry = PluginManager(discover=False).registry(mq.Scheme())
    assert registry.warning_checks == (mq.Registered(only, BUILT_IN),)


def test_monoquant_itself_is_no_plugin() -> None:
    """The list of active plugins names other people's packages only."""
    assert PluginManager(discover=False).plugins == ()
