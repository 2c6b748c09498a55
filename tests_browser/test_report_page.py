"""The HTML report in a real browser: no errors, no requests; it sorts, filters, prints, and can be read in the dark."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import attrs
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

import monoquant as mq
from monoquant.report.html.facts import NOTHING, TIMES
from monoquant.report.tradeoff import CurvePoint, Evaluation, LayerTradeoff, SchemeCost

from .conftest import Open

INT4 = mq.Scheme()
KINDS = ("q_proj", "k_proj", "o_proj", "up_proj")
HOSTILE = "<img src='https://example.com/x.png' onerror='document.title=1'><script>document.title=2</script>"
STRANGE = {2: math.nan, 5: math.inf, 9: -math.inf, 13: 8.5}


def record(index: int) -> mq.LayerReport:
    """Every fourth layer is skipped, every tenth cannot be packed; sizes and SQNR jump about."""
    action = mq.Action.SKIP if index % 4 == 3 else mq.Action.UNSUPPORTED if index % 10 == 4 else mq.Action.QUANTIZE
    kept = action is not mq.Action.QUANTIZE
    size = 1000 * (index * 7919 % 2003 + 1)
    return mq.LayerReport(
        layer=f"model.layers.{index // 4}.{KINDS[index % 4]}",
        kind="LayerNorm" if kept else "Linear",
        shape=(64, 32 + index),
        parameters=64 * (32 + index),
        action=action,
        reason="a norm" if kept else "Linear weight to int4",
        bytes_before=size,
        bytes_after=size if kept else size // 7,
        remedy="Give an adapter." if action is mq.Action.UNSUPPORTED else "",
        scheme=None if kept else INT4,
        weights=() if kept else ("weight",),
        algorithm="" if kept else "gptq",
        weight_sqnr_db=None if kept else 17.0,
        output_sqnr_db=None if kept else STRANGE.get(index, 20 + index * 31 % 17 + 0.25),
    )


def report_of(count: int, **changes: Any) -> mq.QuantReport:
    layers = [record(index) for index in range(count)]
    layers[0] = attrs.evolve(layers[0], **changes)
    reduced = [one for one in layers if one.scheme is not None]
    tradeoff = mq.Tradeoff(
        "kl",
        tuple(LayerTradeoff(one.layer, one.parameters, (SchemeCost(INT4, 9),), 0, 0.5) for one in reduced),
        tuple(CurvePoint(4 + index / 10, 1 / (index + 1)) for index in range(30)),
        4.75,
        (Evaluation(4.75, 0.9, True),),
    )
    return mq.QuantReport(
        INT4,
        tuple(layers),
        (mq.Finding("sqnr-low", mq.Severity.WARNING, "Low.", layers[0].layer, "Do this."),),
        sum(one.bytes_before for one in layers),
        sum(one.bytes_after for one in layers),
        17.0,
        mq.CalibrationFacts(150, 10, (layers[-1].layer,), 10),
        mq.ValidationResult(24.0, 1.0, 0.5, 2.0, True, True),
        (("monoquant", "0.1.0"), ("torch", "2.13.0")),
        tradeoff,
        mq.ComparisonResult("kl", 0.08, 2048, 16),
        "[scheme]\nbits = 4\n",
    )


@pytest.fixture
def page(tmp_path: Path) -> Any:
    """Writes a report's page, which must stay below a megabyte."""

    def write(report: mq.QuantReport) -> Path:
        path = tmp_path / "report.html"
        mq.save_report(report, path, plugins=False)
        assert path.stat().st_size < 1_000_000
        return path

    return write


def problems(driver: webdriver.Chrome) -> list[str]:
    """What the console complains of."""
    return [entry["message"] for entry in driver.get_log("browser")]


