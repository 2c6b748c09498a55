"""``monoquant compare``: what changed between two runs, or two models."""

from __future__ import annotations

from collections.abc import Mapping

import click
from torch import Tensor

from monoquant.cli.exits import EXIT_FINE, EXIT_GATE
from monoquant.cli.opening import opened
from monoquant.cli.session import Session, command
from monoquant.opening import OpenedKind, OpenedModel
from monoquant.report import ReportDifference, compare_reports, compare_weights

_WITH_REPORT = (OpenedKind.QUANTIZED, OpenedKind.REPORT)


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
    by_reports = not weights and one.kind in _WITH_REPORT and other.kind in _WITH_REPORT
    if not by_reports:
        if max_growth is not None or max_drop is not None:
            raise click.UsageError(
                "--max-drop and --max-growth judge reports: give two that have one, and no --weights"
            )
        with session.stage("comparing weights"):
            found = compare_weights(_weights(one), _weights(other))
        session.streams.show(str(found))
        session.streams.put(weights=found.to_dict())
        return EXIT_FINE
    difference = compare_reports(one.report(), other.report())
    problems = _problems(difference, max_drop, max_growth)
    session.streams.show(str(difference))
    session.streams.put(difference=difference.to_dict(), problems=problems)
    for problem in problems:
        session.streams.fail(problem)
    return EXIT_GATE if problems else EXIT_FINE


def _weights(model: OpenedModel) -> Mapping[str, Tensor]:
    return model.dequantized_state() if model.kind is OpenedKind.QUANTIZED else model.state()


def _problems(difference: ReportDifference, max_drop: float | None, max_growth: float | None) -> list[str]:
    problems = []
    if max_drop is not None:
        problems += [
            f"layer {one.name!r} lost {one.loss_db} dB, {one.before_db:.2f} -> {one.after_db:.2f}: more than {max_drop:g}"
            for one in difference.worse_than(max_drop)
        ]
        unknown = [one.name for one in difference.by_status("incomparable")]
        if unknown:
            problems.append(f"layers that cannot be held against --max-drop: {', '.join(map(repr, unknown))}")
    before, after = difference.quantized_bytes
    if max_growth is not None and after > before * (1 + max_growth / 100):
        problems.append(f"the model grew by {100 * (after / before - 1):.2f} %, from {before} to {after} bytes")
    return problems
