"""Reports as a terminal shows them; where there is none, as their own text."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from monoquant.report import QuantReport
from monoquant.report.table import HEADINGS, cells, finding_lines, summary_lines, worst_first

_SHOWN = 20
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
        return Text(str(report))
    records = worst_first(report.layers)
    shown = records if everything else records[:_SHOWN]
    rest = len(records) - len(shown)
    parts: list[RenderableType] = [
        Text("\n".join(summary_lines(report))),
        table(HEADINGS, [cells(one) for one in shown]),
    ]
    if rest:
        parts.append(Text(f"... and {rest} more layers; --verbose shows them", style="dim"))
    return Group(*parts, Text("\n".join(finding_lines(report.findings))))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table that fits a terminal.

    Args:
        headings: Of the columns; those that hold nothing but ``-`` are left out.
        rows: Cells.
    """
    made = Table(box=None, pad_edge=False, header_style="bold")
    kept = [index for index in range(len(headings)) if any(row[index] != "-" for row in rows)]
    for index in kept:
        is_number = headings[index] in _RIGHT
        made.add_column(headings[index], justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    for row in rows:
        made.add_row(*(Text(row[index], style=_STYLES.get(row[index], "")) for index in kept))
    return made
