"""The hooks that plugins implement."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import monoquant as mq
from monoquant.hooks import specs

SCHEME = {"scheme": mq.Scheme | mq.HalfScheme}
WATCHED: dict[str, Any] = {"pass_": mq.Pass, "context": mq.QuantContext}

SIGNATURES: dict[str, tuple[dict[str, Any], Any]] = {
    "monoquant_register_skip_rules": (SCHEME, Iterable[mq.SkipRule]),
    "monoquant_register_warning_checks": (SCHEME, Iterable[mq.WarningCheck]),
    "monoquant_register_module_adapters": ({}, Iterable[mq.ModuleAdapter]),
    "monoquant_register_algorithms": ({}, Iterable[mq.WeightAlgorithm]),
    "monoquant_register_observers": ({}, Iterable[mq.ObserverKind]),
    "monoquant_register_passes": (SCHEME, Iterable[mq.Pass]),
    "monoquant_register_kernels": ({}, Iterable[mq.Kernel]),
    "monoquant_register_exporters": ({}, Iterable[mq.Exporter]),
    "monoquant_register_reporters": ({}, Iterable[mq.Reporter]),
    "monoquant_before_pass": (WATCHED, type(None)),
    "monoquant_after_pass": ({**WATCHED, "error": BaseException | None}, type(None)),
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
    assert "\nCalled " in documentation
    assert ("Returns:" in documentation) == name.startswith("monoquant_register_")
    for argument in SIGNATURES[name][0]:
        assert f"\n    {argument}: " in documentation


def test_every_hook_has_a_test_of_its_name() -> None:
    """Somebody who wants to know what a hook does finds it done, in tests/hooks/test_hooks.py."""
    text = Path(__file__).with_name("test_hooks.py").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^def test_(monoquant_\w+)\(", text, re.MULTILINE)) == specs.hook_names()


def test_the_reference_has_the_exact_signature_of_every_hook() -> None:
    """And of no other: docs/plugins.md shows each as it stands in the source, annotations included."""
    documentation = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
    reference = documentation.split("\n## The hooks\n")[1].split("\n## ")[0]
    shown = re.findall(r"^def (monoquant_\w+\(.*)$", reference, re.MULTILINE)
    lines = [inspect.getsource(hook).split("def ", 1)[1].split("\n")[0] for hook in _hooks().values()]
    assert shown == [line.split(":  #")[0].removesuffix(":") + ": ..." for line in lines]


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
