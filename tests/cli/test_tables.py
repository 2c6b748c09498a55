"""What a terminal shows of a report: names and figures before reasons, the worst layers first."""

from __future__ import annotations

import io

import attrs
import pytest
from rich.console import Console

import monoquant as mq
from monoquant.cli.tables import report_view
from tests.cli.conftest import model


@pytest.fixture(scope="module")
def report() -> mq.QuantReport:
    """Of a run with more layers than are shown at first."""
    report = mq.quantize(model(), accuracy_warning="ignore").report
    first = report.layers[0]
    many = tuple(
        attrs.evolve(first, layer=f"encoder.layers.{index}.attention.projection", weight_sqnr_db=20.0 + index)
        for index in range(30)
    )
    return attrs.evolve(report, layers=many)


def shown(report: mq.QuantReport, width: int, *, everything: bool = False) -> list[str]:
    """Lines on a terminal of that many columns."""
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=True, no_color=True, highlight=False, _environ={})
    console.print(report_view(report, console, everything=everything))
    return text.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "").replace("\x1b[2m", "").splitlines()


def test_without_a_terminal_it_is_the_reports_own_text(report: mq.QuantReport) -> None:
    """So that logs and pipes get all of it."""
    text = io.StringIO()
    console = Console(file=text, width=10_000)
    console.print(report_view(report, console, everything=False), soft_wrap=True)
    assert text.getvalue() == f"{report}\n"


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_names_and_figures_are_whole_at_any_width(report: mq.QuantReport, width: int) -> None:
    """And no line is longer than the terminal is wide."""
    lines = shown(report, width)
    assert max(map(len, lines)) <= width
    row = next(line for line in lines if line.startswith("encoder.layers.0.attention.projection"))
    assert " 20.00 " in f"{row} "


def test_there_is_room_for_reasons_on_a_wide_terminal(report: mq.QuantReport) -> None:
    """On one line each, cut where it must be; on as many as it takes if all is wanted."""
    assert "why" not in " ".join(shown(report, 80))
    cut = [line for line in shown(report, 120) if line.startswith("encoder.")]
    assert len(cut) == 20
    assert all("Linear weight to" in line and line.rstrip().endswith("…") for line in cut)
    whole = shown(report, 120, everything=True)
    assert len([line for line in whole if line.startswith("encoder.")]) == 30
    assert not any("…" in line for line in whole)


def test_the_worst_come_first_and_the_rest_is_told(report: mq.QuantReport) -> None:
    """With how to see it."""
    lines = shown(report, 140)
    names = [line.split()[0] for line in lines if line.startswith("encoder.")]
    assert names[0] == "encoder.layers.0.attention.projection"
    assert "... and 10 more layers; --verbose shows them" in " ".join(lines)


def test_names_in_files_do_nothing_to_a_terminal(report: mq.QuantReport) -> None:
    """Escape sequences are shown, not obeyed, with a terminal and without."""
    evil = attrs.evolve(
        report, layers=(attrs.evolve(report.layers[0], layer="up\x1b[2J\x07\x9b", reason="\x1b]0;x\x07"),)
    )
    for width, terminal in ((200, True), (10_000, False)):
        text = io.StringIO()
        console = Console(file=text, width=width, force_terminal=terminal, no_color=True, highlight=False, _environ={})
        console.print(report_view(evil, console, everything=True))
        assert "\\x1b[2J\\x07\\x9b" in text.getvalue()
        assert "\x1b[2J" not in text.getvalue()
        assert "\x1b]0" not in text.getvalue()
        assert "\x9b" not in text.getvalue()
