"""How precision was shared out: the curve, what the caller's function said, and the layers worth more."""

from __future__ import annotations

from collections.abc import Sequence

from monoquant.report.html.facts import NOTHING, number, plain_table
from monoquant.report.html.markup import Html, join, tag
from monoquant.report.table import format_bytes, format_db
from monoquant.report.tradeoff import NOISE_WORDS, CurvePoint, LayerTradeoff, Tradeoff

POINTS, RANKED = 400, 20
WIDTH, HEIGHT, LEFT, BOTTOM = 960.0, 280.0, 70.0, 240.0


def tradeoff_section(tradeoff: Tradeoff) -> Html:
    """Curve and tables.

    Args:
        tradeoff: Of a run with a budget.
    """
    words = NOISE_WORDS[tradeoff.criterion]
    chosen = f"Chosen: {tradeoff.bits_per_weight:.3f} bits per weight of the layers weighed."
    caption = f"{chosen} The curve: estimated {words}, from all layers in their smallest form to all in their largest."
    figure = tag("figure", _curve(tradeoff), tag("figcaption", caption))
    return join([figure, _evaluations(tradeoff), *_ranking(tradeoff)])


def _curve(tradeoff: Tradeoff) -> Html | None:
    points = sorted({*tradeoff.curve}, key=lambda point: point.bits_per_weight)
    if len(points) < 2:
        return None
    kept = points[:: max(1, len(points) // POINTS)] + points[-1:]
    low, high = points[0].bits_per_weight, points[-1].bits_per_weight
    top = max(point.noise for point in points) or 1.0
    place = _placing(low, high, top)
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in map(place, kept))
    parts = [tag("path", d=path, class_="curve"), *_scale(low, high, top)]
    x = place(CurvePoint(min(max(tradeoff.bits_per_weight, low), high), 0.0))[0]
    parts += [
        tag("line", x1=x, y1=16.0, x2=x, y2=BOTTOM, class_="chosen"),
        tag("text", f"chosen {tradeoff.bits_per_weight:.3f}", x=x, y=12.0, text_anchor="middle", class_="figure"),
    ]
    drawing = tag("svg", join(parts), viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}", role="img", aria_label="Noise by budget")
    return tag("div", drawing, class_="scroll plot")


def _placing(low: float, high: float, top: float):  # type: ignore[no-untyped-def]
    def place(point: CurvePoint) -> tuple[float, float]:
        across = (point.bits_per_weight - low) / (high - low or 1.0)
        return LEFT + across * (WIDTH - LEFT - 40.0), BOTTOM - point.noise / top * (BOTTOM - 22.0)

    return place


def _scale(low: float, high: float, top: float) -> list[Html]:
    right = WIDTH - 40.0
    marks = [tag("line", x1=LEFT, y1=BOTTOM, x2=right, y2=BOTTOM, class_="grid")]
    for index in range(5):
        x, bits = LEFT + (right - LEFT) * index / 4, low + (high - low) * index / 4
        marks.append(tag("text", f"{bits:.2f}", x=x, y=BOTTOM + 18.0, text_anchor="middle", class_="tick"))
    marks.append(
        tag("text", "bits per weight", x=(LEFT + right) / 2, y=HEIGHT - 4.0, text_anchor="middle", class_="tick")
    )
    for share in (0.0, 0.5, 1.0):
        y = BOTTOM - share * (BOTTOM - 22.0)
        marks.append(tag("text", f"{top * share:.3g}", x=LEFT - 8.0, y=y + 4.0, text_anchor="end", class_="tick"))
    return marks


def _evaluations(tradeoff: Tradeoff) -> Html | None:
    if not tradeoff.evaluations:
        return None
    rows = [
        (f"{one.bits_per_weight:.3f}", f"{one.value:.6g}", "accepted" if one.accepted else "refused")
        for one in tradeoff.evaluations
    ]
    title = tag("h3", "Models that your function judged")
    return join([title, plain_table(["bits per weight", "value", "drop"], rows, frozenset({0, 1}))])


def _ranking(tradeoff: Tradeoff) -> Sequence[Html]:
    ranked = tradeoff.ranked()
    title = tag("h3", "Layers by what one more KiB would bring")
    table = plain_table(
        ["layer", "weights", "worth of 1 KiB", "chosen", "bytes", "output dB"],
        [_row(one) for one in ranked[:RANKED]],
        frozenset({1, 2, 4, 5}),
    )
    if len(ranked) <= RANKED:
        return [title, table]
    note = f"The first {RANKED} of {len(ranked):,}; the JSON form of this report has all, with all that was weighed."
    return [title, table, tag("p", note, class_="muted")]


def _row(one: LayerTradeoff) -> list[object]:
    chosen = one.options[one.chosen]
    worth = NOTHING if one.worth is None else f"{one.worth:.3g}"
    figures = [format_bytes(chosen.size), format_db(chosen.output_sqnr_db)]
    return [tag("code", one.layer or "(root)"), number(one.weights), worth, str(one.scheme), *figures]
