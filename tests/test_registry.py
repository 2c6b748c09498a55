"""The registry: values with their origins, in one order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import monoquant as mq
from monoquant.adapters.choice import BUILT_IN_ADAPTERS
from monoquant.checks import BUILT_IN_CHECKS
from monoquant.registry import known_adapters
from monoquant.testing.strategies import skip_rules
from monoquant.values import BUILT_IN, CALLER

ORIGINS = (BUILT_IN, mq.Origin("ant", "1.0"), mq.Origin("zebra"), mq.Origin("MOLE", "2"))

registered = st.builds(mq.Registered, skip_rules(), st.sampled_from(ORIGINS))


class NamedCheck(mq.WarningCheck):
    """A check that reads as its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self, info: mq.QuantizationInfo, gate: mq.AccuracyGate) -> Iterable[mq.Finding]:
        return []

    def __repr__(self) -> str:
        return f"NamedCheck({self.name!r})"


def test_defaults_are_the_built_in_checks_and_adapters_and_no_plugins() -> None:
    """A bare registry has monoquant's own checks and adapters, each of which says so, and no rules."""
    registry = mq.Registry()
    assert {entry.value for entry in registry.warning_checks} == set(BUILT_IN_CHECKS)
    assert all(entry.origin == BUILT_IN for entry in registry.warning_checks)
    assert registry.adapters == tuple(mq.Registered(adapter, BUILT_IN) for adapter in BUILT_IN_ADAPTERS)
    assert registry.skip_rules == ()
    assert registry.plugins == ()


@settings(deadline=None)
@given(st.data(), st.lists(registered, max_size=5, unique_by=lambda entry: (entry.origin, repr(entry.value))))
def test_order_of_registration_is_forgotten(data: st.DataObject, entries: list[mq.Registered[Any]]) -> None:
    """Any order of the same rules makes the same registry."""
    shuffled = data.draw(st.permutations(entries))
    assert mq.Registry(skip_rules=shuffled) == mq.Registry(skip_rules=entries)


def test_built_ins_come_first_then_plugins_by_name_then_by_text() -> None:
    """The one order is that of origins, and within an origin that of what people read."""
    wanted = [
        mq.Registered(NamedCheck("z"), BUILT_IN),
        mq.Registered(NamedCheck("a"), mq.Origin("ant")),
        mq.Registered(NamedCheck("b"), mq.Origin("ant")),
        mq.Registered(NamedCheck("a"), mq.Origin("zebra")),
    ]
    for order in itertools.permutations(wanted):
        assert list(mq.Registry(warning_checks=order).warning_checks) == wanted


def test_adapters_stand_by_how_well_they_know_the_model() -> None:
    """The caller's first, then those of plugins by name, then the built-in ones in their own order."""
    adapters = [mq.ParameterAdapter(nn.Linear, {"weight": axis}) for axis in range(4)]
    origins = (CALLER, mq.Origin("ant"), mq.Origin("ant"), mq.Origin("zebra"))
    wanted = [mq.Registered(adapter, origin) for adapter, origin in zip(adapters, origins, strict=True)]
    built_in = [mq.Registered(adapter, BUILT_IN) for adapter in BUILT_IN_ADAPTERS]
    for order in itertools.permutations(wanted):
        assert list(mq.Registry(adapters=[*built_in, *order]).adapters) == [*wanted, *built_in]
    assert known_adapters(adapters[:1], wanted[1:]) == [*adapters, *BUILT_IN_ADAPTERS]


@pytest.mark.parametrize("given", [[mq.ParameterAdapter], [3], mq.NameRule("a"), 3, [None]])
def test_what_is_no_adapter_is_refused(given: Any) -> None:
    """A class, a rule or a number in place of an adapter is refused with an example of one."""
    with pytest.raises(mq.ConfigError, match=r"is no adapter: give instances, such as ParameterAdapter"):
        known_adapters(given, [])


class Unnamed(mq.WeightAlgorithm):
    """An algorithm without a name."""

    def solve(self, problem: mq.WeightProblem) -> mq.Solution:
        raise NotImplementedError


class Twin(Unnamed):
    name = "twin"


class Auto(Unnamed):
    name = "auto"


class Gptq(Unnamed):
    name = "gptq"


