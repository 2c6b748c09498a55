"""Reports as a terminal shows them; where there is none, as their own text."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from monoquant.cli.streams import printable
from monoquant.report import QuantReport
from monoquant.report.table import HEADINGS, cells, closing_lines, finding_lines, summary_lines, worst_first

_SHOWN = 20
_GAP = 2
_LEAST = 12
_DISPENSABLE = ("why", "also named", "before", "decision", "dtype", "kind", "shape")
"""Columns that are cut, or left out, where there is too little room; the first one first."""
_STYLES = {"quantize": "green", "skip": "dim", "unsupported": "yellow"}
_RIGHT = frozenset({"before", "after", "weight dB", "output dB", "parameters", "bytes"})


def report_view(report: QuantReport, console: Console, *, everything: bool) -> RenderableType:
    """A report for a console.

    Args:
        report: The report.
        console: Where it will be shown.
        everything: Whether all layers are shown, rather than the worst ones.
    """
    if not console.is_terminal:
        return Text(printable(str(report)))
    records = worst_first(report.layers)
    shown = records if everything else records[:_SHOWN]
    rest = len(records) - len(shown)
    parts: list[RenderableType] = [
        Text(printable("\n".join(summary_lines(report)))),
        table(HEADINGS, [cells(one) for one in shown], console, everything=everything),
    ]
    if rest:
        parts.append(Text(f"... and {rest} more layers; --verbose shows them", style="dim"))
    closing = [*finding_lines(report.findings), *(closing_lines(report) if everything else ())]
    return Group(*parts, Text(printable("\n".join(closing))))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], console: Console, *, everything: bool) -> Table:
    """A table that fits a terminal.

    Args:
        headings: Of the columns; those that hold nothing but ``-`` are left out.
        rows: Cells.
        console: Where it will be shown.
        everything: Whether the last column is told on as many lines as it needs, rather than cut to one.
    """
    made = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    widths = {name: max(len(printable(row[index])) for row in (headings, *rows)) for index, name in enumerate(headings)}
    kept = _fitting({name: widths[name] for index, name in enumerate(headings) if _tells(rows, index)}, console.width)
    for name in kept:
        is_last = name == headings[-1]
        made.add_column(
            name,
            justify="right" if name in _RIGHT else "left",
            no_wrap=not (is_last and everything),
            overflow="fold" if is_last and everything else "ellipsis",
            min_width=None if is_last else widths[name],
            max_width=max(kept[name], len(name)),
        )
    for row in rows:
        made.add_row(
            *(
                Text(printable(row[index]), style=_STYLES.get(row[index], ""))
                for index, name in enumerate(headings)
                if name in kept
            )
        )
    return made


def _tells(rows: Sequence[Sequence[str]], index: int) -> bool:
    return any(row[index] != "-" for row in rows)


def _fitting(widths: dict[str, int], available: int) -> dict[str, int]:
    """Widths of the columns that there is room for; names and figures are what people look for."""
    kept = dict(widths)
    for name in _DISPENSABLE:
        others = sum(width + _GAP for other, width in kept.items() if other != name)
        if name in kept and others + kept[name] > available:
            left = available - others
            kept = {**kept, name: left} if left >= _LEAST else {other: kept[other] for other in kept if other != name}
    return kept


def verdict(failures: int) -> str:
    """Whether a gate was passed, as the last line says it.

    Args:
        failures: Findings that fail.
    """
    return f"failed: {failures} finding{'' if failures == 1 else 's'}" if failures else "passed"
