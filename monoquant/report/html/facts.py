"""Figures of a report in the words of its page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from monoquant.report.html.markup import Html, escape, join, tag
from monoquant.report.records import LayerReport
from monoquant.report.table import format_bytes
from monoquant.values import BUILT_IN, Origin

TIMES, NOTHING = "\u00d7", "\u2013"
NAMED = 40  # layers that a list names before it only counts them


def number(value: float) -> str:
    """A number with separators between thousands.

    Args:
        value: Any.
    """
    return f"{value:,}"


def counted(count: int, what: str) -> str:
    """``"1 layer"``, ``"2 layers"``.

    Args:
        count: How many.
        what: Of what, in the singular.
    """
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def ratio(before: int, after: int) -> str:
    """How many times smaller, or a dash where nothing is left.

    Args:
        before: Bytes.
        after: Bytes.
    """
    return f"{before / after:.2f}{TIMES}" if after else NOTHING


def decibels(value: float | None, marked: bool = True) -> Html:
    """A cell's content: dB with two decimals, marked where it is below the thresholds or no number.

    Args:
        value: dB, may be inf or nan, or None.
        marked: Whether to mark it; default True.
    """
    if value is None:
        return Html(NOTHING)
    # nan is below no threshold, and worse than any.
    kind = "bad" if not value >= 10 else "low" if not value >= 20 else ""
    return tag("b", f"{value:.2f}", class_=kind) if kind and marked else Html(f"{value:.2f}")


def size(count: int) -> Html:
    """Bytes with a unit; how many exactly is shown when pointed at.

    Args:
        count: Bytes.
    """
    return tag("span", format_bytes(count), title=f"{count:,} bytes")


def shape(sizes: Sequence[int]) -> str:
    """The sizes of a tensor with signs of multiplication between them; a lone number has none.

    Args:
        sizes: Of a tensor.
    """
    return TIMES.join(map(str, sizes)) or NOTHING


def signed(origin: Origin) -> Html | None:
    """Who said so, where it was not monoquant itself.

    Args:
        origin: Of a decision or a finding.
    """
    return None if origin == BUILT_IN else tag("span", str(origin), class_="origin")


def layer_names(names: Iterable[str]) -> Html:
    """Layers in a list that names the first ones and counts the rest.

    Args:
        names: As people read them.
    """
    every = [*names]
    more = len(every) - NAMED
    shown = [tag("code", name) for name in every[:NAMED]]
    rest = [escape(f"and {counted(more, 'more layer')}")] if more > 0 else []
    return join([*shown, *rest], ", ")


def folded(summary: str, content: Html) -> Html:
    """Something that is shown when asked for.

    Args:
        summary: What stands there before.
        content: What is shown.
    """
    return tag("details", tag("summary", summary), content)


def plain_table(headings: Sequence[str], rows: Iterable[Sequence[object]], numbers: frozenset[int]) -> Html:
    """A small table.

    Args:
        headings: One per column.
        rows: Cells, HTML or text.
        numbers: Columns that stand at their right edge.
    """
    kinds = ["n" if column in numbers else None for column in range(len(headings))]
    head = join(tag("th", one, class_=kind, scope="col") for one, kind in zip(headings, kinds, strict=True))
    body = [join(tag("td", one, class_=kind) for one, kind in zip(row, kinds, strict=True)) for row in rows]
    table = tag("table", tag("thead", tag("tr", head)), tag("tbody", *(tag("tr", row) for row in body)))
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=", ".join(headings))


def scheme_of(record: LayerReport) -> str:
    """A layer's representation in words.

    Args:
        record: Of the layer.
    """
    return NOTHING if record.scheme is None else str(record.scheme)
