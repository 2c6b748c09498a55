"""The report as text: a summary, a table with the worst layers first, the findings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence

from monoquant.errors import quoted
from monoquant.numerics.memory import format_bytes as format_bytes
from monoquant.report.records import LayerReport, ReportData, ValidationResult
from monoquant.report.wording import grouped, told
from monoquant.values import BUILT_IN, Action, Finding

HEADINGS = ("layer", "decision", "before", "after", "weight dB", "output dB", "why")
_ORDER = {Action.QUANTIZE: 0, Action.UNSUPPORTED: 1, Action.SKIP: 2}


def format_db(value: float | None, sign: bool = False) -> str:
    """Decibels with two decimals; ``-`` where nothing was measured.

    Args:
        value: dB, may be inf or nan, or None.
        sign: Whether a plus is written; default False.
    """
    if value is None:
        return "-"
    return f"{value:+.2f}" if sign else f"{value:.2f}"


def aligned(rows: Sequence[tuple[str, ...]], right: Collection[int] = ()) -> list[str]:
    """Rows of cells as lines of one table, a rule under the first.

    Args:
        rows: The headings, then the rest, all of one length; the last column is as wide as it likes.
        right: Columns whose cells stand at their right edge; default none.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    table = [
        "  ".join(
            [
                *(
                    cell.rjust(width) if column in right else cell.ljust(width)
                    for column, (cell, width) in enumerate(zip(row, widths, strict=False))
                ),
                row[-1],
            ]
        ).rstrip()
        for row in rows
    ]
    return [table[0], "-" * min(120, max(map(len, table))), *table[1:]]


def worst_first(records: tuple[LayerReport, ...]) -> list[LayerReport]:
    """Quantized layers by rising SQNR, then unsupported and skipped ones by falling size.

    Args:
        records: Layer records in any order.
    """
    return sorted(records, key=_rank)


def _rank(record: LayerReport) -> tuple[int, float, int]:
    sqnr = record.sqnr_db
    damage = math.inf if sqnr is None else (-math.inf if math.isnan(sqnr) else sqnr)
    return (_ORDER[record.action], damage, -record.bytes_after)


def render(report: ReportData) -> str:
    """The whole report as text, some lines wide and one line per layer.

    Args:
        report: The report.
    """
    rows = [HEADINGS, *(cells(record) for record in worst_first(report.layers))]
    return "\n".join(
        [*summary_lines(report), "", *aligned(rows), *finding_lines(report.findings), *closing_lines(report)]
    )


def cells(record: LayerReport) -> tuple[str, ...]:
    """A layer's row, in the order of HEADINGS.

    Args:
        record: Of the layer.
    """
    reason = f"{record.reason} by {record.algorithm}" if record.algorithm else record.reason
    if record.scheme is not None and str(record.scheme) not in reason:
        reason += f": {record.scheme}"
    why = "; ".join(filter(None, (reason, record.compute, record.remedy)))
    if record.aliases:
        why += f"; also named {', '.join(record.aliases)}"
    if record.origin != BUILT_IN:
        why += f" [{record.origin}]"
    sizes = format_bytes(record.bytes_before), format_bytes(record.bytes_after)
    return (record.name, record.action.value, *sizes, *map(format_db, _decibels(record)), why)


def _decibels(record: LayerReport) -> tuple[float | None, float | None]:
    return record.weight_sqnr_db, record.output_sqnr_db


def summary_lines(report: ReportData) -> list[str]:
    """What there is to say of the whole run.

    Args:
        report: The report.
    """
    counts = ", ".join(f"{len(report.by_action(action))} {action.value}" for action in _ORDER)
    ratio = report.original_bytes / max(report.quantized_bytes, 1)
    before, after = format_bytes(report.original_bytes), format_bytes(report.quantized_bytes)
    lines = [
        f"{report.scheme}: {counts}",
        *_mixture(report),
        f"parameters and buffers: {before} -> {after} ({ratio:.2f}x smaller)",
    ]
    outputs = [record.output_sqnr_db for record in report.layers if record.output_sqnr_db is not None]
    if outputs:
        worst = f"worst {format_db(_smallest(outputs))} dB"
        lines.append(f"layer outputs: median {format_db(_median_of(report))} dB, {worst} over {len(outputs)} layers")
    weights = [record.weight_sqnr_db for record in report.layers if record.weight_sqnr_db is not None]
    if weights:
        pooled = format_db(report.pooled_weight_sqnr_db)
        lines.append(f"weights: pooled {pooled} dB, worst {format_db(_smallest(weights))} dB")
    if report.calibration is not None:
        seen = report.calibration
        apart = f", outputs measured on {seen.held_out} of them that nothing was fitted to" if seen.held_out else ""
        lines.append(f"calibration: {seen.samples} samples in {seen.batches} batches{apart}")
        if seen.unseen_layers:
            lines.append(f"never called by it: {quoted(seen.unseen_layers)}")
    lines += [*_whole_model(report), *_validation(report.validation)]
    lines.append("with " + ", ".join(f"{name} {version}" for name, version in report.versions))
    return lines


def _whole_model(report: ReportData) -> list[str]:
    lines = []
    if report.comparison is not None:
        found = report.comparison
        lines.append(
            f"whole model: {found.measure} {found.value:.4f} over {found.rows} rows of {found.samples} samples"
        )
    if report.tradeoff is not None:
        lines.append(f"bits per weight of the layers weighed: {report.tradeoff.bits_per_weight:.3f}")
    return lines


def _validation(checked: ValidationResult | None) -> list[str]:
    """What is not as it should be; all is well where nothing is said."""
    if checked is None:
        return ["not validated"]
    failed = [] if checked.load_test_passed else ["FAILED: packed layers survive saving and loading"]
    failed += [] if checked.weight_range_valid else ["FAILED: dequantized weights are finite"]
    return [f"validation {text}" for text in (*failed, *checked.errors)]


def _mixture(report: ReportData) -> list[str]:
    """How many layers have which representation, where they differ."""
    counts = Counter(str(record.scheme) for record in report.layers if record.scheme is not None)
    listed = ", ".join(f"{count} {scheme}" for scheme, count in counts.most_common())
    return [f"layers: {listed}"] if len(counts) > 1 else []


def _median_of(report: ReportData) -> float | None:
    return report.validation.sqnr_db if report.validation is not None else None


def _smallest(values: list[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else min(values)


def closing_lines(report: ReportData) -> list[str]:
    """What the run followed: how precision was shared out, and the recipe; empty where there was neither.

    Args:
        report: The report.
    """
    return [*_tradeoff(report), *_recipe(report.recipe)]


def _tradeoff(report: ReportData) -> list[str]:
    return [] if report.tradeoff is None else ["", "how precision was shared out:", *str(report.tradeoff).splitlines()]


def _recipe(recipe: str | None) -> list[str]:
    return [] if recipe is None else ["", "recipe:", *(f"  {line}".rstrip() for line in recipe.splitlines())]


def finding_lines(findings: tuple[Finding, ...]) -> list[str]:
    """What a person should know, worst first; likes are told together.

    Args:
        findings: Of the report.
    """
    if not findings:
        return ["", "no findings"]
    return ["", "findings:", *(told(first, text) for first, text in grouped(findings))]
