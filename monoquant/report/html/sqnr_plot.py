"""SQNR of every layer: a row per layer where they are few, a point per layer in model order where they are many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import attrs

from monoquant.report.html.axes import Axis
from monoquant.report.html.facts import counted
from monoquant.report.html.markup import Html, join, tag
from monoquant.report.records import LayerReport
from monoquant.report.table import format_db, worst_first

ROWS = 24  # layers that are named beside the plot
TITLES_BYTES = 110_000  # of points that say what they are; the rest, which is the best, is drawn alone
DRAWN = 3000  # layers of a plot, the worst ones
WIDTH = 960.0
THRESHOLDS = ((10.0, "critical"), (20.0, "warning"))


@attrs.frozen
class Point:
    """A layer that was measured.

    Args:
        index: Its number in the report, which its row in the table has as well.
        record: Its record.
    """

    index: int
    record: LayerReport

    @property
    def values(self) -> list[tuple[str, float]]:
        """Class of the mark, and dB, of what was measured."""
        both = ("w", self.record.weight_sqnr_db), ("o", self.record.output_sqnr_db)
        return [(kind, value) for kind, value in both if value is not None]

    @property
    def title(self) -> str:
        """What it is, for a person."""
        record = self.record
        figures = f"output {format_db(record.output_sqnr_db)} dB, weight {format_db(record.weight_sqnr_db)} dB"
        return f"{record.name}: {figures}, {record.scheme}"


def sqnr_plot(layers: Sequence[LayerReport]) -> Html | None:
    """The plot with its legend.

    Args:
        layers: All records, in model order.

    Returns:
        A figure; None where nothing was measured.
    """
    reduced = [Point(index, record) for index, record in enumerate(layers) if record.scheme is not None]
    points = [point for point in reduced if point.values]
    if not points:
        return None
    drawing = _rows(points) if len(points) <= ROWS else _scatter(points)
    return tag("figure", _legend(points), drawing, tag("figcaption", _caption(points, len(reduced) - len(points))))


def _legend(points: Sequence[Point]) -> Html:
    kinds = {kind for point in points for kind, _ in point.values}
    shown = [("o", "layer output, on calibration inputs"), ("w", "weight")]
    marks = [
        tag("span", tag("svg", _mark(kind, 6.0, 6.0, 4.0), width=12, height=12, aria_hidden="true"), f" {words}")
        for kind, words in shown
        if kind in kinds
    ]
    bands = [tag("span", tag("i", class_=f"swatch {kind}"), f" below {limit:g} dB") for limit, kind in THRESHOLDS]
    return tag("p", *marks, *reversed(bands), class_="legend")


def _caption(points: Sequence[Point], missing: int) -> str:
    values = [value for point in points for _, value in point.values]
    order = "worst first" if len(points) <= ROWS else "in model order"
    told = [f"SQNR in dB of {counted(len(points), 'layer')}, {order}; higher is better."]
    if any(kind == "w" for point in points for kind, _ in point.values):
        told.append("The bands are for outputs; weights are held against what their scheme can reach, expected below.")
    if strange := sum(value != value or value == -float("inf") for value in values):
        told.append(f"{counted(strange, 'value')} of nan or -inf: broken, drawn at the low end.")
    if exact := sum(value == float("inf") for value in values):
        told.append(f"{counted(exact, 'value')} of inf: exact, drawn at the high end.")
    if len(points) > DRAWN:
        told.append(f"Drawn are the worst {DRAWN:,}.")
    if missing:
        told.append(f"{counted(missing, 'reduced layer')} not measured.")
    return " ".join(told)


def _values(points: Iterable[Point]) -> list[float]:
    return [value for point in points for _, value in point.values]


def _rows(points: Sequence[Point]) -> Html:
    """Layers below each other with their names, the worst first."""
    order = {id(record): place for place, record in enumerate(worst_first(tuple(p.record for p in points)))}
    ranked = sorted(points, key=lambda point: order[id(point.record)])
    left, height = 330.0, 26.0 * len(points) + 34.0
    axis = Axis.of(_values(points), left, WIDTH - 16.0)
    bottom = height - 26.0
    parts = [*_bands(axis, lambda a, b: _rect(min(a, b), 4.0, abs(b - a), bottom - 4.0))]
    for tick in axis.ticks():
        x = axis(tick)
        parts += [_line(x, 4.0, x, bottom), _text(x, height - 8.0, f"{tick:g}", "middle")]
    for row, point in enumerate(ranked):
        y = 26.0 * row + 17.0
        name = _text(left - 12.0, y + 4.0, _shortened(point.record.name), "end", "name")
        marks = [(kind, axis(value), y) for kind, value in point.values]
        parts.append(_linked(point, [name, *_joined(marks), *(_mark(kind, x, y, 4.5) for kind, x, y in marks)]))
    return _svg(parts, height)


def _scatter(points: Sequence[Point]) -> Html:
    """Layers beside each other, in model order."""
    height, left, bottom = 340.0, 46.0, 306.0
    axis = Axis.of(_values(points), bottom, 10.0)
    right = WIDTH - 10.0
    parts = [*_bands(axis, lambda a, b: _rect(left, min(a, b), right - left, abs(b - a)))]
    for tick in axis.ticks():
        y = axis(tick)
        parts += [_line(left, y, right, y), _text(left - 8.0, y + 4.0, f"{tick:g}", "end")]
    ends = ((left, "first measured layer", "start"), (right, f"last of {len(points):,}", "end"))
    parts += [_text(x, height - 10.0, words, anchor) for x, words, anchor in ends]
    step = (right - left - 16.0) / (len(points) - 1)
    places = [(point, left + 8.0 + step * place) for place, point in enumerate(points)]
    return _svg([*parts, *_points(places, axis, 3.2 if len(points) <= 200 else 2.2)], height)


def _points(places: Sequence[tuple[Point, float]], axis: Axis, radius: float) -> Iterator[Html]:
    """Marks that say what they are, for the worst layers as far as there is room; before them those of the rest."""
    order = {id(record): place for place, record in enumerate(worst_first(tuple(p.record for p, _ in places)))}
    drawn: list[tuple[int, Html]] = []
    rest: dict[str, list[str]] = {"w": [], "o": []}
    used = 0
    for point, x in sorted(places, key=lambda one: order[id(one[0].record)])[:DRAWN]:
        if used < TITLES_BYTES:
            marks = [_mark(kind, x, axis(value), radius) for kind, value in point.values]
            drawn.append((point.index, _linked(point, marks)))
            used += len(drawn[-1][1].encode())
        else:
            for kind, value in point.values:
                rest[kind].append(f"M{x:.1f} {axis(value):.1f}h0")
    yield from (tag("path", d="".join(path), class_=f"{kind} rest") for kind, path in rest.items() if path)
    yield from (element for _, element in sorted(drawn))


def _joined(marks: Sequence[tuple[str, float, float]]) -> list[Html]:
    if len(marks) < 2:
        return []
    (_, x, y), (_, other, _) = marks
    return [_line(x, y, other, y, "join")]


def _linked(point: Point, marks: Iterable[Html]) -> Html:
    # Out of the order of the tab key: the table below has the same layers.
    return tag("a", tag("title", point.title), *marks, href=f"#l{point.index}", tabindex="-1")


def _bands(axis: Axis, rect: object) -> Iterator[Html]:
    previous = axis.start if axis.low < THRESHOLDS[0][0] else axis(THRESHOLDS[0][0])
    for limit, kind in THRESHOLDS:
        here = axis(min(limit, axis.high))
        yield tag("rect", **rect(previous, here), class_=kind)  # type: ignore[operator]
        previous = here


def _rect(x: float, y: float, width: float, height: float) -> dict[str, float]:
    return {"x": x, "y": y, "width": width, "height": height}


def _line(x: float, y: float, other_x: float, other_y: float, kind: str = "grid") -> Html:
    return tag("line", x1=x, y1=y, x2=other_x, y2=other_y, class_=kind)


def _text(x: float, y: float, words: str, anchor: str, kind: str = "tick") -> Html:
    return tag("text", words, x=x, y=y, text_anchor=anchor, class_=kind)


def _mark(kind: str, x: float, y: float, radius: float) -> Html:
    return tag("circle", class_=kind, cx=x, cy=y, r=radius)


def _shortened(name: str, longest: int = 44) -> str:
    if len(name) <= longest:
        return name
    return f"{name[: longest // 3]}…{name[-(longest - longest // 3 - 1) :]}"


def _svg(parts: Iterable[Html], height: float) -> Html:
    drawing = tag("svg", join(parts), viewBox=f"0 0 {WIDTH:g} {height:g}", role="img", aria_label="SQNR per layer")
    return tag("div", drawing, class_="scroll plot")
