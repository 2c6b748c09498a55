"""The sections of the page but for plots and the table of all layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from monoquant.report.html.facts import (
    TIMES,
    counted,
    decibels,
    folded,
    layer_names,
    number,
    plain_table,
    scheme_of,
    shape,
    signed,
    size,
)
from monoquant.report.html.markup import Html, join, tag
from monoquant.report.records import CalibrationFacts, LayerReport, ReportData, ValidationResult
from monoquant.report.table import format_db, worst_first
from monoquant.report.wording import alike
from monoquant.values import Action, Finding, Severity

WORST = 10
FINDINGS = 200  # kinds of findings that are listed

MEASURES = {"kl": "KL divergence of logits, nats", "cosine": "cosine of vectors"}


def verdict(report: ReportData) -> Html:
    """What the findings come to, in a line.

    Args:
        report: The report.
    """
    counts = {one: sum(finding.severity is one for finding in report.findings) for one in Severity}
    kind = next((one.name.lower() for one in sorted(Severity, reverse=True) if one and counts[one]), "good")
    told = [
        counted(counts[Severity.CRITICAL], "critical finding") if counts[Severity.CRITICAL] else "no critical findings",
        counted(counts[Severity.WARNING], "warning") if counts[Severity.WARNING] else "no warnings",
        *([counted(counts[Severity.INFO], "note")] if counts[Severity.INFO] else []),
    ]
    text = ", ".join(told)
    return tag("p", tag("a", text[0].upper() + text[1:], href="#findings"), class_=f"verdict {kind}")


def cards(report: ReportData) -> Html:
    """The figures that people look for first.

    Args:
        report: The report.
    """
    return tag("dl", *_cards(report), class_="cards")


def _cards(report: ReportData) -> Iterator[Html]:
    smaller = f"{report.original_bytes / max(report.quantized_bytes, 1):.2f}{TIMES}"
    sizes = join([size(report.original_bytes), " → ", size(report.quantized_bytes)])
    yield _card("Parameters and buffers", f"{smaller} smaller", sizes)
    measured_on, sqnr = report.headline
    if measured_on is None:
        yield _card("SQNR", "not measured", "run with validation")
    else:
        yield _card("SQNR", join([decibels(sqnr), " dB"]), _sqnr_words(report, measured_on))
    quantized = len(report.by_action(Action.QUANTIZE))
    others = (f"{len(report.by_action(one)):,} {one.value}" for one in (Action.SKIP, Action.UNSUPPORTED))
    yield _card("Layers", f"{quantized:,} quantized", ", ".join(others))
    if report.comparison is not None:
        found = report.comparison
        words = f"{MEASURES[found.measure]}, mean of {number(found.rows)} rows of {counted(found.samples, 'sample')}"
        yield _card("Whole model", f"{found.value:.4f}", words)
    if report.tradeoff is not None:
        yield _card("Budget", f"{report.tradeoff.bits_per_weight:.3f} bits", "per weight of the layers weighed")


def _sqnr_words(report: ReportData, measured_on: str) -> str:
    name = f"{measured_on}_sqnr_db"
    values = [value for record in report.layers if (value := getattr(record, name)) is not None]
    kind = "median over layer outputs" if measured_on == "output" else "pooled over all weights"
    worst = min(values, key=lambda value: (value == value, value), default=None)
    words = f"{kind}; worst {format_db(worst)} dB of {counted(len(values), 'layer')}"
    if measured_on == "output":
        words += f"; weights pooled {format_db(report.pooled_weight_sqnr_db)} dB"
    return words


def _card(title: str, figure: object, words: object) -> Html:
    return tag("div", tag("dt", title), tag("dd", tag("strong", figure), tag("span", words)))


def findings_section(findings: Sequence[Finding]) -> Html:
    """Findings by kind, the worst first, each with what to do.

    Args:
        findings: Of the report.
    """
    if not findings:
        return tag("p", "None.", class_="muted")
    groups = alike(findings)
    items = tag("ul", *map(_finding, groups[:FINDINGS]), class_="findings")
    if len(groups) <= FINDINGS:
        return items
    rest = f"and {len(groups) - FINDINGS:,} more kinds of findings, which the JSON form of this report has"
    return join([items, tag("p", rest, class_="muted")])


def _finding(group: Sequence[Finding]) -> Html:
    first, *rest = group
    kind = first.severity.name.lower()
    head = join([tag("b", kind, class_=f"badge {kind}"), tag("code", first.code), signed(first.origin)], " ")
    remedy = tag("p", tag("b", "What to do: "), first.remedy, class_="remedy") if first.remedy else None
    others = dict.fromkeys(finding.layer or "(root)" for finding in rest if finding.layer != first.layer)
    also = folded(f"likewise {counted(len(others), 'other layer')}", layer_names(others)) if others else None
    more = len(rest) if rest and not others else 0
    count = tag("p", f"And {more} more of its kind there.", class_="muted") if more else None
    return tag("li", tag("p", head), tag("p", first.message), remedy, count, also, class_=kind)


def worst_section(layers: Sequence[LayerReport]) -> Html:
    """The layers that lost most.

    Args:
        layers: All records.
    """
    measured = [record for record in worst_first(tuple(layers)) if record.sqnr_db is not None]
    if not measured:
        return tag("p", "No layer was measured.", class_="muted")
    places = {id(record): place for place, record in enumerate(layers)}
    rows = [
        [
            tag("a", tag("code", record.name), href=f"#l{places[id(record)]}"),
            decibels(record.output_sqnr_db),
            decibels(record.weight_sqnr_db, marked=record.output_sqnr_db is None),
            join([scheme_of(record), f"by {record.algorithm}" if record.algorithm else None], " "),
            record.kind,
            shape(record.shape),
        ]
        for record in measured[:WORST]
    ]
    headings = ["layer", "output dB", "weight dB", "scheme", "kind", "shape"]
    return plain_table(headings, rows, frozenset({1, 2, 5}))


def kept_section(layers: Sequence[LayerReport]) -> Html:
    """Layers that stayed float, by reason: those that could not be packed, then those that should not be.

    Args:
        layers: All records.
    """
    groups: dict[tuple[object, ...], list[LayerReport]] = {}
    for record in layers:
        if record.action is not Action.QUANTIZE:
            key = record.action, record.reason, record.rule, record.origin, record.remedy
            groups.setdefault(key, []).append(record)
    if not groups:
        return tag("p", "None: every layer was quantized.", class_="muted")
    ranked = sorted(groups.values(), key=lambda group: (group[0].action is Action.SKIP, -_bytes(group)))
    shown = [_kept_row(group) for group in ranked[:FINDINGS]]
    table = plain_table(["decision", "why", "layers", "bytes", "which"], shown, frozenset({2, 3}))
    more = len(ranked) - len(shown)
    return join([table, tag("p", f"and {more:,} more reasons", class_="muted") if more else None])


def _bytes(group: Sequence[LayerReport]) -> int:
    return sum(record.bytes_after for record in group)


def _kept_row(group: Sequence[LayerReport]) -> list[object]:
    first = group[0]
    remedy = tag("p", tag("b", "What to do: "), first.remedy, class_="remedy") if first.remedy else None
    rule = tag("p", tag("code", first.rule), class_="muted") if first.rule else None
    why = join([tag("p", first.reason), remedy, rule, signed(first.origin)])
    names = layer_names(record.name for record in group)
    which = names if len(group) <= 3 else folded(counted(len(group), "layer"), names)
    return [
        tag("span", first.action.value, class_=first.action.value),
        why,
        number(len(group)),
        size(_bytes(group)),
        which,
    ]


def calibration_section(seen: CalibrationFacts | None) -> Html:
    """What data was seen, and which layers it did not reach.

    Args:
        seen: The facts; None without calibration.
    """
    if seen is None:
        return tag("p", "No calibration data was given: only weights were looked at.", class_="muted")
    held = f" Nothing was fitted to {number(seen.held_out)} of them; outputs were measured on those."
    text = f"{counted(seen.samples, 'sample')} in {counted(seen.batches, 'batch').replace('batchs', 'batches')}."
    unseen = seen.unseen_layers
    told = [tag("p", text + (held if seen.held_out else ""))]
    if unseen:
        names = layer_names(name or "(root)" for name in unseen)
        head = tag("b", f"{counted(len(unseen), 'layer')} never called by this data: ", class_="low")
        told.append(tag("p", head, names))
    else:
        told.append(tag("p", "Every layer whose inputs were asked for was called."))
    return join(told)


def validation_section(checked: ValidationResult | None) -> Html:
    """Whether the result holds what it should.

    Args:
        checked: The validation; None without one.
    """
    if checked is None:
        return tag("p", "Not validated.", class_="muted")
    lines = [
        _check(checked.load_test_passed, "Every packed layer survived saving and loading with bit-equal outputs."),
        _check(checked.weight_range_valid, "Every dequantized weight is finite in its layer's dtype."),
    ]
    errors = [tag("li", text, class_="critical") for text in checked.errors]
    warnings = [tag("li", text, class_="warning") for text in checked.warnings]
    return tag("ul", *lines, *errors, *warnings, class_="checks")


def _check(passed: bool, words: str) -> Html:
    kind, mark = ("good", "passed") if passed else ("critical", "failed")
    return tag("li", tag("b", mark, class_=f"badge {kind}"), f" {words}")


def versions_section(report: ReportData) -> Html:
    """Packages and active plugins with their versions.

    Args:
        report: The report.
    """
    return plain_table(
        ["package or plugin", "version"], [(tag("code", name), v) for name, v in report.versions], frozenset()
    )


def recipe_section(recipe: str | None) -> Html:
    """The recipe as it was.

    Args:
        recipe: TOML text; None without one.
    """
    if recipe is None:
        return tag("p", "The run followed no recipe file; its options were given in code.", class_="muted")
    return tag("pre", tag("code", recipe), tabindex="0")
