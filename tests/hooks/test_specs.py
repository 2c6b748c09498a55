"""The hooks that plugins implement."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, get_type_hints

import pytest

import monoquant as mq
from monoquant.hooks import specs

SIGNATURES: dict[str, tuple[dict[str, Any], Any]] = {
    "monoquant_register_skip_rules": ({"scheme": mq.Scheme | mq.HalfScheme}, Iterable[mq.SkipRule]),
    "monoquant_register_warning_checks": ({"scheme": mq.Scheme | mq.HalfScheme}, Iterable[mq.WarningCheck]),
    "monoquant_register_module_adapters": ({}, Iterable[mq.ModuleAdapter]),
}


def _hooks() -> dict[str, Callable[..., Any]]:
    return {name: value for name, value in vars(specs).items() if hasattr(value, "monoquant_spec")}


def test_every_hook_is_known_here() -> None:
    """A hook cannot be added, renamed or removed without a test that says so."""
    assert set(_hooks()) == set(SIGNATURES)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature_is_exact(name: str) -> None:
    """Names and types of arguments and the result are a promise to plugins."""
    arguments, result = SIGNATURES[name]
    assert get_type_hints(_hooks()[name]) == {**arguments, "return": result}
    assert list(inspect.signature(_hooks()[name]).parameters) == list(arguments)


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_are_plain(name: str) -> None:
    """Older pluggy drops arguments that have a default or are keyword-only, so hooks have none."""
    for parameter in inspect.signature(_hooks()[name]).parameters.values():
        assert parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert parameter.default is inspect.Parameter.empty


@pytest.mark.parametrize("name", SIGNATURES)
def test_every_hook_is_documented(name: str) -> None:
    """The docstring tells when the hook is called, what it gets and what it returns."""
    documentation = inspect.getdoc(_hooks()[name]) or ""
    assert "Called once per Quantizer" in documentation
    assert "Returns:" in documentation
    for argument in SIGNATURES[name][0]:
        assert f"{argument}:" in documentation


def test_hooks_start_with_the_prefix() -> None:
    """The prefix is what makes a forgotten marker visible."""
    assert all(name.startswith(specs.PREFIX) for name in _hooks())


def test_hookimpl_marks_and_returns_the_function() -> None:
    """The marker is an attribute; the function itself stays callable and unchanged."""

    def monoquant_register_skip_rules(scheme: mq.Scheme) -> list[mq.SkipRule]:
        return [mq.NameRule(str(scheme.bits))]

    marked = mq.hookimpl(monoquant_register_skip_rules)
    assert marked is monoquant_register_skip_rules
    assert hasattr(marked, f"{specs.PROJECT}_impl")
    assert marked(mq.Scheme()) == [mq.NameRule("4")]
