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
