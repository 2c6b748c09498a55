"""The page: sections in order, style and script inside, everything else forbidden."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from importlib.resources import files

from monoquant.report.html.bytes_plot import bytes_plot
from monoquant.report.html.layer_table import layer_table
from monoquant.report.html.markup import Html, join, tag
from monoquant.report.html.sections import (
    calibration_section,
    cards,
    findings_section,
    kept_section,
    recipe_section,
    validation_section,
    verdict,
    versions_section,
    worst_section,
)
from monoquant.report.html.sqnr_plot import sqnr_plot
from monoquant.report.html.tradeoff_plot import tradeoff_section
from monoquant.report.records import ReportData

READING = (
    "SQNR is the energy of the signal over that of the error, in decibels: 6 dB more is half the error. It is measured "
    "on the outputs of each layer where calibration inputs were seen, which is what counts, and on the weights. Below "
    "20 dB is worth a look, below 10 dB is critical by default."
)


def render_page(report: ReportData) -> str:
    """The whole report as one HTML file.

    Args:
        report: The report.

    Returns:
        A page that loads nothing, and that is complete without JavaScript.
    """
    style, script = _part("style.css"), _part("script.js")
    head = [
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_policy(style, script)}">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        Html('<link rel="icon" href="data:,">'),
        tag("title", f"monoquant report: {report.scheme}"),
        tag("style", style),
    ]
    sections = list(_sections(report))
    links = [tag("a", title, href=f"#{name}") for name, title, _ in sections]
    body = [
        tag("header", tag("p", "monoquant report", class_="kicker"), tag("h1", str(report.scheme)), verdict(report)),
        cards(report),
        tag("nav", *links, aria_label="Sections"),
        tag("main", *(_section(name, title, content) for name, title, content in sections)),
        tag("footer", tag("p", READING)),
        tag("script", script),
    ]
    page = tag("html", tag("head", join(head, "\n")), "\n", tag("body", join(body, "\n")), lang="en")
    return f"<!doctype html>\n{page}\n"


def _sections(report: ReportData) -> Iterator[tuple[str, str, Html]]:
    """Anchor, title and content of each section."""
    yield "findings", "Findings", findings_section(report.findings)
    yield "worst", "Worst layers", worst_section(report.layers)
    plot = sqnr_plot(report.layers)
    if plot is not None:
        yield "sqnr", "SQNR by layer", plot
    yield "bytes", "Bytes by decision", bytes_plot(report)
    yield "all", "All layers", layer_table(report)
    yield "kept", "Skipped and unsupported layers", kept_section(report.layers)
    yield "calibration", "Calibration", calibration_section(report.calibration)
    yield "validation", "Validation", validation_section(report.validation)
    if report.tradeoff is not None:
        yield "tradeoff", "How precision was shared out", tradeoff_section(report.tradeoff)
    yield "versions", "Plugins and versions", versions_section(report)
    yield "recipe", "Recipe", recipe_section(report.recipe)


def _section(name: str, title: str, content: Html) -> Html:
    return tag("section", tag("h2", title, id=f"{name}-title"), content, id=name, aria_labelledby=f"{name}-title")


def _part(name: str) -> Html:
    return Html(files("monoquant.report.html").joinpath(name).read_text(encoding="utf-8"))


def _policy(style: str, script: str) -> str:
    """Nothing is loaded, and nothing runs or paints but what this file brings."""
    allowed = (f"style-src '{_digest(style)}'", f"script-src '{_digest(script)}'", "img-src data:")
    return "; ".join(["default-src 'none'", *allowed, "base-uri 'none'", "form-action 'none'"])


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
