"""The meter: lines where there is no terminal, a bar where there is one, nothing left behind."""

from __future__ import annotations

import io
import threading
import time

import pytest
from rich.console import Console

from monoquant.cli import meter as module
from monoquant.cli.meter import Meter, Tally, clock


def wait_for(console_text: io.StringIO, text: str) -> str:
    """What was written when it contains the text."""
    for _ in range(500):
        if text in console_text.getvalue():
            return console_text.getvalue()
        time.sleep(0.01)
    raise AssertionError(f"{text!r} not in {console_text.getvalue()!r}")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits two seconds in a test."""
    monkeypatch.setattr(module, "_EVERY", 0.005)
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    monkeypatch.setattr(module, "_BETWEEN_LINES", 0.05)


@pytest.mark.usefixtures("impatient")
def test_lines_say_how_far_it_is_and_how_long_it_will_take() -> None:
    """Where nobody sees a bar."""
    text = io.StringIO()
    meter = Meter(Console(file=text, width=200))
    with meter.running(), meter.stage("choosing codes", lambda: (1, 4)):
        shown = wait_for(text, "choosing codes: 25% after 0 s, about 0 s left\n")
    assert shown.startswith("monoquant: ")
    assert "\x1b" not in text.getvalue()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("done", "shown"), [(0, "0%"), (4, "100%"), (5, "100%")])
def test_no_time_is_foretold_where_nobody_knows_it(done: int, shown: str) -> None:
    """Before anything is done, and while the last of it reaches the disk."""
    text = io.StringIO()
    meter = Meter(Console(file=text, width=200))
    with meter.running(), meter.stage("writing", lambda: (done, 4)):
        wait_for(text, f"writing: {shown} after 0 s\n")


@pytest.mark.usefixtures("impatient")
def test_a_tally_says_what_it_was_told() -> None:
    """Nothing at first, and then the last."""
    tally = Tally()
    text = io.StringIO()
    meter = Meter(Console(file=text, width=200))
    with meter.running(), meter.stage("comparing", tally.look):
        wait_for(text, "comparing: after 0 s\n")
        tally.count(1, 4)
        tally.count(2, 4)
        wait_for(text, "comparing: 50% after 0 s, about 0 s left\n")


@pytest.mark.usefixtures("impatient")
def test_the_innermost_stage_is_shown() -> None:
    """And the outer one again when that has ended."""
    text = io.StringIO()
    meter = Meter(Console(file=text, width=200))
    with meter.running(), meter.stage("outer"):
        with meter.stage("inner"):
            assert "outer" not in wait_for(text, "inner: after 0 s\n")
        wait_for(text, "outer: after 0 s\n")


def test_short_work_writes_nothing() -> None:
    """Two seconds are no time."""
    text = io.StringIO()
    meter = Meter(Console(file=text, width=200))
    with meter.running(), meter.stage("short"):
        time.sleep(0.3)
    assert text.getvalue() == ""


@pytest.mark.usefixtures("impatient")
def test_a_bar_moves_on_a_terminal_and_is_gone_afterwards() -> None:
    """With a share and the time that is left; the cursor comes back."""
    text = io.StringIO()
    meter = Meter(Console(file=text, width=120, force_terminal=True))
    with meter.running(), meter.stage("measuring", lambda: (1, 2)):
        wait_for(text, "50%")
    assert text.getvalue().endswith("\x1b[2K")  # the line is erased
    assert "\x1b[?25h" in text.getvalue()  # the cursor is shown


def test_a_quiet_meter_starts_nothing() -> None:
    """No thread, and no text."""
    before = threading.active_count()
    text = io.StringIO()
    meter = Meter(Console(file=text), is_shown=False)
    with meter.running(), meter.stage("quiet"):
        assert threading.active_count() == before
    assert text.getvalue() == ""


@pytest.mark.usefixtures("impatient")
def test_the_thread_ends_when_the_work_fails() -> None:
    """And the error is the caller's."""
    before = threading.active_count()
    meter = Meter(Console(file=io.StringIO()))

    def fail() -> None:
        with meter.running(), meter.stage("failing"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert threading.active_count() == before


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3725, "62 min 05 s")])
def test_times_are_readable(seconds: float, text: str) -> None:
    """Seconds below a minute, minutes and seconds above."""
    assert clock(seconds) == text
