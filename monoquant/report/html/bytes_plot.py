"""Where the bytes are, before and after: reduced by scheme, skipped, unsupported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import attrs

from monoquant.report.html.facts import number, plain_table, ratio, size
from monoquant.report.html.markup import Html, join, tag
from monoquant.report.records import LayerReport, ReportData
from monoquant.report.table import format_bytes
from monoquant.values import Action

COLOURS = 6
WIDTH, BAR = 960.0, 34.0


@attrs.frozen
class Part:
    """Layers with one kind of decision.

    Args:
        words: The decision, and the scheme.
        colour: Class of its colour.
        layers: Their records.
    """

    words: str
    colour: str
    layers: tuple[LayerReport, ...]

    @property
    def before(self) -> int:
        """Bytes of the layers as given."""
        return sum(record.bytes_before for record in self.layers)

    @property
    def after(self) -> int:
        """Bytes of the layers in the result."""
        return sum(record.bytes_after for record in self.layers)


def parts_of(layers: Sequence[LayerReport]) -> list[Part]:
    """Layers by decision and scheme: reduced ones, those with most bytes first, then skipped and unsupported ones.

    Args:
        layers: All records.
    """
    groups: dict[tuple[Action, str], list[LayerReport]] = {}
    for record in layers:
        scheme = "" if record.scheme is None else str(record.scheme)
        groups.setdefault((record.action, scheme), []).append(record)
    reduced = [(key, found) for key, found in groups.items() if key[0] is Action.QUANTIZE]
    reduced.sort(key=lambda one: -sum(record.bytes_before for record in one[1]))
    kept = [((action, ""), groups.get((action, ""), [])) for action in (Action.SKIP, Action.UNSUPPORTED)]
    return [
        Part(f"{action.value} {scheme}".rstrip(), _colour(action, place), tuple(found))
        for place, ((action, scheme), found) in enumerate([*reduced, *kept])
        if found
    ]


def _colour(action: Action, place: int) -> str:
    return f"c{place % COLOURS}" if action is Action.QUANTIZE else action.value


def bytes_plot(report: ReportData) -> Html:
    """Two bars of one scale, and the table of their parts.

    Args:
        report: The report.
    """
    parts = parts_of(report.layers)
    totals = [sum(part.before for part in parts), sum(part.after for part in parts)]
    drawing = tag(
        "svg",
        *_bar("before", [part.before for part in parts], parts, max(totals), 0.0),
        *_bar("after", [part.after for part in parts], parts, max(totals), BAR + 14.0),
        viewBox=f"0 0 {WIDTH:g} {2 * BAR + 16:g}",
        role="img",
        aria_label="Bytes by decision, before and after",
    )
    caption = join(_caption(report, totals))
    return tag("figure", tag("div", drawing, class_="scroll plot"), _table(parts), tag("figcaption", caption))


def _bar(words: str, sizes: Sequence[int], parts: Sequence[Part], largest: int, y: float) -> Iterator[Html]:
    left, right = 62.0, WIDTH - 110.0
    x = left
    yield tag("text", words, x=left - 10.0, y=y + BAR / 2 + 5.0, text_anchor="end", class_="tick")
    for part, count in zip(parts, sizes, strict=True):
        width = (right - left) * count / max(largest, 1)
        title = tag("title", f"{part.words}: {format_bytes(count)} {words}")
        yield tag("rect", title, x=x, y=y + 1.0, width=width, height=BAR, class_=part.colour)
        x += width
    yield tag("text", format_bytes(sum(sizes)), x=x + 10.0, y=y + BAR / 2 + 5.0, class_="figure")


def _table(parts: Sequence[Part]) -> Html:
    rows = []
    for part in parts:
        label = join([tag("i", class_=f"swatch {part.colour}"), f" {part.words}"])
        parameters = sum(record.parameters for record in part.layers)
        sizes = [size(part.before), size(part.after), ratio(part.before, part.after)]
        rows.append([label, number(len(part.layers)), number(parameters), *sizes])
    return plain_table(
        ["decision", "layers", "parameters", "before", "after", "smaller"], rows, frozenset({1, 2, 3, 4, 5})
    )


def _caption(report: ReportData, totals: Sequence[int]) -> Iterable[str]:
    yield "Parameters and buffers of each layer."
    if totals != [report.original_bytes, report.quantized_bytes]:
        before, after = format_bytes(report.original_bytes), format_bytes(report.quantized_bytes)
        yield (
            f" The model as a whole has {before} before and {after} after: memory that layers share counts once there, "
            "and what belongs to no layer counts as well."
        )
