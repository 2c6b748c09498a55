"""The page as text: nothing in a report becomes markup, nothing is loaded, and it stays small."""

from __future__ import annotations

import base64
import hashlib
import math
from html.parser import HTMLParser
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import monoquant as mq
from monoquant.report.html.markup import Html, escape, tag
from monoquant.report.tradeoff import CurvePoint, Evaluation, LayerTradeoff, SchemeCost

INT4 = mq.Scheme()
LAYER = mq.LayerReport(
    layer="a",
    kind="Linear",
    shape=(64, 32),
    parameters=2048,
    action=mq.Action.QUANTIZE,
    reason="Linear weight to int4",
    bytes_before=8192,
    bytes_after=1216,
    scheme=INT4,
    weights=("weight",),
    algorithm="clip_search",
    weight_sqnr_db=17.0,
)
KEPT = attrs.evolve(
    LAYER, layer="k", action=mq.Action.SKIP, scheme=None, weights=(), weight_sqnr_db=None, algorithm="", reason="no"
)
MEGABYTE = 1_000_000


class Page(HTMLParser):
    """What a browser sees: elements with attributes, the text outside of style and script, cells of the big table."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.sources: dict[str, str] = {}
        self._raw: str | None = None
        self.feed(page)
        self.close()

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for element, attributes in self.elements if element == name]

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self._raw = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self._raw = None

    def handle_data(self, data: str) -> None:
        if self._raw is None:
            self.pieces.append(data)
        else:
            self.sources[self._raw] = data


def report_of(*layers: mq.LayerReport, **fields: Any) -> mq.QuantReport:
    known = {"scheme": INT4, "layers": layers, "findings": (), "original_bytes": 16384, "quantized_bytes": 9408}
    return mq.QuantReport(**known | fields)


def page_of(report: mq.QuantReport) -> str:
    return mq.render_report(report, "html", plugins=False)


HOSTILE = (
    '<script>alert("x")</script>',
    "' onmouseover='alert(1)",
    '"><img src=x onerror=alert(1)>',
    "</style></title><svg/onload=alert(1)>",
    "&lt;b&gt; &amp;",
    "</script><script>alert(1)</script>",
)
texts = st.sampled_from(HOSTILE) | st.text(max_size=30)
origins = st.builds(mq.Origin, texts, texts)
records = st.builds(
    mq.LayerReport,
    layer=texts,
    kind=texts,
    shape=st.just((4, 4)),
    parameters=st.just(16),
    action=st.sampled_from(mq.Action),
    reason=texts,
    bytes_before=st.just(64),
    bytes_after=st.just(8),
    rule=texts,
    origin=origins,
    remedy=texts,
    scheme=st.none() | st.just(INT4),
    weights=st.tuples(texts),
    compute=texts,
    algorithm=texts,
    output_sqnr_db=st.none() | st.floats(),
    aliases=st.tuples(texts),
)
findings = st.builds(mq.Finding, texts, st.sampled_from(mq.Severity), texts, st.none() | texts, texts, origins)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(records, min_size=1, max_size=3).map(tuple),
    st.lists(findings, max_size=3).map(tuple),
    st.tuples(texts, texts),
    texts,
)
def test_no_text_becomes_markup(layers: Any, findings: Any, version: tuple[str, str], recipe: str) -> None:
    """Whatever names and messages hold, the page has the elements that an innocent report gives it."""
    report = report_of(
        *layers,
        findings=findings,
        versions=(version,),
        recipe=recipe,
        calibration=mq.CalibrationFacts(1, 1, tuple(one.layer for one in layers)),
        validation=mq.ValidationResult(errors=[recipe], warnings=[recipe]),
    )
    text = page_of(report)
    page = Page(text)
    text.encode()
    names = [name for name, _ in page.elements]
    assert (names.count("script"), names.count("style")) == (1, 1)
    assert not {"img", "iframe", "object", "embed", "base"} & set(names)
    for name, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on") or key in ("style", "src")]
        assert name == "link" or (attributes.get("href") or "#").startswith("#")
    for shown in (layers[0].layer, layers[0].reason, version[0]):
        assert Page(str(escape(shown))).text in page.text


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_shown_as_they_are(name: str) -> None:
    """Text in, the same text out."""
    assert name in Page(page_of(report_of(attrs.evolve(LAYER, layer=name), KEPT))).text


@pytest.mark.parametrize("strange", ["\x00", "\x1b", "\u202e", "\ud800", "\uffff", "\x85"])
def test_what_would_deceive_is_spelt_out(strange: str) -> None:
    """Control characters and marks that turn the direction of text are shown, not obeyed."""
    page = page_of(report_of(attrs.evolve(LAYER, layer=f"a{strange}b")))
    assert strange not in page
    assert f"a{strange.encode('unicode_escape').decode()}b" in page


def test_markup_escapes_unless_told_otherwise() -> None:
    """Attributes and content alike; False and None leave an attribute out."""
    made = tag("p", "<", Html("<b>"), None, title='"', hidden=True, open=False, class_=None, data_v=1.0)
    assert made == '<p title="&quot;" hidden data-v="1">&lt;<b></p>'


def test_the_policy_forbids_everything_but_what_is_inside() -> None:
    """Hashes in the policy are those of the one style and the one script."""
    page = Page(page_of(report_of(LAYER)))
    (policy,) = [one["content"] for one in page.of("meta") if "http-equiv" in one]
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for name in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.sources[name].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert "http" not in page.sources["style"] + page.sources["script"]
    assert "url(" not in page.sources["style"]


def many(count: int, name: str = "model.layers.{0}.block_sparse_moe.experts.{0}.w1") -> mq.QuantReport:
    layers = [
        attrs.evolve(
            LAYER if index % 4 else KEPT,
            layer=name.format(index),
            compute="multiplied by torch-bf16, relative error up to 0.01",
            output_sqnr_db=float(index % 40) if index % 4 else None,
            remedy="Give an adapter." * 4,
            origin=mq.Origin("monoquant-moe", "0.1.0"),
        )
        for index in range(count)
    ]
    found = [mq.Finding("low", mq.Severity.WARNING, f"{one.layer} is low.", one.layer, "Do it.") for one in layers]
    tradeoff = mq.Tradeoff(
        "kl",
        tuple(LayerTradeoff(one.layer, 9, (SchemeCost(INT4, 9),), 0, 0.5) for one in layers),
        tuple(CurvePoint(4 + index / count, 1 / (index + 1)) for index in range(count)),
        4.5,
    )
    unseen = mq.CalibrationFacts(9, 9, tuple(one.layer for one in layers))
    return report_of(*layers, findings=tuple(found), tradeoff=tradeoff, calibration=unseen)


def test_two_thousand_layers_stay_below_a_megabyte() -> None:
    """Each of them in the table, and each in the plot."""
    text = page_of(many(2000))
    assert len(text.encode()) < MEGABYTE
    page = Page(text)
    assert sum("id" in row for row in page.of("tr")) == 2000
    marks = len(page.of("circle")) + sum(
        (one.get("d") or "").count("M") for one in page.of("path") if one.get("class") != "curve"
    )
    assert marks == 2 * 1500 + 2  # the legend has two


@pytest.mark.parametrize(("count", "name"), [(2000, "x" * 500 + ".{}"), (20_000, "layer.{}")])
def test_more_than_fits_leaves_out_the_best_and_says_so(count: int, name: str) -> None:
    """The page never grows beyond a megabyte; what it shows are the worst layers, in model order."""
    report = many(count, name)
    text = page_of(report)
    assert len(text.encode()) < MEGABYTE
    page = Page(text)
    shown = [int(str(row["id"])[1:]) for row in page.of("tr") if "id" in row]
    assert shown == sorted(shown)
    assert f"The worst {len(shown):,} of {count:,} layers" in page.text
    values = [one.output_sqnr_db for one in report.layers]
    measured = [index for index in shown if values[index] is not None]
    left = {value for index, value in enumerate(values) if value is not None and index not in {*shown}}
    assert max(values[index] or 0 for index in measured) <= min(left)


@pytest.mark.parametrize("count", [1, 3, 24, 25, 300])
def test_each_measured_layer_has_its_mark(count: int) -> None:
    """One for the weight and one for the output, with a title that names the layer."""
    layers = [attrs.evolve(LAYER, layer=f"l{index}", output_sqnr_db=20.0 + index) for index in range(count)]
    page = Page(page_of(report_of(*layers, KEPT)))
    assert len(page.of("circle")) == 2 * count + 2
    assert f"l0: output 20.00 dB, weight 17.00 dB, {INT4}" in page.text
    assert [one["href"] for one in page.of("a") if "tabindex" in one].count(f"#l{count - 1}") == 1


def test_figures_that_are_no_numbers_are_drawn_at_the_ends_and_told() -> None:
    """nan and -inf low, inf high; what was not measured is counted."""
    values = [math.nan, -math.inf, math.inf, 25.0, None]
    for count in (1, 7):
        layers = [attrs.evolve(LAYER, layer=f"l{i}", weight_sqnr_db=value) for i, value in enumerate(values * count)]
        page = Page(page_of(report_of(*layers)))
        heights = [float(str(one["cx" if count == 1 else "cy"])) for one in page.of("circle")[1:]]
        assert all(map(math.isfinite, heights))
        assert len(heights) == 4 * count
        for text in (f"{2 * count} values of nan or -inf", "of inf: exact", f"{count} reduced layer"):
            assert text in page.text
    assert heights[0] == heights[1] > heights[3] > heights[2]


def test_a_report_of_nothing_has_a_page() -> None:
    """No layer, nothing measured, no recipe: said in words."""
    text = Page(page_of(report_of())).text
    for words in (
        "No layer was measured",
        "No calibration data",
        "Not validated",
        "followed no recipe",
        "not measured",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("severities", "words"),
    [
        ((), "No critical findings, no warnings"),
        ((0,), "No critical findings, no warnings, 1 note"),
        ((1, 1), "No critical findings, 2 warnings"),
        ((2, 1, 0), "1 critical finding, 1 warning, 1 note"),
    ],
)
def test_the_verdict_counts_findings(severities: tuple[int, ...], words: str) -> None:
    """In the first line."""
    findings = tuple(mq.Finding("c", mq.Severity(one), "m") for one in severities)
    page = page_of(report_of(LAYER, findings=findings))
    assert f">{words}</a>" in page
    worst = {None: "good", 0: "good", 1: "warning", 2: "critical"}[max(severities, default=None)]
    assert f'class="verdict {worst}"' in page


def test_layers_that_stayed_float_are_told_by_reason() -> None:
    """Unsupported ones first, with what to do; names behind a fold where they are many."""
    lost = attrs.evolve(KEPT, layer="u", action=mq.Action.UNSUPPORTED, reason="no adapter", remedy="Give one.")
    page = page_of(report_of(*(attrs.evolve(KEPT, layer=f"k{index}") for index in range(60)), lost))
    section = page[page.index('id="kept"') : page.index('id="calibration"')]
    assert section.index("no adapter") < section.index("<summary>60 layers</summary>")
    assert "Give one." in section
    assert "<code>k39</code>, and 20 more layers" in section


def test_tradeoff_without_a_curve_or_function() -> None:
    """Only what there is is shown."""
    tradeoff = mq.Tradeoff("layer", (), (), 4.5)
    page = page_of(report_of(LAYER, tradeoff=tradeoff))
    assert "4.500 bits" in page
    assert "Models that your function judged" not in page
    judged = attrs.evolve(tradeoff, evaluations=(Evaluation(4.5, 0.5, False),))
    assert "refused" in page_of(report_of(LAYER, tradeoff=judged))
    assert "refused" in str(report_of(LAYER, tradeoff=judged))


def test_save_report_chooses_the_page_by_the_name(tmp_path: Any) -> None:
    """And writes UTF-8."""
    path = tmp_path / "report.html"
    mq.save_report(report_of(attrs.evolve(LAYER, layer="größe")), path, plugins=False)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "größe" in text