ANT, BEE = mq.Origin("ant", "1.0"), mq.Origin("bee", "2.0")
CLASHES: list[tuple[dict[str, Any], str]] = [
    (
        {"algorithms": [mq.Registered(Twin(), BEE), mq.Registered(Twin(), ANT)]},
        "^plugin ant 1.0 and plugin bee 2.0 both bring an algorithm called 'twin'; rename one, or block a plugin$",
    ),
    (
        {"algorithms": [mq.Registered(Gptq(), ANT), *mq.Registry().algorithms]},
        "^monoquant itself and plugin ant 1.0 both bring an algorithm called 'gptq'",
    ),
    (
        {"observers": [mq.Registered(mq.ObserverKind("auto", print), ANT), *mq.Registry().observers]},
        "^monoquant itself and plugin ant 1.0 both bring an observer called 'auto'",
    ),
    (
        {"observers": [mq.Registered(mq.ObserverKind("", print), ANT)]},
        "^plugin ant 1.0: its observer ObserverKind has no",
    ),
    (
        {"algorithms": [mq.Registered(Unnamed(), ANT)]},
        "^plugin ant 1.0: its algorithm Unnamed has no name; give the cl",
    ),
    (
        {"algorithms": [mq.Registered(Auto(), ANT), mq.Registered(Unnamed(), BEE)]},
        "^plugin ant 1.0: its algorithm Auto cannot be called 'auto', which means something else; give .*; plugin bee",
    ),
]


@pytest.mark.parametrize(("entries", "text"), CLASHES)
def test_names_that_clash_are_refused(entries: dict[str, Any], text: str) -> None:
    """Everybody concerned is named, whatever the order."""
    for field, values in entries.items():
        for order in itertools.permutations(values):
            with pytest.raises(mq.PluginError, match=text):
                mq.Registry(**{field: order})


def test_names_are_looked_up_with_those_who_were_asked() -> None:
    """A name that nobody brings is refused before a model is seen, with what there is and who might have brought it."""
    twin = mq.Registered(Twin(), ANT)
    registry = mq.Registry(algorithms=[*mq.Registry().algorithms, twin], plugins=(ANT,), blocked=(BEE,))
    assert registry.algorithm("twin") is twin.value
    assert registry.algorithm("gptq") == mq.Gptq()
    own = Twin()
    assert registry.algorithm(own) is own
    passes = [mq.SkipSelectionPass(), mq.Int4PackPass(algorithm="hqq")]
    expected = (
        "^algorithm='hqq': give one of 'round_to_nearest', .*'twin', or an instance of a WeightAlgorithm; plugins "
        r"asked for more: ant 1\.0; blocked: bee 2\.0\. If a plugin brings it, install it and do not block it; a "
        r"Quantizer asks those in its registry, such as PluginManager\(\)\.registry\(scheme\)$"
    )
    with pytest.raises(mq.ConfigError, match=expected):
        mq.Quantizer(passes, registry)
    with pytest.raises(mq.ConfigError, match="plugins asked for more: none; blocked: none"):
        mq.Quantizer(passes)


@pytest.mark.parametrize("given", ["MinMax", "", "ema"])
def test_unknown_observers_are_refused_with_the_known_ones(given: str) -> None:
    """As soon as the Quantizer is built."""
    passes = [
        mq.SkipSelectionPass(),
        mq.CalibrationPass([1]),
        mq.Int8PackPass(activations="static", observer=given),
    ]
    with pytest.raises(mq.ConfigError, match="'minmax', 'moving_average', 'histogram', 'auto', or an instance"):
        mq.Quantizer(passes)


def test_objects_of_one_plugin_that_read_alike_keep_their_order() -> None:
    """Addresses in memory differ from run to run, and must not decide."""

    class Plain(mq.WarningCheck):
        __repr__ = object.__repr__

        def check(self, info: mq.QuantizationInfo, gate: mq.AccuracyGate) -> Iterable[mq.Finding]:
            return []

    checks = [mq.Registered(Plain(), ANT) for _ in range(20)]
    assert list(mq.Registry(warning_checks=checks).warning_checks) == checks


def test_registries_are_frozen() -> None:
    """A registry never changes while a run uses it."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        mq.Registry().skip_rules = ()  # type: ignore[misc]


@pytest.mark.parametrize("field", ["skip_rules", "warning_checks", "adapters"])
@pytest.mark.parametrize("entry", [mq.NameRule("a"), "a", None])
def test_entries_without_an_origin_are_refused(field: str, entry: Any) -> None:
    """A rule that is not wrapped in Registered is refused with the way to write it."""
    with pytest.raises(mq.ConfigError, match="Registered"):
        mq.Registry(**{field: [entry]})
