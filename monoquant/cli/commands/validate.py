"""``monoquant validate``: is a quantized model sound, and good enough."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import click
import torch
from torch import Tensor

from monoquant.api import Gate
from monoquant.checks import AccuracyGate, SqnrCheck
from monoquant.cli.exits import EXIT_FINE, EXIT_GATE
from monoquant.cli.opening import float_state, opened, report_of
from monoquant.cli.recipe_options import recipe_options
from monoquant.cli.session import Session, command
from monoquant.cli.tables import verdict
from monoquant.opening import OpenedKind
from monoquant.recipes import Recipe, gate_of
from monoquant.report import QuantizationInfo, QuantReport, WeightDifference, compare_weights
from monoquant.report.plain import to_plain
from monoquant.report.table import format_db
from monoquant.report.wording import grouped, told
from monoquant.values import Action, Finding, Severity

_SAME_DB = 0.01
_RESCALED = "awq"
_THRESHOLDS = ("sqnr_warning_threshold", "sqnr_error_threshold")
_OF_THRESHOLDS = ("sqnr-critical", "sqnr-low", "sqnr-below-format", "sqnr-good")


@command
@click.argument("model")
@click.argument("original", required=False)
@recipe_options(data=False, scheme=False)
def validate(session: Session, model: str, original: str | None, recipe: Recipe) -> int:
    """Check a quantized MODEL, or a report, against limits; with ORIGINAL, its weights against the float model's.

    Every tensor is held against its SHA-256, every weight must be finite, and with ORIGINAL every layer must be as far
    from the float one as the report says. The findings of the report count as well. Exits with 1 if anything fails.
    """
    found = opened(session, model)
    report = report_of(session, found)
    gate = gate_of(recipe) or Gate()
    findings = [*_judged(report, recipe), *gate.judge(report)]
    if found.kind is OpenedKind.QUANTIZED:
        weights = float_state(session, found)
        findings += _not_finite(weights)
        if original is not None:
            source = float_state(session, opened(session, original), weights)
            with session.counted("comparing weights") as progress:
                difference = compare_weights(source, weights, progress)
            findings += _strange(difference, report, original)
    elif original is not None:
        raise click.UsageError(f"{model} is {found.described}, which has no weights: leave ORIGINAL out")
    failures = gate.failures(findings)
    _tell(session, report, findings, len(failures))
    return EXIT_GATE if failures else EXIT_FINE


def _judged(report: QuantReport, recipe: Recipe) -> list[Finding]:
    """What the report says of itself, by other thresholds where the recipe has some."""
    given = {name: value for name in _THRESHOLDS if (value := getattr(recipe.gate, name)) is not None}
    if not given:
        return list(report.findings)
    again = SqnrCheck().check(QuantizationInfo.from_report(report), AccuracyGate(**given))
    return [*(one for one in report.findings if one.code not in _OF_THRESHOLDS), *again]


def _not_finite(weights: Mapping[str, Tensor]) -> Iterator[Finding]:
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            message = f"CRITICAL: tensor {name!r} holds values that are not finite."
            yield Finding("not-finite", Severity.CRITICAL, message, remedy="Quantize again.")


def _strange(difference: WeightDifference, report: QuantReport, original: str) -> Iterator[Finding]:
    """Where weights are not what the report says of them."""
    lost = [one.name for one in difference.tensors if one.status in ("added", "removed", "shape-changed")]
    if lost:
        named = ", ".join(map(repr, lost[:5])) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        message = f"CRITICAL: {original} is not the model that was quantized: {named} are not in both, or not alike."
        yield Finding("not-the-original", Severity.CRITICAL, message, remedy="Give the float model it was made from.")
        return
    yield from _changed_floats(difference, report)
    energies = {one.name: one.energy for one in difference.tensors}
    for record in report.by_action(Action.QUANTIZE):
        names = [f"{record.layer}.{name}".lstrip(".") for name in record.weights]
        known = [energy for energy in map(energies.get, names) if energy is not None]
        if len(known) < len(names) or record.weight_sqnr_db is None or record.algorithm == _RESCALED:
            why = "its scales were moved" if record.algorithm == _RESCALED else "the report has no figure of it"
            message = f"The weights of layer {record.name!r} were not held against the float ones: {why}."
            yield Finding("not-compared", Severity.INFO, message, record.layer)
            continue
        measured = sum(known[1:], known[0]).sqnr_db
        if not (measured == record.weight_sqnr_db or math.isclose(measured, record.weight_sqnr_db, abs_tol=_SAME_DB)):
            message = (
                f"CRITICAL: the weights of layer {record.name!r} are {format_db(measured)} dB from the float ones, and "
                f"{format_db(record.weight_sqnr_db)} dB in the report."
            )
            yield Finding(
                "weights-differ", Severity.CRITICAL, message, record.layer, "Give the float model it was made from."
            )


def _changed_floats(difference: WeightDifference, report: QuantReport) -> Iterator[Finding]:
    """Weights that were left in float are those of the original, unless an algorithm moved scales into them."""
    if any(record.algorithm == _RESCALED for record in report.layers):
        return
    kept = {record.layer for record in report.layers if record.scheme is None}
    for one in difference.tensors:
        if one.status == "differs" and one.name.rpartition(".")[0] in kept:
            message = f"CRITICAL: {one.name!r} was left in float, and is not that of the float model."
            remedy = "Give the float model it was made from."
            yield Finding("weights-differ", Severity.CRITICAL, message, one.name.rpartition(".")[0], remedy)


def _tell(session: Session, report: QuantReport, findings: list[Finding], failures: int) -> None:
    ordered = sorted(findings, key=lambda finding: -finding.severity)
    kind, sqnr = report.headline
    head = f"{report.scheme}: {len(report.by_action(Action.QUANTIZE))} layers quantized"
    if kind is not None:
        head += f", {kind} SQNR {format_db(sqnr)} dB"
    session.streams.show("\n".join([head, *(told(*one) for one in grouped(ordered)), verdict(failures)]))
    session.streams.put(passed=not failures, findings=to_plain(tuple(ordered)))