def requests(driver: webdriver.Chrome) -> set[str]:
    """Addresses that were asked for, but for what the policy stopped and for the browser's own first page."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    failed = [one["params"] for one in events if one["method"] == "Network.loadingFailed"]
    stopped = {one["requestId"] for one in failed if one.get("blockedReason") == "csp"}
    sent = [one["params"] for one in events if one["method"] == "Network.requestWillBeSent"]
    urls = {one["request"]["url"] for one in sent if one["requestId"] not in stopped}
    return {url for url in urls if not url.startswith(("data:", "chrome:"))}


def column(driver: webdriver.Chrome, title: str) -> list[str]:
    """Cells of the visible rows."""
    return driver.execute_script(
        """
        const table = document.getElementById("layers");
        const at = Array.from(table.tHead.rows[0].cells).findIndex((cell) => cell.textContent === arguments[0]);
        const shown = Array.from(table.tBodies[0].rows).filter((row) => !row.hidden);
        return shown.map((row) => row.cells[at].textContent.trim());
        """,
        title,
    )


def heading(driver: webdriver.Chrome, title: str) -> Any:
    cells = driver.find_elements(By.CSS_SELECTOR, "#layers th")
    return next(cell for cell in cells if cell.text.startswith(title))


def click(driver: webdriver.Chrome, title: str) -> str | None:
    heading(driver, title).find_element(By.TAG_NAME, "button").click()
    return heading(driver, title).get_attribute("aria-sort")


@pytest.mark.parametrize("count", [3, 60, 2000])
def test_nothing_is_asked_for_and_nothing_complains(browser: Open, page: Any, count: int) -> None:
    """Neither with names that are markup, nor with two thousand layers."""
    path = page(report_of(count, layer=HOSTILE, reason=HOSTILE))
    driver = browser(path)
    assert problems(driver) == []
    assert requests(driver) == {path.as_uri()}
    assert driver.title == f"monoquant report: {INT4}"
    assert column(driver, "layer")[0] == HOSTILE
    assert len(column(driver, "layer")) == count
    overflowing = "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not driver.execute_script(overflowing)


def test_the_policy_stops_what_should_ever_slip_in(browser: Open, page: Any) -> None:
    """A picture and a script that are put into the page load nothing and run nothing."""
    path = page(report_of(3))
    text = path.read_text(encoding="utf-8")
    added = (
        '<img src="https://example.com/x.png"><script>document.title = "run"</script><p onclick="1" style="color:red">'
    )
    path.write_text(text.replace("<footer>", f"{added}<footer>"), encoding="utf-8")
    driver = browser(path)
    assert driver.title == f"monoquant report: {INT4}"
    assert requests(driver) == {path.as_uri()}
    assert sum("Content Security Policy" in text for text in problems(driver)) >= 3


def test_clicking_a_heading_sorts_numbers_as_numbers(browser: Open, page: Any) -> None:
    """Both ways; what was not measured last, nan before everything; bytes by their count and not by their text."""
    driver = browser(page(report_of(60)))
    assert click(driver, "output dB") == "ascending"
    rising = column(driver, "output dB")
    missing = rising.count(NOTHING)
    assert missing > 0
    assert {*rising[-missing:]} == {NOTHING}
    assert {*rising[:2]} == {"nan", "-inf"}
    values = [float(text) for text in rising[2:-missing]]
    assert values == sorted(values)
    assert values[-1] == math.inf
    assert click(driver, "output dB") == "descending"
    falling = column(driver, "output dB")
    assert falling[:-missing] == [
        "inf",
        *[f"{value:.2f}" for value in values[-2::-1]],
        *falling[-missing - 2 : -missing],
    ]
    assert {*falling[-missing:]} == {NOTHING}
    assert click(driver, "before") == "ascending"
    assert heading(driver, "output dB").get_attribute("aria-sort") is None
    sizes = {one.layer: one.bytes_before for one in report_of(60).layers}
    assert [sizes[name] for name in column(driver, "layer")] == sorted(sizes.values())
    assert click(driver, "shape") == "ascending"
    areas = [math.prod(map(int, text.split(TIMES))) for text in column(driver, "shape")]
    assert areas == sorted(areas)
    assert click(driver, "layer") == "ascending"
    assert column(driver, "layer")[:5:4] == ["model.layers.0.k_proj", "model.layers.1.k_proj"]
    assert column(driver, "layer").index("model.layers.2.k_proj") < column(driver, "layer").index(
        "model.layers.10.k_proj"
    )
    assert click(driver, "#") == "ascending"
    assert column(driver, "layer") == [one.layer for one in report_of(60).layers]
    assert problems(driver) == []


def test_the_filter_leaves_rows_that_have_every_word(browser: Open, page: Any) -> None:
    """Words and the decision together; the count says how many."""
    driver = browser(page(report_of(60)))
    field, count = driver.find_element(By.ID, "filter"), driver.find_element(By.ID, "count")
    assert count.text == "60 layers"
    field.send_keys("LINEAR q_proj")
    shown = column(driver, "layer")
    assert 0 < len(shown) < 15
    assert all(name.endswith("q_proj") for name in shown)
    assert count.text == f"{len(shown)} of 60 layers"
    field.clear()
    field.send_keys("nothing has this")
    assert column(driver, "layer") == []
    assert count.text == "0 of 60 layers"
    field.send_keys(Keys.CONTROL, "a", Keys.DELETE)
    Select(driver.find_element(By.ID, "decision")).select_by_value("unsupported")
    assert {*column(driver, "decision")} == {"unsupported"}
    click(driver, "before")
    assert {*column(driver, "decision")} == {"unsupported"}
    field.send_keys(Keys.ENTER)
    assert driver.current_url.endswith("report.html")


def test_a_link_to_a_layer_shows_it_though_it_was_filtered_out(browser: Open, page: Any) -> None:
    """Links of the worst layers and of marks in the plot lead to rows."""
    driver = browser(page(report_of(60)))
    driver.find_element(By.ID, "filter").send_keys("nothing has this")
    driver.find_element(By.CSS_SELECTOR, "#worst a").click()
    target = driver.find_element(By.CSS_SELECTOR, "#layers tr:target")
    assert target.is_displayed()
    assert column(driver, "layer")[2] == "model.layers.0.o_proj"
    assert len(column(driver, "layer")) == 60


def test_the_keyboard_reaches_headings_and_filters(browser: Open, page: Any) -> None:
    """Tab and Enter, without a mouse; marks in plots are not in the way."""
    driver = browser(page(report_of(200)))
    driver.find_element(By.ID, "filter").send_keys(Keys.TAB, Keys.TAB)
    for _ in range(20):
        active = driver.switch_to.active_element
        if active.tag_name == "button" and active.text.startswith("output dB"):
            break
        active.send_keys(Keys.TAB)
    active.send_keys(Keys.ENTER)
    assert heading(driver, "output dB").get_attribute("aria-sort") == "ascending"
    reached = driver.execute_script("return document.querySelectorAll('svg a:not([tabindex=\"-1\"])').length")
    assert reached == 0


def test_without_javascript_it_is_a_plain_page(browser: Open, page: Any) -> None:
    """Every row is there, and no control that would do nothing."""
    driver = browser(page(report_of(60)), javascript=False)
    assert len(driver.find_elements(By.CSS_SELECTOR, "#layers tbody tr")) == 60
    assert not driver.find_element(By.ID, "controls").is_displayed()
    assert driver.find_elements(By.CSS_SELECTOR, "#layers th button") == []
    assert len(driver.find_elements(By.CSS_SELECTOR, "#sqnr circle")) > 60


def colours(driver: webdriver.Chrome, selector: str) -> tuple[float, float]:
    """Luminance of ink and paper."""
    script = """
        const style = getComputedStyle(document.querySelector(arguments[0]));
        return [style.color, getComputedStyle(document.body).backgroundColor];
    """
    return tuple(luminance(text) for text in driver.execute_script(script, selector))  # type: ignore[return-value]


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_in_the_light_and_in_the_dark(browser: Open, page: Any, dark: bool) -> None:
    """Contrast of at least 4.5 to 1, for marked figures as well (WCAG 2.2, 1.4.3)."""
    driver = browser(page(report_of(60)))
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]},
    )
    for selector in ("p", ".muted, figcaption", ".verdict", "nav a", "#layers .bad", "td.unsupported", "th", ".remedy"):
        ink, paper = colours(driver, selector)
        assert (paper < 0.1) is dark
        lighter, darker = max(ink, paper), min(ink, paper)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, selector


def test_a_narrow_window_scrolls_tables_and_not_the_page(browser: Open, page: Any) -> None:
    """On a phone."""
    driver = browser(page(report_of(60)))
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 390


def test_print_has_every_layer_and_no_controls(browser: Open, page: Any) -> None:
    """What is folded is printed as well."""
    driver = browser(page(report_of(60)))
    driver.execute_script("dispatchEvent(new Event('beforeprint'))")
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not driver.find_element(By.ID, "controls").is_displayed()
    assert all(one.get_attribute("open") for one in driver.find_elements(By.TAG_NAME, "details"))
    cut = "const box = document.querySelector('.tall'); return box.scrollHeight > box.clientHeight + 1"
    assert not driver.execute_script(cut)
