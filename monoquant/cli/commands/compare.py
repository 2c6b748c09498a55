"""``monoquant compare``: what changed between two runs, or two models."""

from __future__ import annotations

from typing import Final

import attrs
import click

from monoquant.api import Gate
from monoquant.cli.exits import EXIT_FINE, EXIT_GATE
from monoquant.cli.opening import float_state, opened, report_of
from monoquant.cli.session import Session, command
from monoquant.cli.tables import verdict
from monoquant.gates.baseline import OF_SIZE, SIZE_UNCOMPARED, Baseline
from monoquant.opening import OpenedKind
from monoquant.report import QuantReport, compare_reports, compare_weights
from monoquant.report.plain import to_plain
from monoquant.report.wording import grouped, told
from monoquant.values import Finding, Severity

_ANYTHING: Final = 1e9
_WITH_REPORT: Final = (OpenedKind.QUANTIZED, OpenedKind.REPORT)


@command
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--weights", is_flag=True, help="Compare the weights, also where both have a report.")
@click.option("--max-drop", type=click.FloatRange(0), metavar="DB", help="Fail if a layer lost more than this.")
@click.option("--max-growth", type=click.FloatRange(0), metavar="PERCENT", help="Fail if the model grew by more.")
def compare(
    session: Session, first: str, second: str, weights: bool, max_drop: float | None, max_growth: float | None
) -> int:
    """Compare two reports, or two models: decisions, SQNR and bytes of each layer, from A to B.

    A and B are reports, quantized files or folders, or float models. Two that have reports are compared by them; others
    by their weights, dequantized where they are quantized, with A as the signal of the SQNR.
    """
    one, other = opened(session, first), opened(session, second)
    if not weights and one.kind in _WITH_REPORT and other.kind in _WITH_REPORT:
        return _compare_reports(
            session, first, report_of(session, one), report_of(session, other), max_drop, max_growth
        )
    if max_growth is not None or max_drop is not None:
        raise click.UsageError("--max-drop and --max-growth judge reports: give two that have one, and no --weights")
    before, after = float_state(session, one), float_state(session, other)
    with session.counted("comparing weights") as progress:
        found = compare_weights(before, after, progress)
    session.streams.show(str(found))
    session.streams.put(weights=found.to_dict())
    return EXIT_FINE


def _compare_reports(
    session: Session,
    name: str,
    before: QuantReport,
    after: QuantReport,
    max_drop: float | None,
    max_growth: float | None,
) -> int:
    difference = compare_reports(before, after)
    session.streams.show(str(difference))
    session.streams.put(difference=difference.to_dict())
    if max_drop is None and max_growth is None:
        return EXIT_FINE
    gate = Gate(
        baseline=Baseline(before, name),
        tolerance_db=_ANYTHING if max_drop is None else max_drop,
        size_tolerance_percent=_ANYTHING if max_growth is None else max_growth,
    )
    # Layers are no matter of growth, also where none of them can be compared.
    findings = [one for one in gate.judge(after) if max_drop is not None or one.code.startswith(OF_SIZE)]
    if max_growth is not None:  # a limit that judged nothing must not look like one that is kept
        findings = [_failing(one) if one.code in SIZE_UNCOMPARED else one for one in findings]
    failures = gate.failures(findings)
    session.streams.show("\n".join(["", *(told(*group) for group in grouped(findings)), verdict(len(failures))]))
    session.streams.put(passed=not failures, findings=to_plain(tuple(findings)))
    return EXIT_GATE if failures else EXIT_FINE


def _failing(finding: Finding) -> Finding:
    message = f"CRITICAL: --max-growth has nothing to judge. {finding.message}"
    return attrs.evolve(finding, severity=Severity.CRITICAL, message=message)
