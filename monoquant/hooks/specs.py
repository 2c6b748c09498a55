"""The hooks, with the signatures that plugins implement.

A hook named ``monoquant_register_...`` contributes value objects, once; monoquant asks them as often as it needs. The
other two watch. No hook is called per layer, and none in a forward pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import pluggy

from monoquant.adapters.base import ModuleAdapter
from monoquant.algorithms.base import WeightAlgorithm
from monoquant.checks import WarningCheck
from monoquant.context import QuantContext
from monoquant.formats.base import Exporter
from monoquant.kernels.base import Kernel
from monoquant.passes.base import Pass
from monoquant.ranges import ObserverKind
from monoquant.report.reporters import Reporter
from monoquant.rules import SkipRule
from monoquant.values import AnyScheme

PROJECT = "monoquant"
PREFIX = "monoquant_"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a plugin's implementation of a hook: put ``@monoquant.hookimpl`` above the function."""


@hookspec
def monoquant_register_skip_rules(scheme: AnyScheme) -> Iterable[SkipRule]:  # type: ignore[empty-body]
    """Contribute skip rules, asked by every SkipSelectionPass after the caller's own.

    Called once per registry, which is once per quantize(), never per layer.

    Args:
        scheme: What the run quantizes to; return other rules for other schemes if you like.

    Returns:
        Instances of subclasses of SkipRule.
    """


@hookspec
def monoquant_register_warning_checks(scheme: AnyScheme) -> Iterable[WarningCheck]:  # type: ignore[empty-body]
    """Contribute checks, run by every AccuracyWarningPass beside the built-in ones.

    Called once per registry, which is once per quantize().

    Args:
        scheme: What the run quantizes to.

    Returns:
        Instances of subclasses of WarningCheck.
    """


@hookspec
def monoquant_register_module_adapters() -> Iterable[ModuleAdapter]:  # type: ignore[empty-body]
    """Contribute adapters for kinds of modules that monoquant does not know, or knows less well.

    Called once per registry, which is once per quantize(), and once per load(); asked before the built-in ones.

    Returns:
        Instances of subclasses of ModuleAdapter, such as ParameterAdapter.
    """


@hookspec
def monoquant_register_algorithms() -> Iterable[WeightAlgorithm]:  # type: ignore[empty-body]
    """Contribute algorithms that callers choose by name, as in ``quantize(algorithm="hqq")``.

    Called once per registry, which is once per quantize(). Nothing changes for callers who do not name one.

    Returns:
        Instances of subclasses of WeightAlgorithm, each with a ``name`` that no other algorithm has.
    """


@hookspec
def monoquant_register_observers() -> Iterable[ObserverKind]:  # type: ignore[empty-body]
    """Contribute observers of activation ranges that callers choose by name, as in ``observer="percentile"``.

    Called once per registry, which is once per quantize(). An observer has state, one for each layer; what is
    registered is its name and how a fresh one is made.

    Returns:
        Instances of ObserverKind, each with a ``name`` that no other observer has.
    """


@hookspec
def monoquant_register_passes(scheme: AnyScheme) -> Iterable[Pass]:  # type: ignore[empty-body]
    """Contribute passes that take part in every run, in the places that they declare.

    Called once per registry, which is once per quantize(). A pass stands right behind all that it ``follows`` or comes
    ``after``, or right before what it names in ``before``; one that says nothing of the kind is an error. A pass whose
    predecessor the caller did not ask for (calibration, say) is left out. The report tells either. A pass that is to
    run only when somebody wants it needs no hook: callers import it and put it into their Quantizer.

    Args:
        scheme: What the run quantizes to.

    Returns:
        Instances of subclasses of Pass.
    """


@hookspec
def monoquant_register_kernels() -> Iterable[Kernel]:  # type: ignore[empty-body]
    """Contribute kernels: what multiplies with packed matrices, and what rounds and packs weights.

    Called once per registry, which is once per quantize(), and once per load() and choose_kernels(). Each is tried on
    small matrices when it is first seen; one that computes something else than it should is left out, and that is told.
    The one of the largest preference that can do the work is chosen for each layer.

    Returns:
        Instances of subclasses of ProductKernel or RoundingKernel, each with a ``name`` that no other kernel has; their
        classes are defined in modules, and take no arguments.
    """


@hookspec
def monoquant_register_exporters() -> Iterable[Exporter]:  # type: ignore[empty-body]
    """Contribute file formats that callers choose in ``save(result, path, format=...)``, or by the end of the path.

    Called once per save().

    Returns:
        Instances of subclasses of Exporter, each with a ``name`` that no other exporter has.
    """


@hookspec
def monoquant_register_reporters() -> Iterable[Reporter]:  # type: ignore[empty-body]
    """Contribute forms of the report that callers choose in render_report() and save_report().

    Called once per render_report() or save_report().

    Returns:
        Instances of subclasses of Reporter, each with a ``name`` that no other reporter has.
    """


@hookspec
def monoquant_before_pass(pass_: Pass, context: QuantContext) -> None:
    """See that a pass is about to work; change nothing.

    Called right before ``requires``, ``run`` and ``ensures`` of every pass, in the order in which passes run; not for
    planning, and not for a dry run. What it changes in the context or in the model's parameters is an error, as far as
    that is cheap to see; what it raises fails the run, with the model left as it was.

    Args:
        pass_: The pass, a frozen value.
        context: What passes share; read it only, and keep no reference to it.
    """


@hookspec
def monoquant_after_pass(pass_: Pass, context: QuantContext, error: BaseException | None) -> None:
    """See that a pass has worked, or failed; change nothing.

    Called once for every pass that was begun, right after its ``ensures``; and after a failure, Ctrl-C included, before
    the error reaches the caller. The rules are those of monoquant_before_pass.

    Args:
        pass_: The pass, a frozen value.
        context: What passes share; read it only, and keep no reference to it.
        error: What the pass, or a plugin's monoquant_before_pass, raised; None if all went well.
    """


def hook_names() -> list[str]:
    """All hooks, by name."""
    return sorted(name for name in globals() if name.startswith(PREFIX))


def arguments_of(hook: str) -> list[str]:
    """Names of what a hook passes, in order.

    Args:
        hook: Its name.
    """
    return list(inspect.signature(globals()[hook]).parameters)
